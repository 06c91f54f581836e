"""A contract's data file: its mistakes have lines, and another table than the built-in one is drawn from its own."""

from __future__ import annotations

import pandas as pd
import pytest

from health_predict.adapters.contracts import built_in, built_in_synthetic
from health_predict.core.choices import Scenario
from health_predict.core.data.contract import Contract
from health_predict.core.data.contract_file import read_contract
from health_predict.core.data.scenarios import inject
from health_predict.core.data.synthetic import synthesize
from health_predict.core.data.synthetic_file import Synthetic, read_synthetic
from health_predict.errors import DataError
from tests.wards import CONTRACT, FILE

WARDS = read_contract(CONTRACT, "wards.yaml")


def cohort(text: str = FILE, rows: int = 3000) -> tuple[Synthetic, pd.DataFrame]:
    """What the file says, and rows drawn from it."""
    synthetic = read_synthetic(text, "wards.synthetic.yaml", WARDS)
    return synthetic, synthesize(WARDS, synthetic, rows, seed=1)


def test_another_table_is_drawn_from_its_own_file() -> None:
    _, frame = cohort()
    assert frame.columns.tolist() == [column.name for column in WARDS.table]
    assert all(WARDS.by_name[name].holds(text) for name in frame for text in frame[name].unique())
    # labels follow the file: nobody comes back from where nobody does, and more of those who were here before
    assert set(frame.loc[frame["left"] == "died", "returned"]) == {"no"}
    returned = (frame["returned"] == "yes").groupby(frame["earlier"] == "0").mean()
    assert returned[False] > returned[True] + 0.1
    # and who returned is here again
    assert frame["person"].duplicated().any() and not frame["stay"].duplicated().any()


def test_drift_needs_no_file_where_it_means_the_same_everywhere() -> None:
    # given
    synthetic, frame = cohort()
    generic = (Scenario.NONE, Scenario.PREVALENCE_DOWN, Scenario.PREVALENCE_UP, Scenario.CONCEPT_FLIP)
    for scenario in (*generic, Scenario.DELAYED_LABELS):
        # when
        drifted, truth = inject(frame, WARDS, None, scenario, 1500, seed=2)
        # then
        assert drifted["stay"].equals(frame["stay"]) and drifted[:1500].equals(frame[:1500])
        assert (truth.changed_rows > 0) == (scenario not in (Scenario.NONE, Scenario.DELAYED_LABELS))
    flipped, _ = inject(frame, WARDS, None, Scenario.CONCEPT_FLIP, 0, seed=2)
    returned = (flipped["returned"] == "yes").groupby(flipped["earlier"] == "0").mean()
    assert returned[False] < returned[True]
    # and one that the file describes does what it says
    recoded, truth = inject(frame, WARDS, synthetic, Scenario.ICD_RECODING, 0, seed=2)
    assert set(recoded["cause"]) == {"R09", "E11", "?"} and truth.columns == ("cause",)


def test_rows_drawn_again_are_others_where_the_patient_names_the_encounter() -> None:
    # given a table of person-years
    _, frame = cohort()
    years = frame.assign(stay=[str(1 + row // 100) for row in range(len(frame))], person=frame.index.astype(str))
    contract = WARDS.model_copy(update={"encounter": ("person", "stay")})
    # when
    drifted, truth = inject(years, contract, None, Scenario.PREVALENCE_UP, 1000, seed=2)
    # then
    assert not drifted.duplicated(["person", "stay"]).any() and drifted["stay"].equals(years["stay"])
    assert truth.first_encounter == "1000/11"


@pytest.mark.parametrize("synthetic", [None, cohort()[0]])
def test_a_scenario_that_nobody_described_is_refused(synthetic: Synthetic | None) -> None:
    with pytest.raises(DataError, match=r"wards does not say what the scenario age-shift changes -> use one of none, "):
        inject(cohort()[1], WARDS, synthetic, "age-shift", 0, seed=1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rows: 50", "rows: many", "line 1, rows: Input should be a valid integer"),
        ("  left: {home: 9, died: 1}\n", "", "line 13, columns: left is neither here nor among the summaries"),
        ("died: 1}", "gone: 1}", "line 17, columns.left.gone: left cannot be gone: it must be one of home, died"),
        ("{n: 3, y: 1}", "{n: 0}", "line 18, columns.smoker: no value occurs"),
        ("smoker: {n", "stay: {1: 1}\n  smoker: {n", "line 18, columns.stay: is no column that is made up"),
        ("{steps: [0, 2]}", "{steps: [0, 2], each: 1}", "line 11, effects.earlier: say one of each, steps"),
        ("  albumin: {each", "  left: {each", "line 10, effects.left: left is a level; it must be a count or a number"),
        ("  albumin: {each", "  weight: {each", "line 10, effects.weight: there is no column weight that is made up"),
        ("circulatory: 1", "heart: 1", "line 12, effects.cause.chapters.heart: cause has no chapter heart"),
        ("{circulatory: R09}", "{circulatory: 786}", "recoded.786: cause cannot be 786: it must be an ICD-10-CM code"),
        ("  icd-recoding:", "  flood:", "line 22, scenarios.flood"),
        ("    recoded: {circulatory: R09}", "    {}", "line 22, scenarios.icd-recoding: changes nothing"),
        ("    recoded:", "    caps: {earlier: 1}\n    recoded:", "icd-recoding: a scenario changes one thing"),
        ("seen_again: 0.9", "seen_again: 0.9\n  seen: 1", "line 8, patients.seen: the word is unknown here"),
    ],
)
def test_mistakes_are_named_by_their_line(old: str, new: str, message: str) -> None:
    assert old in FILE
    with pytest.raises(DataError) as caught:
        cohort(FILE.replace(old, new))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encounter": ("person", "stay")}, "ordered by one numeric identifier"),
        ({"encounter": ("person",), "order": "person"}, "ordered by one numeric identifier"),
    ],
)
def test_tables_that_cannot_be_made_up_are_refused(changes: dict[str, object], message: str) -> None:
    contract: Contract = WARDS.model_copy(update=changes)
    with pytest.raises(DataError, match=message):
        read_synthetic(FILE, "x", contract)


def test_a_text_that_describes_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="x describes no synthetic cohort"):
        read_synthetic("- a", "x", WARDS)


def test_the_digest_is_of_what_the_file_says() -> None:
    digests = {read_synthetic(text, "x", WARDS).digest for text in (FILE, "# a comment\n" + FILE)}
    assert len(digests) == 1 and len({built_in_synthetic().digest, *digests}) == 2
    assert digests != {read_synthetic(FILE.replace("0.9", "0.8"), "x", WARDS).digest}
    assert built_in().synthetic
