"""The data profile says who is in the cohort, what is missing and what changes, as the numbers are."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from health_predict.core.data.cohort import target
from health_predict.core.data.partition import Parameters, Partition, partition
from health_predict.report.data_profile import data_profile_page
from tests.contracts import DIABETES

PARAMETERS = Parameters(initial_share=0.2, future_batches=4, salt="profile", labelled_batches=2)


def page_of(frame: pd.DataFrame, source: str = "uci", parameters: Parameters = PARAMETERS) -> str:
    return data_profile_page(
        frame,
        DIABETES,
        partition(frame, DIABETES, parameters),
        parameters=parameters,
        raw_sha256="a" * 64,
        source=source,
        dataset_digest="b" * 64,
    )


@pytest.fixture(scope="module")
def cut(cohort: pd.DataFrame) -> Partition:
    return partition(cohort, DIABETES, PARAMETERS)


@pytest.fixture(scope="module")
def page(cohort: pd.DataFrame) -> str:
    return page_of(cohort)


def rows(page: str) -> list[list[str]]:
    """Cells of every row of every table."""
    found = []
    for row in re.findall(r"<tr>(.*?)</tr>", page, flags=re.S):
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.S)
        found.append([re.sub(r"\s+", " ", cell).strip() for cell in cells])
    return found


def test_the_flow_leads_from_the_file_to_the_cohort(page: str, cohort: pd.DataFrame, cut: Partition) -> None:
    table = {row[0]: row[1:] for row in rows(page)}
    kept = len(cohort) - sum(cut.excluded.values())
    assert table["in the file"] == ["3,000", f"{cohort['patient_nbr'].nunique():,}"]
    assert table["in the cohort"][0] == f"{kept:,}"
    lost = [cells[0] for label, cells in table.items() if label.startswith("left out: ")]
    assert sum(int(cell[1:]) for cell in lost) == 3_000 - kept
    # and what is initial is so without the labelled batches that joined the splits
    later = sum(len(batch) for batch in cut.batches)
    assert table["initial: the first 20 % of the file (600)"][0] == f"{kept - later:,}"
    assert table["later, in 4 batches"][0] == f"{later:,}"


def test_the_splits_are_counted(page: str, cut: Partition) -> None:
    table = {row[0]: row[1:] for row in rows(page)}
    for name, part in (("train", cut.train), ("validation", cut.validation), ("test", cut.test)):
        assert table[name][:3] == [
            f"{len(part):,}",
            f"{part['patient_nbr'].nunique():,}",
            f"{target(part, DIABETES).sum():,}",
        ]


def test_every_column_is_described(page: str) -> None:
    for column in DIABETES.columns:
        if column.is_feature:
            assert f">{column.name}" in page, column.name
    assert {row[0] for row in rows(page)} >= set(DIABETES.groups[0].columns)
    assert "Without any variation: " in page and "examide" in page


def test_levels_are_shown_with_their_share_before_and_after(cohort: pd.DataFrame) -> None:
    # given a column that is recorded only later, as payer_code in the real data
    early = cohort["encounter_id"].astype("int64").rank() <= 600
    page = page_of(cohort.assign(payer_code=["?" if first else "MC" for first in early]))
    # then
    payer = page[page.index("<summary>payer_code") :]
    shares = {row[0]: row[2:4] for row in rows(payer[: payer.index("</details>")])}
    assert shares["missing"] == ["100.0 %", "0.0 %"] and shares["MC"] == ["0.0 %", "100.0 %"]


def test_what_changes_most_is_said_first(cohort: pd.DataFrame) -> None:
    # given a payer that is recorded only later, and in some encounters, and a discharge that is unknown only at first
    early = cohort["encounter_id"].astype("int64").rank() <= 600
    page = page_of(
        cohort.assign(
            payer_code=["?" if first or number % 4 == 0 else "MC" for number, first in enumerate(early)],
            discharge_disposition_id=[
                "1" if number % 3 else "18" if first else "3" if number % 2 else "6"
                for number, first in enumerate(early)
            ],
        )
    )
    # then that comes first, and next the discharge by its word
    assert re.search(r'<p class="lead">payer_code is missing in all of the initial encounters, then in 2\d\.\d', page)
    assert re.search(r"<li>discharge_disposition_id: unknown \(18\) goes from 3\d\.\d.% to none\.</li>", page)
    assert page.index('class="lead"') < page.index("From the file to the cohort")


def test_only_the_published_table_is_called_so(cohort: pd.DataFrame, page: str) -> None:
    assert "Diabetes 130-US" in page
    assert "Diabetes 130-US" not in page_of(cohort, "synthetic")
    assert "A table that was given as a file" in page_of(cohort, "custom")


def test_long_lists_of_levels_end_in_one_row_for_the_rest(page: str, cohort: pd.DataFrame) -> None:
    diagnoses = page[page.index("<summary>diag_1") :]
    table = rows(diagnoses[: diagnoses.index("</details>")])
    assert len(table) == 14 and table[-1][0].endswith(" others")
    assert sum(int(row[1].replace(",", "")) for row in table[1:]) == sum(
        len(part) for part in partition(cohort, DIABETES, Parameters(0.2, 4, "profile")).parts().values()
    )


def test_synthetic_data_cannot_be_taken_for_real(cohort: pd.DataFrame, page: str) -> None:
    assert "Synthetic data" in page_of(cohort, "synthetic") and "Synthetic data" not in page


def test_a_cohort_without_missing_values_says_so(cohort: pd.DataFrame) -> None:
    nullable = {column.name: cohort[column.name].replace("?", "1") for column in DIABETES.features if column.nullable}
    assert "No value is missing." in page_of(cohort.assign(**nullable))


def test_the_same_data_give_the_same_page_and_it_loads_nothing(cohort: pd.DataFrame, page: str) -> None:
    assert page_of(cohort) == page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page) and "<script" not in page
