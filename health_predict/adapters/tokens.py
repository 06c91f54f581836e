"""Bearer tokens of the endpoint: the file of those that it takes, and the token that our own clients send.

The file has a line for each token, `NAME ROLE SHA256`, and never a token itself. Whoever reads it can ask nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import re
import secrets
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from health_predict.adapters.files import whole_file
from health_predict.adapters.locks import only_one
from health_predict.errors import SettingsError, StateError
from health_predict.settings import Settings

log = logging.getLogger(__name__)

TOKEN_BYTES = 32
LOCK_SECONDS = 10
NAME = r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}"
LINE = re.compile(rf"({NAME}) (client|operator) ([0-9a-f]{{64}})")


class Role(StrEnum):
    """What the holder of a token may do."""

    CLIENT = "client"
    """Ask for predictions, the metrics and what serves."""
    OPERATOR = "operator"
    """The same, and keep predictions out of the log."""


class Token(NamedTuple):
    """A token that the endpoint takes."""

    name: str
    role: Role
    digest: str
    """SHA-256 of the token, in hexadecimal."""


def read_tokens(file: Path) -> list[Token]:
    """The tokens of a file. Raises SettingsError when it cannot be read, or has a line that is no token."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise SettingsError(
            f"the file of tokens {file} cannot be read: {reason}",
            "`health-predict token add NAME` makes it; HEALTH_PREDICT_SERVING_TOKENS says where it lies",
        ) from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        token = LINE.fullmatch(line.strip())
        if token is None:
            # Not what it says: it may be a token that somebody wrote there.
            raise SettingsError(
                f"line {number} of the file of tokens {file} is none", "a line is NAME, client or operator, and SHA-256"
            )
        found.append(Token(token[1], Role(token[2]), token[3]))
    return found


def add_token(file: Path, name: str, role: Role) -> str:
    """A new token of that name, of which the file gets the digest. Raises StateError when the name is taken."""
    if not re.fullmatch(NAME, name):
        raise SettingsError(f"{name!r} is no name of a token", "use up to 63 letters, digits, dots, - and _")
    with only_one(file.parent, LOCK_SECONDS, f".{file.name}.lock"):
        known = read_tokens(file) if file.exists() else []
        if any(one.name == name for one in known):
            raise StateError(
                f"there is a token {name} already", f"choose another name, or `health-predict token remove {name}`"
            )
        token = secrets.token_urlsafe(TOKEN_BYTES)
        _write(file, [*known, Token(name, role, digest_of(token.encode()))])
    return token


def remove_token(file: Path, name: str) -> None:
    """Take a token out of the file. Raises StateError when there is none of that name."""
    with only_one(file.parent, LOCK_SECONDS, f".{file.name}.lock"):
        known = read_tokens(file)
        kept = [one for one in known if one.name != name]
        if len(kept) == len(known):
            raise StateError(f"there is no token {name}", "`health-predict token list` shows the names")
        _write(file, kept)


def _write(file: Path, tokens: list[Token]) -> None:
    with whole_file(file, "name another in HEALTH_PREDICT_SERVING_TOKENS") as temporary:
        temporary.touch(mode=0o600)  # who could write there could let himself in
        temporary.write_text("".join(f"{' '.join(token)}\n" for token in tokens), encoding="utf-8")


def digest_of(token: bytes) -> str:
    """What stands in the file for a token."""
    return hashlib.sha256(token).hexdigest()


class TokenFile:
    """The tokens of a file as it is now: it is read again when it has changed, so a rotation needs no restart.

    A file that is gone or wrong lets nobody in, and the log says so once.
    """

    def __init__(self, file: Path) -> None:
        """Raises SettingsError when the file cannot be read."""
        self._file, self._seen, self._problem = file, (0, 0, 0), ""
        self._tokens = read_tokens(file)

    def known(self, token: bytes) -> Token | None:
        """What the file has for the token that somebody sends; None when it has no such token."""
        self._look()
        digest, found = digest_of(token), None
        for one in self._tokens:  # all of them, so that the time tells nothing
            if hmac.compare_digest(one.digest, digest):
                found = one
        return found

    def _look(self) -> None:
        problem = ""
        try:
            state = self._file.stat()
            seen = (state.st_mtime_ns, state.st_ino, state.st_size)
            if seen == self._seen:
                return
            self._tokens, self._seen = read_tokens(self._file), seen
        except OSError as error:
            problem = f"the file of tokens {self._file} cannot be read: {error.strerror}"
        except SettingsError as error:
            problem = error.problem
        if problem:
            self._tokens, self._seen = [], (0, 0, 0)
            if problem != self._problem:
                log.error("%s: nobody is let in", problem)
        self._problem = problem


def taken_tokens(settings: Settings) -> TokenFile | None:
    """The tokens that the endpoint takes; None when it listens on this machine only and asks nobody who they are.

    Raises SettingsError when it has no file of tokens although other machines could reach it, or a wrong one.
    """
    if settings.serving_tokens:
        return TokenFile(Path(settings.serving_tokens))
    if not is_loopback(settings.serving_host):
        raise SettingsError(
            f"the endpoint would listen on {settings.serving_host} and ask nobody who they are",
            "set HEALTH_PREDICT_SERVING_TOKENS to a file and make a token with `health-predict token add NAME`, or "
            "leave HEALTH_PREDICT_SERVING_HOST at 127.0.0.1",
        )
    return None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on an address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def own_token(settings: Settings) -> str:
    """The token that our clients send to the endpoint; empty when the settings name no file of one.

    Raises SettingsError when the file cannot be read or holds something else.
    """
    if not settings.serving_token_file:
        return ""
    file = Path(settings.serving_token_file)
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no plain text"
        raise SettingsError(
            f"the token {file} cannot be read: {reason}", "correct HEALTH_PREDICT_SERVING_TOKEN_FILE"
        ) from None
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", token):
        raise SettingsError(
            f"{file} does not hold a token and nothing else", "write what `health-predict token add` printed into it"
        )
    return token
