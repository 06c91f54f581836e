"""Every error a user can cause or meet. A message states the problem; `remedy` says what to do about it."""

from __future__ import annotations


class HealthPredictError(Exception):
    """Base of all expected failures: shown as one line with its remedy, never as a stack trace.

    `exit_code` is what the command line returns; the codes are documented in `docs/reference/commands.md`.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem} -> {self.remedy}" if self.remedy else self.problem

    def __reduce__(self) -> tuple[type[HealthPredictError], tuple[str, str]]:
        # Exceptions with two arguments do not survive the default pickling between processes.
        return type(self), (self.problem, self.remedy)


class SettingsError(HealthPredictError):
    """A setting is unknown or has an impossible value."""

    exit_code = 2


class DataError(HealthPredictError):
    """A file cannot be read, is not what its checksum says, or breaks the data contract."""

    exit_code = 3


class StateError(HealthPredictError):
    """What a stage needs is missing, damaged or inconsistent: a run, a version, a link of the identity chain."""

    exit_code = 4


class UnreachableError(HealthPredictError):
    """A service, a port, a disk or a network does not answer or refuses."""

    exit_code = 5


class GateError(HealthPredictError):
    """A gate refused: parity of the compiled model, golden requests, a promotion that must not happen."""

    exit_code = 6
