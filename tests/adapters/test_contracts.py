"""Where a run's contract and the file of its synthetic cohort are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from health_predict.adapters import contracts, keys
from health_predict.adapters.contracts import (
    built_in,
    built_in_synthetic,
    contract_of,
    named_contract,
    synthetic_of,
    use,
    use_named,
)
from health_predict.adapters.storage import open_storage
from health_predict.errors import DataError, StateError
from health_predict.settings import Settings
from tests.wards import CONTRACT, FILE

MakeSettings = Callable[..., Settings]


def wards(folder: Path, contract: str = CONTRACT, file: str = FILE) -> Path:
    """A contract's file with its data file beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "wards.synthetic.yaml").write_text(file, encoding="utf-8")
    (folder / "wards.yaml").write_text(contract, encoding="utf-8")
    return folder / "wards.yaml"


def test_a_run_that_names_no_contract_has_the_built_in_one(settings: Settings) -> None:
    assert contract_of(settings) == built_in()
    assert synthetic_of(built_in(), settings) == built_in_synthetic()


@pytest.mark.parametrize("named", [str, Path.as_uri], ids=["path", "uri"])
def test_the_file_lies_beside_the_contract(named: Callable[[Path], str], settings: Settings, tmp_path: Path) -> None:
    # given
    told = settings.model_copy(update={"contract": named(wards(tmp_path / "a"))})
    # then
    assert synthetic_of(contract_of(told), told).rows == 50


def test_the_built_in_contract_is_read_as_a_file_too(settings: Settings) -> None:
    file = str(contracts.FOLDER / "diabetes-130.yaml")
    told = settings.model_copy(update={"contract": file})
    assert synthetic_of(contract_of(told), told) == built_in_synthetic()


def test_storage_that_is_used_for_a_contract_has_its_file(settings: Settings, tmp_path: Path) -> None:
    # given a storage in use, and files that are gone
    told = settings.model_copy(update={"contract": str(wards(tmp_path / "a"))})
    contract, storage = contract_of(told), open_storage(settings.storage)
    use(storage, contract, told)
    (tmp_path / "a" / "wards.yaml").unlink()
    (tmp_path / "a" / "wards.synthetic.yaml").unlink()
    # then a task that is told the digest, and a later command that is told nothing, find both
    for later in (settings.model_copy(update={"contract": contract.digest}), settings):
        assert contract_of(later) == contract
        assert synthetic_of(contract_of(later), later).rows == 50
    # and they are used once more
    use(storage, contract, settings)


def test_a_contract_without_a_synthetic_cohort_says_so(settings: Settings, tmp_path: Path) -> None:
    # given
    text = CONTRACT.replace("synthetic: wards.synthetic.yaml\n", "")
    told = settings.model_copy(update={"contract": str(wards(tmp_path / "a", text))})
    # then
    with pytest.raises(DataError, match="wards has no synthetic cohort -> name a file with HEALTH_PREDICT_DATA_SOURCE"):
        synthetic_of(contract_of(told), told)
    # and nothing is missed where it is used
    use(open_storage(settings.storage), contract_of(told), told)


def test_a_file_that_is_missing_is_named(settings: Settings, tmp_path: Path) -> None:
    # given
    told = settings.model_copy(update={"contract": str(wards(tmp_path / "a"))})
    contract = contract_of(told)
    (tmp_path / "a" / "wards.synthetic.yaml").unlink()
    # then beside the contract
    with pytest.raises(DataError, match=r"wards\.synthetic\.yaml does not exist -> put it beside .*, or leave"):
        synthetic_of(contract, told)
    # and in storage
    open_storage(settings.storage).write(keys.contract(contract.digest), contract.to_json())
    with pytest.raises(StateError, match=r"storage has no wards\.synthetic\.yaml of the data contract"):
        synthetic_of(contract, settings.model_copy(update={"contract": contract.digest}))


def test_what_is_used_for_one_contract_is_refused_to_another_which_may_be_looked_at(
    settings: Settings, tmp_path: Path
) -> None:
    # given a storage that is used for the built-in contract
    use(open_storage(settings.storage), built_in(), settings)
    other = settings.model_copy(update={"contract": str(wards(tmp_path / "a"))})
    # then
    with pytest.raises(StateError, match=f"is used for the contract {built_in().name}, and wards was asked for"):
        contract_of(other)
    assert named_contract(other).name == "wards"


def test_a_contract_that_is_named_goes_where_the_tasks_of_a_cluster_read_it(settings: Settings, tmp_path: Path) -> None:
    told = settings.model_copy(update={"contract": str(wards(tmp_path / "a"))})
    use_named(told)
    assert contract_of(settings) == contract_of(told)
