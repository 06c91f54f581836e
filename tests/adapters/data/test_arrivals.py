"""Arrivals: from the log and from files, what breaks the contract, what comes twice, and kills at any moment."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from health_predict.adapters import keys
from health_predict.adapters.data.arrivals import AGAIN_DAYS, Arrivals
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.records import BatchDecision, SettledBatch
from health_predict.core.data.cohort import without_excluded
from health_predict.core.data.contract import MISSING
from health_predict.core.data.outcomes import write_outcomes
from health_predict.core.monitoring.policy import Settlement
from health_predict.errors import DataError, StateError
from health_predict.settings import Settings
from health_predict.stages.drift import _due
from tests.cohorts import synthesize
from tests.contracts import DATE, DIABETES, ENCOUNTER, PATIENT, TARGET
from tests.feed import dated, logged

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
COHORT = without_excluded(synthesize(300, seed=5), DIABETES)


def settings_of(home: Path, now: datetime, **values: object) -> Settings:
    return Settings(home=home, as_of=now, **{"window": "week", **values})  # type: ignore[arg-type]


def days(first: datetime, count: int, span: int = 7) -> list[str]:
    return [(first + timedelta(days=at % span)).date().isoformat() for at in range(count)]


def scored(text: pd.DataFrame) -> tuple[Any, str]:
    return np.full(len(text), 0.2), "7"


def test_what_was_served_and_what_was_added_meet_in_one_window(tmp_path: Path) -> None:
    # given 40 encounters in the prediction log, and 30 in a file, of the same week
    now = MONDAY + timedelta(days=7)
    arrivals = Arrivals(settings_of(tmp_path, now))
    served = dated(COHORT[:40], days(MONDAY, 40))
    ids = logged(arrivals.storage, "predictions-1", served, now - timedelta(hours=1), probability=0.3)
    added = arrivals.add(dated(COHORT[40:70].drop(columns=TARGET), days(MONDAY, 30)), "a file", scored)
    assert (added.rows, added.quarantined, added.before) == (30, 0, False)
    # when they are taken in
    state = arrivals.collect()
    # then they make one batch with what was predicted, and the door is empty
    assert (state.arrived, state.quarantined, state.repeated, state.without_patient) == (70, 0, 0, 0)
    assert arrivals.at_door() == []
    batch = Batches(settings_of(tmp_path, now)).batch(0)
    assert len(batch.frame) == 70
    by_way = dict(zip(batch.ids, zip(batch.scores, batch.versions, strict=True), strict=True))
    assert {by_way[one] for one in ids} == {(0.3, "1")}
    assert {value for one, value in by_way.items() if one not in ids} == {(0.2, "7")}
    # and the encounters are those that came in
    sent = pd.concat([served, COHORT[40:70]]).set_index(ENCOUNTER)
    arrived = batch.frame.set_index(ENCOUNTER)
    assert (sent.loc[arrived.index, "diag_1"] == arrived["diag_1"]).all()


def test_the_same_encounter_counts_once_whatever_its_way(tmp_path: Path) -> None:
    # given a file that was added
    now = MONDAY + timedelta(days=1)
    arrivals = Arrivals(settings_of(tmp_path, now))
    frame = dated(COHORT[:20].drop(columns=TARGET), days(MONDAY, 20, span=1))
    first = arrivals.add(frame, "a file", scored)
    before = arrivals.collect()
    # when it is added once more, as numbers this time, then nothing changes
    numbers = {ENCOUNTER: int, "num_medications": float}
    again = arrivals.add(frame.astype(numbers), "the same file", scored)
    assert again == replace(first, before=True)
    assert replace(arrivals.collect(), taken=()) == replace(before, taken=())
    # when some of it comes in another file and through the endpoint, then it is left out and counted
    arrivals.add(frame[5:10].reset_index(drop=True), "a part of it", scored)
    logged(arrivals.storage, "predictions-1", frame[:3].assign(**{TARGET: "NO"}), now)
    state = arrivals.collect()
    assert (state.arrived, state.repeated) == (20, 8)


def test_an_encounter_without_a_date_counts_where_it_came_first(tmp_path: Path) -> None:
    # given encounters without dates, in a batch
    def night(day: int, **values: object) -> Arrivals:
        return Arrivals(settings_of(tmp_path, MONDAY + timedelta(days=day), window="5", **values))

    logged(night(0).storage, "predictions-0", COHORT[:5], MONDAY)
    assert night(0).collect().windows.number == 1
    # when some are sent again another day, twice in the same night, and one of them as a file, beside a new one
    for day in (6, 7):
        logged(night(0).storage, f"predictions-{day}", COHORT[3:6], MONDAY + timedelta(days=day))
    night(8).add(COHORT[2:3].drop(columns=TARGET), "a file", scored)
    state = night(8).collect()
    # then they are left out and counted, and the new one is there once
    assert (state.arrived, state.repeated, state.windows.waiting) == (6, 6, 1)
    # when one comes after more days than are looked through, then it counts again
    logged(night(0).storage, "predictions-40", COHORT[:1], MONDAY + timedelta(days=AGAIN_DAYS + 1))
    assert night(40).collect().arrived == 7


def test_lines_that_cannot_be_read_are_set_aside_and_the_others_count(tmp_path: Path) -> None:
    # given a file of the log with torn, empty and foreign lines, and an encounter that breaks the contract
    now = MONDAY + timedelta(days=1)
    arrivals = Arrivals(settings_of(tmp_path, now))
    logged(arrivals.storage, "predictions-1", COHORT[:6], now)
    [key] = arrivals.at_door()
    lines = arrivals.storage.read(key).splitlines()
    wrong = json.loads(lines[5])
    wrong["features"]["age"] = "[200-210)"
    broken = [lines[4][:50], b"", b"\0\0\0", b"[1, 2]", b'{"features": {}}', b"\xff\xfe", json.dumps(wrong).encode()]
    arrivals.storage.write(key, b"\n".join([*lines[:4], *broken, b""]))
    # when it is taken in
    state = arrivals.collect()
    # then four arrived; what was refused is kept, and a report says why, without a value
    assert (state.arrived, state.quarantined) == (4, 6)
    kept = arrivals.storage.keys(keys.quarantine("live", ""))
    report = next(key for key in kept if key.endswith(".json"))
    content = arrivals.storage.read(report).decode()
    assert {one["column"]: one["count"] for one in json.loads(content)["refused"]} == {"": 5, "age": 1}
    assert "[200-210)" not in content
    assert len(arrivals.storage.read(next(key for key in kept if key.endswith(".jsonl"))).splitlines()) == 6
    assert arrivals.at_door() == []


def test_a_file_with_nulls_and_numbers_is_read_as_it_is_meant(tmp_path: Path) -> None:
    # given a file as pandas writes it: missing cells are null, numbers are numbers
    arrivals = Arrivals(settings_of(tmp_path, MONDAY))
    frame = COHORT[:12].drop(columns=TARGET).replace(MISSING, None)
    typed = frame.assign(**{name: frame[name].astype("float64") for name in ("time_in_hospital", "num_medications")})
    typed.to_parquet(tmp_path / "00.parquet", index=False)
    # when it is added
    added = arrivals.add(pd.read_parquet(tmp_path / "00.parquet"), "a file", scored)
    # then nothing is wrong with it
    assert (added.rows, added.quarantined) == (12, 0)


def test_rows_that_break_the_contract_stop_nothing(tmp_path: Path) -> None:
    arrivals = Arrivals(settings_of(tmp_path, MONDAY))
    frame = COHORT[:10].drop(columns=TARGET).reset_index(drop=True)
    frame.loc[3, "age"] = "old"
    frame = frame.assign(**{DATE: "2026-01-02"})
    frame.loc[7, DATE] = "2062-01-02"
    added = arrivals.add(frame, "a file", scored)
    assert (added.rows, added.quarantined) == (8, 2)
    assert {(one.column, one.lines) for one in added.refusals} == {("age", (5,)), (DATE, (9,))}
    assert arrivals.collect().arrived == 8


def test_an_arrival_without_a_patient_is_counted(tmp_path: Path) -> None:
    arrivals = Arrivals(settings_of(tmp_path, MONDAY))
    logged(arrivals.storage, "predictions-1", COHORT[:5].drop(columns=[PATIENT, ENCOUNTER]), MONDAY)
    state = arrivals.collect()
    assert (state.arrived, state.without_patient) == (5, 5)


@pytest.mark.parametrize("key", ["prediction", "encounter", "patient"])
def test_outcomes_find_their_encounters_by_any_key(tmp_path: Path, key: str) -> None:
    # given a closed week of 20 encounters
    now = MONDAY + timedelta(days=7)
    settings = settings_of(tmp_path, now, follow_up_days=0)
    arrivals = Arrivals(settings)
    frame = dated(COHORT[:20].drop_duplicates(PATIENT), days(MONDAY, len(COHORT[:20].drop_duplicates(PATIENT))))
    ids = logged(arrivals.storage, "predictions-1", frame, now)
    arrivals.collect()
    # when outcomes are delivered by a key
    readmitted = ["1", *["0"] * (len(frame) - 1)]
    rows = {
        "prediction": ["prediction_id,readmitted", *map(",".join, zip(ids, readmitted, strict=True))],
        "encounter": ["encounter_id,readmitted", *map(",".join, zip(frame[ENCOUNTER], readmitted, strict=True))],
        "patient": [
            "discharge_date,readmitted,patient_nbr",
            *map(",".join, zip(frame[DATE], readmitted, frame[PATIENT], strict=True)),
        ],
    }[key]
    arrivals.storage.write(keys.outcomes("live", "march"), "\n".join(rows).encode())
    state = arrivals.collect([0])
    # then each has its own
    assert (state.outcomes.taken, state.unknown) == (len(frame), 0)
    joined = Batches(settings).outcomes(0)
    by_id = dict(zip(Batches(settings).batch(0).ids, joined.outcomes, strict=True))
    assert [by_id[one] for one in ids] == [1.0, *[0.0] * (len(frame) - 1)]


def test_late_repeated_contradicting_and_unknown_outcomes_are_counted(tmp_path: Path) -> None:
    # given two closed weeks, the first of which waits for nothing any more
    now = MONDAY + timedelta(days=14)
    arrivals = Arrivals(settings_of(tmp_path, now))
    for week in (0, 1):
        frame = dated(COHORT[10 * week : 10 * week + 10], days(MONDAY + timedelta(days=7 * week), 10))
        logged(arrivals.storage, f"predictions-{week}", frame, now)
    arrivals.collect()
    numbers = COHORT[ENCOUNTER].tolist()

    def deliver(name: str, *rows: str) -> Any:
        content = "\n".join(["encounter_id,readmitted", *rows])
        arrivals.storage.write(keys.outcomes("live", name), content.encode())
        return arrivals.collect([1])

    # when outcomes come for both, and for somebody who has not arrived yet
    state = deliver("a", f"{numbers[0]},1", f"{numbers[10]},1", f"{numbers[11]},0", f"{numbers[25]},1")
    assert (state.outcomes.taken, state.outcomes.late, state.unknown) == (3, 1, 1)
    # when some are repeated and one is contradicted, then the later one counts
    state = deliver("b", f"{numbers[10]},1", f"{numbers[11]},1")
    assert (state.outcomes.taken, state.outcomes.repeated, state.outcomes.contradicting) == (3, 1, 1)
    # when a file cannot be read, then it is named and kept
    state = deliver("c", "10,maybe")
    assert len(state.outcomes.damaged) == 1 and "line 2" in state.outcomes.damaged[0]
    assert len(arrivals.storage.keys("arrivals/live/taken/")) == 3
    # when the one who was unknown arrives, then its outcome is there
    later = Arrivals(settings_of(tmp_path, now + timedelta(days=7)))
    frame = dated(COHORT[25:30], days(MONDAY + timedelta(days=14), 5))
    logged(later.storage, "predictions-2", frame, now)
    state = later.collect([1])
    assert (state.outcomes.taken, state.unknown) == (4, 0)


class Killed(BaseException):
    """As if the process died."""


class Fragile:
    """A storage that dies before its nth change."""

    def __init__(self, real: Any, at: int) -> None:
        self._real, self._left = real, at

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name not in ("write", "delete", "upload"):
            return found

        def change(*arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                raise Killed
            return found(*arguments)

        return change


def feed(home: Path) -> None:
    """A month at the door: three files of the log, one of encounters, outcomes; a line is torn, some come twice."""
    arrivals = Arrivals(settings_of(home, MONDAY + timedelta(days=20)))
    for week in range(3):
        begin = MONDAY + timedelta(days=7 * week)
        frame = dated(COHORT[10 * week :][:10], days(begin, 10, span=2))
        logged(arrivals.storage, f"predictions-{week}", frame, begin + timedelta(days=6))
    arrivals.add(
        dated(pd.concat([COHORT[5:10], COHORT[120:125]]).drop(columns=TARGET), days(MONDAY, 15, span=2)[5:]),
        "a file",
        scored,
    )
    torn = keys.prediction_file("2026-01-05", "predictions-3.jsonl")
    arrivals.storage.write(torn, b'{"torn": ')
    rows = [f"{number},{at % 2}" for at, number in enumerate(COHORT[ENCOUNTER][:22])]
    arrivals.storage.write(keys.outcomes("live", "a"), "\n".join(["encounter_id,readmitted", *rows]).encode())


def tree(home: Path) -> dict[str, bytes]:
    root = home / "storage"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_kill_at_any_change_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    # given what an undisturbed collection leaves
    feed(tmp_path / "fed")
    shutil.copytree(tmp_path / "fed", tmp_path / "calm")
    settings = settings_of(tmp_path / "calm", MONDAY + timedelta(days=21))
    calm = Arrivals(settings).collect()
    assert (calm.arrived, calm.repeated, calm.quarantined, calm.windows.number) == (35, 5, 1, 3)
    expected = tree(tmp_path / "calm")
    # when one dies at its nth change, for every n, and is repeated
    for at in range(1, 40):
        home = tmp_path / f"{at}"
        shutil.copytree(tmp_path / "fed", home)
        fragile = Arrivals(settings_of(home, MONDAY + timedelta(days=21)))
        fragile.storage = Fragile(fragile.storage, at)  # type: ignore[assignment]
        try:
            fragile.collect()
        except Killed:
            Arrivals(settings_of(home, MONDAY + timedelta(days=21))).collect()
            # then everything is as it would have been
            assert tree(home) == expected
        else:
            break
    assert at > 10  # there were changes to die at


def test_a_state_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    arrivals = Arrivals(settings_of(tmp_path, MONDAY))
    arrivals.storage.write(keys.arrivals_state("live"), b"{torn")
    with pytest.raises(StateError, match=r"state\.json"):
        arrivals.collect()


def test_a_file_that_lacks_columns_is_refused_as_a_whole(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lacks age"):
        Arrivals(settings_of(tmp_path, MONDAY)).add(COHORT.drop(columns="age"), "a file", scored)
    assert not (tmp_path / "storage").exists() or tree(tmp_path) == {}


def test_what_is_kept_for_some_days_goes_when_it_is_judged(tmp_path: Path) -> None:
    # given two closed weeks, taken outcomes, and a line that was set aside
    kept = {"keep_arrivals_days": 10, "keep_outcomes_days": 10, "keep_quarantine_days": 10}
    now = MONDAY + timedelta(days=14)
    arrivals = Arrivals(settings_of(tmp_path, now))
    for week in (0, 1):
        frame = dated(COHORT[10 * week : 10 * week + 10], days(MONDAY + timedelta(days=7 * week), 10))
        logged(arrivals.storage, f"predictions-{week}", frame, now)
    arrivals.storage.write(keys.prediction_file("2026-01-05", "predictions-3.jsonl"), b"{torn")
    arrivals.storage.write(keys.outcomes("live", "a"), f"encounter_id,readmitted\n{COHORT[ENCOUNTER][0]},1\n".encode())
    arrivals.collect()
    # when no time is over, or none is set, then nothing goes
    before = tree(tmp_path)
    Arrivals(settings_of(tmp_path, now + timedelta(days=100))).expire([])
    Arrivals(settings_of(tmp_path, now, **kept)).expire([0, 1])
    assert tree(tmp_path) == before
    # when it is over, then what is needed stays
    later = Arrivals(settings_of(tmp_path, now + timedelta(days=30), **kept))
    later.expire([1])
    left = {key.split("/")[2] for key in later.storage.keys("arrivals/")}
    assert left == {"days", "state.json"}
    assert len(later.rows(later.window(1).rows)) == 10
    assert later.rows(later.window(0).rows).empty


class Counting:
    """A storage that counts what is read."""

    def __init__(self, real: Any) -> None:
        self._real, self.reads, self.bytes = real, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def keys(self, prefix: str) -> list[str]:
        found: list[str] = self._real.keys(prefix)
        self.reads, self.bytes = self.reads + 1, self.bytes + sum(map(len, found))
        return found

    def exists(self, key: str) -> bool:
        self.reads += 1
        return bool(self._real.exists(key))

    def read(self, key: str) -> bytes:
        data: bytes = self._real.read(key)
        self.reads, self.bytes = self.reads + 1, self.bytes + len(data)
        return data

    def download(self, key: str, file: Path) -> None:
        self._real.download(key, file)
        self.reads, self.bytes = self.reads + 1, self.bytes + file.stat().st_size


@pytest.mark.parametrize("window", ["week", "6"])
def test_what_a_window_costs_does_not_grow_with_the_history(tmp_path: Path, window: str) -> None:
    # given 24 weeks of 6 encounters, with dates or without, each with its outcomes a week later
    cohort = without_excluded(synthesize(180, seed=9), DIABETES)
    costs: list[tuple[int, int]] = []
    for week in range(24):
        begin = MONDAY + timedelta(days=7 * week)
        batches = Batches(settings_of(tmp_path, begin + timedelta(days=7), follow_up_days=0, window=window))
        frame = cohort[6 * week : 6 * week + 6]
        if window == "week":
            frame = dated(frame, days(begin, 6, span=1))
        logged(batches.storage, f"predictions-{week}", frame, begin + timedelta(days=6))
        if week:
            known = cohort[6 * (week - 1) : 6 * week]
            file = write_outcomes({ENCOUNTER: known[ENCOUNTER]}, DIABETES, known[TARGET] == "<30")
            batches.storage.write(keys.outcomes("live", f"{week}"), file)
        counting = Counting(batches.storage)
        batches.storage = batches.arrivals.storage = counting  # type: ignore[assignment]
        # when a week is looked at: taken in, judged by its inputs, and those whose outcomes have come
        progress = batches.progress()
        batches.arrivals.collect(progress.waiting)
        look = _due(batches, progress)
        assert look is not None and (look.batch.number, len(look.matured)) == (week, int(week >= 1))
        matured = tuple(one.batch.number for one in look.matured)
        names: Any = {"batch": week, "batch_digest": look.digest}
        decision = BatchDecision(**names, model_version="1", dataset_digest="d", matured=matured)
        batches.decide(decision)
        end = SettledBatch(**names, outcome=Settlement.UNCHANGED, version_before="1", version_after="1")
        batches.settle(end, batches.progress().after(decision, progress.policy))
        costs.append((counting.reads, counting.bytes))
    # then the last eight took no more than the eight before them, once the first have passed
    early, late = np.mean(costs[8:16], axis=0), np.mean(costs[16:], axis=0)
    assert late[0] <= early[0] + 0.5
    assert late[1] <= 1.02 * early[1]
