"""Where encounters come in, whatever their way, and how they become windows to judge.

The prediction log of the service and files of encounters wait at the door: `predictions/` and
`arrivals/<stream>/door/`. `collect` takes them in: what breaks the contract is set aside with a report, what is there
already is left out, the rest is written to parts, each of one day, and windows that have ended are closed. A window is
a manifest that names rows of parts. All that was taken in counts once the state is written, in one put; until then the
door keeps everything, and a `collect` that was killed is repeated with the same parts.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import TypeAdapter

from health_predict.adapters import keys
from health_predict.adapters.contracts import contract_of
from health_predict.adapters.data.outcome_files import OutcomeCounts, OutcomeMatch
from health_predict.adapters.data.parts import read_frame, read_record
from health_predict.adapters.notifications import Event, tell
from health_predict.adapters.storage import Storage, open_storage
from health_predict.core.data.cohort import encounter_of, part_bytes, with_missing
from health_predict.core.data.contract import MISSING, Contract
from health_predict.core.data.encounters import Refusal, as_text, complete, dates_of, days_of, names_of, refused
from health_predict.core.data.outcomes import PREDICTION_ID, Values
from health_predict.core.data.partition import rows_digest
from health_predict.core.data.windows import Rows, Window, Windows
from health_predict.errors import StateError
from health_predict.settings import Settings

log = logging.getLogger(__name__)

# Beside the columns of any contract: none of those begins with _.
TIME, VERSION, PROBABILITY = "_time", "_model_version", "_probability"
_DAY = "_day"
META = [PREDICTION_ID, TIME, VERSION, PROBABILITY]
AGAIN_DAYS = 30  # before its receipt, in which an encounter without a date is looked for: an index would grow for ever
AHEAD_DAYS = 1  # a date so far after the receipt may be another time zone's
_NAMESPACE = uuid.UUID("5f0c1f8e-7e0b-4d54-9f5b-2f1a3a8a5a10")


def identity_of(contract: Contract) -> list[str]:
    """Columns that say who an arrival is about, and when."""
    return [PREDICTION_ID, *(column.name for column in contract.identifiers)]


@dataclass(frozen=True, slots=True)
class State:
    """How far a stream has come. `collection` is the number of the next one."""

    windows: Windows = field(default_factory=Windows)
    collection: int = 0
    taken: tuple[str, ...] = ()  # objects at the door whose content is taken in: deleted by and by
    arrived: int = 0
    quarantined: int = 0
    repeated: int = 0
    without_patient: int = 0
    outcomes: OutcomeCounts = field(default_factory=OutcomeCounts)
    unmatched: tuple[tuple[Values, tuple[tuple[Values, int], ...]], ...] = ()  # outcomes for nobody in a batch, by key

    @property
    def unknown(self) -> int:
        """How many outcomes are for nobody in a batch."""
        return sum(len(some) for _, some in self.unmatched)


@dataclass(frozen=True, slots=True)
class Added:
    """What came of a file of encounters. `before`: it had been added already, and nothing changed."""

    rows: int
    quarantined: int
    refusals: tuple[Refusal, ...]
    report: str
    before: bool = False


class _LogFile(NamedTuple):
    """A file of the prediction log: its rows, which of them break the contract, and what is wrong in which lines."""

    frame: pd.DataFrame
    wrong: npt.NDArray[np.bool_]
    bad: list[int]  # numbers of lines, from 1
    refusals: list[Refusal]


_STATE, _WINDOW, _ADDED = TypeAdapter(State), TypeAdapter(Window), TypeAdapter(Added)


class Arrivals:
    """The arrivals of the settings' stream."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.storage: Storage = open_storage(settings.storage, settings.s3_endpoint_url)
        self.stream = settings.stream
        self.contract = contract_of(settings)
        self._names = names_of(self.contract)
        self._identity = identity_of(self.contract)
        self._size, self._zone, self._now = settings.window, ZoneInfo(settings.time_zone), settings.now
        self._keep = {
            keys.arrivals(self.stream): settings.keep_arrivals_days,
            keys.taken_outcomes(self.stream, ""): settings.keep_outcomes_days,
            keys.quarantine(self.stream, ""): settings.keep_quarantine_days,
        }

    @property
    def _today(self) -> str:
        return self._now.astimezone(self._zone).date().isoformat()

    # State

    def state(self) -> State:
        """What was taken in by now. Raises StateError when it cannot be read."""
        key = keys.arrivals_state(self.stream)
        return read_record(_STATE, self.storage, key) if self.storage.exists(key) else State()

    def write(self, state: State) -> None:
        """Replace the state, whole."""
        self.storage.write(keys.arrivals_state(self.stream), _STATE.dump_json(state, indent=1))

    def window(self, number: int) -> Window:
        """A closed window. Raises StateError when there is none of that number, or it cannot be read."""
        key = keys.window(self.stream, number)
        if not self.storage.exists(key):
            raise StateError(f"there is no batch {number}", "`health-predict status` says what there is")
        return read_record(_WINDOW, self.storage, key)

    def rows(self, wanted: Sequence[Rows], columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Arrivals (n, columns) in their order, without those that were forgotten or whose time to be kept is over."""
        frames = [pd.DataFrame(columns=list(columns or [*self._names, *META]), dtype="str")]
        for one in wanted:
            with suppress(StateError):
                part = read_frame(self.storage, keys.arrivals(self.stream, one.part), columns)
                frames.append(part.iloc[one.first : one.last])
        frame = pd.concat(frames, ignore_index=True)
        return frame[frame[PREDICTION_ID] != MISSING].reset_index(drop=True)

    # The door

    def add(self, frame: pd.DataFrame, name: str, score: Any) -> Added:
        """Leave encounters of any types (n, columns) at the door, scored by `score`.

        `score` takes a complete frame of text and gives probabilities (n,) and the version of the model. Rows that
        break the contract are set aside with a report. The same rows change nothing. Raises DataError as `complete`
        does.
        """
        text = complete(with_missing(as_text(frame), self.contract), self.contract, name)
        digest = rows_digest(text)
        marker = keys.added(self.stream, digest)
        known = json.loads(self.storage.read(marker)) if self.storage.exists(marker) else {}
        if known.get("result"):
            return replace(_ADDED.validate_python(known["result"]), before=True)
        # Added again after it was killed, it came in when it did at first.
        received = datetime.fromisoformat(known.get("time", self._now.isoformat()))
        self.storage.write(marker, json.dumps({"time": received.isoformat()}).encode())
        wrong, refusals = self._refused(text, range(2, len(text) + 2), [received] * len(text))
        report = self._set_aside(f"{digest[:16]}.json", name, refusals) if refusals else ""
        good = text[~wrong].reset_index(drop=True)
        if wrong.any():
            self.storage.write(keys.refused(self.stream, digest), json.dumps(int(wrong.sum())).encode())
        if len(good):
            probabilities, version = score(good)
            self.land(
                good.assign(
                    **{
                        PREDICTION_ID: [self._id_of(row) for row in good.itertuples(index=False, name=None)],
                        TIME: received.astimezone(UTC).isoformat(timespec="microseconds"),
                        VERSION: version,
                        PROBABILITY: [repr(float(one)) for one in probabilities],
                    }
                )
            )
        added = Added(len(good), int(wrong.sum()), tuple(refusals), report)
        result = {"time": received.isoformat(), "result": asdict(added)}
        self.storage.write(marker, json.dumps(result).encode())
        return added

    def land(self, frame: pd.DataFrame) -> None:
        """Leave encounters at the door that the service has scored: text (n, `names_of` and META)."""
        self.storage.write(keys.at_door(self.stream, rows_digest(frame)), part_bytes(frame))

    def _id_of(self, row: tuple[str, ...]) -> str:
        """The prediction's id, which follows from the encounter: from its own id and date, else from all of it."""
        contract = self.contract
        own = [row[self._names.index(name)] for name in contract.encounter]
        day = row[self._names.index(contract.date)] if contract.date else MISSING
        named = row if MISSING in own else (*own, day)
        return str(uuid.uuid5(_NAMESPACE, "\x1f".join((self.stream, *named))))

    # Taking in

    def collect(self, waiting: Sequence[int] = ()) -> State:
        """Take in what waits at the door, close the windows that have ended, and match outcomes.

        `waiting`: the batches that still want outcomes, which are looked for there first. Raises StateError for a
        state that cannot be read; whatever else is wrong with what was delivered is set aside and named.
        """
        before = state = self.state()
        self._clear(state.taken)
        waiting_there = [*self.at_door(), *self.storage.keys(keys.refused(self.stream))]
        waiting_there = [key for key in waiting_there if key not in state.taken]
        state, rows = self._read(replace(state, taken=()), waiting_there)
        state = self._append(state, rows)
        windows, closed = state.windows.close(self._size, self._zone, self._now)
        for window in closed:
            self.storage.write(keys.window(self.stream, window.number), _WINDOW.dump_json(window, indent=1))
            log.info("batch %d: %d arrivals from %s to before %s", window.number, len(window), window.begin, window.end)
        matching = OutcomeMatch(self.storage, self.stream, self.contract, state.collection, self._today, self.identity)
        counts, left, files = matching.take(
            state.outcomes,
            {key: dict(some) for key, some in state.unmatched},
            [one.number for one in closed],
            waiting,
            windows.number - 1,
        )
        for digest in matching.damaged:
            why, key = "A delivered file of outcomes cannot be read and was set aside.", f"{self.stream} {digest}"
            tell(self._settings, Event.QUARANTINED, key, why, "`health-predict status` says what is wrong")
        state = replace(
            state,
            windows=windows,
            outcomes=counts,
            unmatched=tuple((key, tuple(some.items())) for key, some in left.items()),
            taken=(*waiting_there, *files),
        )
        if state != replace(before, taken=()):
            state = replace(state, collection=state.collection + 1)
            self.write(state)
        self._clear(state.taken)
        return state

    def expire(self, needed: Sequence[int]) -> None:
        """Delete what is older than the settings keep it; not the arrivals of batches that are `needed`, nor open
        ones."""
        if not any(self._keep.values()):
            return
        today = date.fromisoformat(self._today)
        parts = {one.part for one in self.state().windows.open}
        parts |= {one.part for number in needed for one in self.window(number).rows}
        held = {keys.arrivals(self.stream, part) for part in parts}
        for folder, days in self._keep.items():
            first = (today - timedelta(days=days)).isoformat()
            for key in self.storage.keys(folder) if days else ():
                if key.removeprefix(folder)[: len(first)] < first and key not in held:
                    self.storage.delete(key)

    def identity(self, number: int) -> pd.DataFrame:
        """Who is in a batch: text (n, `identity_of`)."""
        return self.rows(self.window(number).rows, self._identity)

    def newest(self, count: int) -> pd.DataFrame:
        """About the newest arrivals, by their receipt, that keep the contract: text (n <= count, `names_of` and META).

        What waits at the door is read as it lies there; nothing is taken in.
        """
        at_door = [key for key in self.at_door() if not key.endswith(".json")]
        left = [*self.storage.keys(keys.arrivals(self.stream)), *at_door]
        frames, found = [pd.DataFrame(columns=[*self._names, *META], dtype="str")], 0
        while left and found < count:  # the door first; days and files are named by time
            key = left.pop()
            if key.endswith(".jsonl"):
                logged = self._log_file(self.storage.read(key).split(b"\n"))
                frame = logged.frame[~logged.wrong]
            else:
                frame = read_frame(self.storage, key)
                frame = frame[frame[PREDICTION_ID] != MISSING]
            frames.append(frame)
            found += len(frame)
        rows = pd.concat(frames, ignore_index=True).drop_duplicates(PREDICTION_ID)
        return rows.sort_values(TIME, kind="stable").tail(count).reset_index(drop=True)

    def at_door(self) -> list[str]:
        """Keys of what waits to be taken in."""
        logged = [] if keys.is_simulation(self.stream) else self.storage.keys(keys.PREDICTIONS)
        return [*self.storage.keys(keys.door(self.stream)), *(key for key in logged if key.endswith(".jsonl"))]

    def _clear(self, taken: Sequence[str]) -> None:
        for key in taken:
            self.storage.delete(key)

    def _read(self, state: State, at_door: Sequence[str]) -> tuple[State, pd.DataFrame]:
        """The rows of all objects that keep the contract (n, `names_of` and META), with what was set aside counted."""
        frames = [pd.DataFrame(columns=[*self._names, *META], dtype="str")]
        for key in at_door:
            if key.endswith(".json"):
                state = replace(state, quarantined=state.quarantined + int(self.storage.read(key)))
                continue
            if key.endswith(".jsonl"):
                frame, broken = self._of_log(key)
                state = replace(state, quarantined=state.quarantined + broken)
            else:
                frame = read_frame(self.storage, key)
            frames.append(frame)
        return state, pd.concat(frames, ignore_index=True)

    def _of_log(self, key: str) -> tuple[pd.DataFrame, int]:
        """The rows of a file of the prediction log, and how many lines were set aside."""
        lines = self.storage.read(key).split(b"\n")
        logged = self._log_file(lines)
        if logged.bad:
            name = key.removeprefix(keys.PREDICTIONS).replace("/", "-")
            kept = b"\n".join(lines[number - 1] for number in logged.bad) + b"\n"
            self.storage.write(keys.quarantine(self.stream, f"{self._today}-{name}"), kept)
            self._set_aside(f"{name}.json", key, logged.refusals)
        return logged.frame[~logged.wrong].reset_index(drop=True), len(logged.bad)

    def _log_file(self, lines: Sequence[bytes]) -> _LogFile:
        """What a file of the prediction log holds, by its lines."""
        found: list[dict[str, Any]] = []
        at: list[int] = []
        torn: list[int] = []
        for number, line in enumerate(lines, 1):
            if line.strip():
                row = self._of_line(line)
                (torn if row is None else at).append(number)
                if row is not None:
                    found.append(row)
        frame = as_text(pd.DataFrame(found, columns=[*self._names, *META]))
        wrong, refusals = self._refused(frame, at, [datetime.fromisoformat(one) for one in frame[TIME]])
        if torn:
            refusals = [Refusal.of("", "is no line of the prediction log", torn), *refusals]
        return _LogFile(frame, wrong, sorted({*torn, *(at[row] for row in np.flatnonzero(wrong))}), refusals)

    def _refused(
        self, frame: pd.DataFrame, lines: Sequence[int], received: Sequence[datetime]
    ) -> tuple[npt.NDArray[np.bool_], list[Refusal]]:
        """Which rows break the contract, and why; a date is refused that lies in the future of the receipt."""
        wrong, refusals = refused(frame, self.contract, lines)
        latest = [(one.astimezone(self._zone) + timedelta(days=AHEAD_DAYS)).date().isoformat() for one in received]
        dates = dates_of(frame, self.contract)
        ahead = (dates != MISSING) & (dates > np.array(latest, object)) & ~wrong
        if ahead.any():
            future = [lines[row] for row in np.flatnonzero(ahead).tolist()]
            refusals.append(Refusal.of(self.contract.date, "must not lie in the future", future))
        return wrong | ahead, refusals

    def _set_aside(self, name: str, origin: str, refusals: Sequence[Refusal]) -> str:
        key = keys.quarantine(self.stream, f"{self._today}-{name}")
        report = {"from": origin, "refused": [asdict(one) for one in refusals]}
        self.storage.write(key, json.dumps(report, indent=1).encode())
        log.info("%s: rows are set aside: %s", origin, self.storage.uri(key))
        rules = "; ".join(f"{one.column or 'a line'} {one.rule} ({one.count:,} rows)" for one in refusals)
        why = f"Encounters break the data contract and were set aside: {rules}."
        tell(self._settings, Event.QUARANTINED, f"{self.stream} {name}", why, f"read {self.storage.uri(key)}")
        return self.storage.uri(key)

    def _append(self, state: State, rows: pd.DataFrame) -> State:
        """With the rows written to new parts, each of one day, but for those that are there already."""
        if rows.empty:
            return state
        received = [
            datetime.fromisoformat(one).astimezone(self._zone).date().isoformat() for one in rows[TIME].to_numpy(object)
        ]
        rows = rows.assign(**{_DAY: days_of(rows, self.contract, received)}).sort_values([_DAY, TIME], kind="stable")
        windows, arrived, nobody = state.windows, 0, 0
        there: dict[str, set[str]] = {}
        for day, of_day in rows.groupby(_DAY, sort=True):
            fresh = self._fresh(of_day.drop(columns=_DAY), str(day), state.collection, there)
            if len(fresh):
                part = f"{day}/{state.collection:06d}"
                self.storage.write(keys.arrivals(self.stream, part), part_bytes(fresh))
                windows = windows.arrived(part, len(fresh))
                arrived += len(fresh)
                nobody += int((fresh[self.contract.patient] == MISSING).sum())
        return replace(
            state,
            windows=windows,
            arrived=state.arrived + arrived,
            repeated=state.repeated + len(rows) - arrived,
            without_patient=state.without_patient + nobody,
        )

    def _fresh(self, rows: pd.DataFrame, day: str, collection: int, there: dict[str, set[str]]) -> pd.DataFrame:
        """Those of a day's rows whose prediction and encounter no part of the day has from an earlier collection.

        One without a date is looked for in the days before, too. `there`: the encounters of days, as far as they are
        known; this day's are added.
        """
        known = self._known(day, collection, [PREDICTION_ID, *self.contract.encounter])
        there[day] = {*encounter_of(known, self.contract)} - {MISSING}
        undated, before = dates_of(rows, self.contract) == MISSING, set[str]()
        for back in range(1, AGAIN_DAYS + 1) if undated.any() else ():
            other = (date.fromisoformat(day) - timedelta(days=back)).isoformat()
            if other not in there:
                earlier = self._known(other, collection, [*self.contract.encounter])
                there[other] = {*encounter_of(earlier, self.contract)} - {MISSING}
            before |= there[other]
        own = encounter_of(rows, self.contract)
        again = own.isin(there[day]) | (undated & own.isin(before))
        fresh = rows[~rows[PREDICTION_ID].isin(known[PREDICTION_ID]) & ~again].drop_duplicates(PREDICTION_ID)
        own = encounter_of(fresh, self.contract)
        there[day] |= {*own} - {MISSING}
        kept: pd.DataFrame = fresh[(own == MISSING) | ~own.duplicated()]
        return kept

    def _known(self, day: str, collection: int, columns: list[str]) -> pd.DataFrame:
        """What a day's parts have from earlier collections (n, columns)."""
        parts = self.storage.keys(keys.arrivals(self.stream, f"{day}/"))
        earlier = [key for key in parts if int(key.rpartition("/")[2].partition(".")[0]) < collection]
        frames = [read_frame(self.storage, key, columns) for key in earlier]
        return pd.concat([pd.DataFrame(columns=columns, dtype="str"), *frames], ignore_index=True)

    def _of_line(self, line: bytes) -> dict[str, Any] | None:
        """The row of a line of the prediction log; None for a line that is none."""
        try:
            entry = json.loads(line)
            features = {name: value for name, value in entry["features"].items() if name in self._names}
            made = {
                PREDICTION_ID: str(uuid.UUID(entry["prediction_id"])),
                TIME: datetime.fromisoformat(entry["time"]).astimezone(UTC).isoformat(timespec="microseconds"),
                VERSION: str(entry["model_version"]),
                PROBABILITY: repr(float(entry["probability_score"])),
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return {**dict.fromkeys(self._names), **features, **made}
