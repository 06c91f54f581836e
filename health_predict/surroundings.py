"""The same environment on every machine, for our processes and all that they start."""

from __future__ import annotations

import os

# Python reads the first two when it starts. Text is UTF-8 and letters are letters in every language; the folder in
# which a command is called is no place to import from. The last one is read when Ray is imported: without clusters a
# Ray of our own lives on loopback, as on macOS, and asks the network neither for its address nor for anything else.
FIXED = {
    "PYTHONUTF8": "1",
    "PYTHONSAFEPATH": "1",
    "LC_ALL": "C.UTF-8",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
# Set for other programs of the person's: what Python imports, warns of and leaves out, how MLflow logs, what BentoML
# serves, another repository; where a Ray of our own runs, also what was set for another one.
FOREIGN = (
    "PYTHON",
    "MLFLOW_",
    "BENTOML_",
    *(f"GIT_{what}" for what in ("DIR", "WORK_TREE", "INDEX", "COMMON", "OBJECT")),
)
FOREIGN_RAY = ("RAY_", "TUNE_")
# But not how a server is reached, and what this machine can bear.
KEPT = ("PYTHONUNBUFFERED", "MLFLOW_HTTP_", "MLFLOW_S3_", "MLFLOW_TRACKING_", "RAY_TMPDIR", "RAY_memory_")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def surroundings() -> dict[str, str]:
    """The environment of this process, with what is ours in it."""
    own_ray = not os.environ.get("HEALTH_PREDICT_RAY_ADDRESS")
    foreign = (*FOREIGN, *FOREIGN_RAY) if own_ray else FOREIGN
    ours = {name: value for name, value in os.environ.items() if name.startswith(KEPT) or not name.startswith(foreign)}
    values = {**ours, **FIXED}
    # Who reaches Ray runs code: a Ray of our own asks for a token. Of another's cluster its people decide.
    if own_ray:
        values["RAY_AUTH_MODE"] = "token"
    # What runs here is not asked through a company's proxy. Both spellings are in use; libraries differ in which wins.
    direct = [host.strip() for name in ("no_proxy", "NO_PROXY") for host in values.get(name, "").split(",")]
    direct = ["*"] if "*" in direct else [*filter(None, direct), *LOOPBACK]
    values["no_proxy"] = values["NO_PROXY"] = ",".join(dict.fromkeys(direct))
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - the system does not know the user, as in some containers
        values.update(HOME="/nonexistent", USER=values.get("USER", str(os.getuid())))
    return values
