"""Which data contract a run reads: what the settings name, else the one that the storage is used for, else our own.

A contract lies in storage under its digest, where every task and every later command finds it; the data file that it
names under `synthetic` lies beside it there too, as it was written.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources

from health_predict.adapters import keys
from health_predict.adapters.storage import Storage, file_path, open_storage
from health_predict.contracts import BUILT_IN
from health_predict.core.data.contract import Contract
from health_predict.core.data.contract_file import read_contract
from health_predict.core.data.synthetic_file import Synthetic, read_synthetic
from health_predict.errors import DataError, StateError
from health_predict.settings import Settings

FOLDER = resources.files("health_predict.contracts")
_DIGEST = re.compile("[0-9a-f]{64}")


@lru_cache(maxsize=1)
def built_in() -> Contract:
    """The contract that comes with the library."""
    name = f"{BUILT_IN}.yaml"
    return read_contract((FOLDER / name).read_text(encoding="utf-8"), name)


def contract_of(settings: Settings) -> Contract:
    """The contract of a run.

    Raises StateError when the storage is used for a contract of another name, and what `named_contract` raises.
    """
    contract = named_contract(settings)
    used = in_use(open_storage(settings.storage, settings.s3_endpoint_url)) if settings.contract else None
    if used is not None and used.name != contract.name:
        raise StateError(
            f"the storage is used for the contract {used.name}, and {contract.name} was asked for",
            "give it a place of its own: another HEALTH_PREDICT_HOME, or another HEALTH_PREDICT_STORAGE_URI",
        )
    return contract


def named_contract(settings: Settings) -> Contract:
    """The contract that the settings name, else the one in use, else our own; whatever the storage is used for.

    Raises DataError when the file that the settings name does not exist or is no contract, StateError when storage
    lost one.
    """
    if named := _file_named(settings):
        return read_contract(_text(named, settings, "correct or unset HEALTH_PREDICT_CONTRACT"), named)
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    return stored_contract(storage, settings.contract) if settings.contract else in_use(storage) or built_in()


def _file_named(settings: Settings) -> str:
    """The contract's file that the settings name; empty where they name a digest or nothing."""
    return "" if _DIGEST.fullmatch(settings.contract) else settings.contract


def in_use(storage: Storage) -> Contract | None:
    """The contract that the storage is used for; None before the first dataset."""
    if not storage.exists(keys.CONTRACT):
        return None
    return stored_contract(storage, storage.read(keys.CONTRACT).decode())


def stored_contract(storage: Storage, digest: str) -> Contract:
    """The contract of this digest. Raises StateError when storage has none."""
    key = keys.contract(digest)
    if not storage.exists(key):
        if digest == built_in().digest:
            return built_in()
        raise StateError(
            f"storage has no data contract {digest[:12]}",
            "name its file with HEALTH_PREDICT_CONTRACT and train again: `health-predict pipeline run training`",
        )
    return Contract.from_json(storage.read(key))


def synthetic_of(contract: Contract, settings: Settings) -> Synthetic:
    """How the synthetic cohort of the run's contract is drawn.

    Raises DataError when the contract has none, its file does not exist or is wrong, StateError when storage lost it.
    """
    if not contract.synthetic:
        raise DataError(
            f"the contract {contract.name} has no synthetic cohort", "name a file with HEALTH_PREDICT_DATA_SOURCE"
        )
    return read_synthetic(_synthetic_text(contract, settings), contract.synthetic, contract)


@lru_cache(maxsize=1)
def built_in_synthetic() -> Synthetic:
    """How the synthetic cohort of the built-in contract is drawn."""
    return read_synthetic(_built_in_text(), built_in().synthetic, built_in())


def _built_in_text() -> str:
    return (FOLDER / built_in().synthetic).read_text(encoding="utf-8")


def _synthetic_text(contract: Contract, settings: Settings) -> str:
    named = _file_named(settings)
    if named:
        return _text(_beside(named, contract.synthetic), settings, f"put it beside {named}, or leave `synthetic` out")
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    key = keys.synthetic(contract.digest)
    if storage.exists(key):
        return storage.read(key).decode()
    if contract.digest == built_in().digest:
        return _built_in_text()
    raise StateError(
        f"storage has no {contract.synthetic} of the data contract {contract.digest[:12]}",
        "name the contract's file with HEALTH_PREDICT_CONTRACT",
    )


def use_named(settings: Settings) -> None:
    """Bring a contract that the settings name into storage, where the tasks of a cluster read it."""
    if settings.contract:
        use(open_storage(settings.storage, settings.s3_endpoint_url), contract_of(settings), settings)


def use(storage: Storage, contract: Contract, settings: Settings) -> None:
    """Let the storage be used for this contract, and keep it there, with its data file where the settings name it."""
    if contract.synthetic and _file_named(settings):
        storage.write(keys.synthetic(contract.digest), _synthetic_text(contract, settings).encode())
    storage.write(keys.contract(contract.digest), contract.to_json())
    storage.write(keys.CONTRACT, contract.digest.encode())


def _beside(where: str, name: str) -> str:
    """The address of a file in the folder of another."""
    return where[: where.rfind("/") + 1] + name


def _text(where: str, settings: Settings, remedy: str) -> str:
    path = file_path(where)
    try:
        if path is None:
            folder, _, name = where.rpartition("/")
            return open_storage(folder, settings.s3_endpoint_url).read(name).decode("utf-8-sig")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where} is no text in UTF-8", "save it as UTF-8") from None
    except (OSError, StateError):
        problem = "does not exist" if path is None or not path.exists() else "cannot be read"
        raise DataError(f"{where} {problem}", remedy) from None
