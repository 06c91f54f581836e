"""Drift: false alarms, power, delay, CPU, the policies on the real stream, and verdicts against a known truth.

Prints a table for each; the last line holds the figures that the README names. `gain_kept` is the drift policy's
share of what retraining at every batch gains in prequential AUC over never retraining. Without the real data the
stream is synthetic and says so.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other cost more than they bring here

import numpy as np

from benchmarks.parts import drift_inputs, drift_scenarios, results
from benchmarks.parts.cohorts import DIABETES, PATIENT, synthesize
from benchmarks.parts.drift_stream import (
    BATCHES,
    Floats,
    Replay,
    Stream,
    best_in_hindsight,
    build,
    mean_auc,
    replay,
    walk,
)
from health_predict.core.choices import Policy
from health_predict.core.data.cohort import read_cohort, without_excluded
from health_predict.core.monitoring.policy import Action
from health_predict.core.statistics import delong

DRAWS = 400
EVIDENTLY_DRAWS = 3
RESAMPLES = 200
TRUSTWORTHY = 14  # batches within the first 89 % of the rows, whose numbers follow time


def main() -> None:
    """All parts, then the line of figures."""
    figures = inputs() | scenarios() | stream()
    results.save("drift", figures)


def inputs() -> dict[str, float]:
    """(a) false alarms, (b) power, (d) CPU."""
    cohort = without_excluded(synthesize(40_000, seed=3), DIABETES).reset_index(drop=True)
    training, clean = cohort[:14_000], cohort[14_000:].reset_index(drop=True)
    alarms = drift_inputs.false_alarms(training, DRAWS)
    print(f"\nfalse alarms of the inputs on {DRAWS} clean resamples of the reference, and questions about recording")
    for size, (share, asked) in alarms.items():
        print(f"  {size:>6,} rows   {share:.1%}   {asked:.1%}")
    table = drift_inputs.power(training, clean, 100, EVIDENTLY_DRAWS)
    print(f"\nshare of batches of {drift_inputs.POWER_ROWS:,} rows that alarm: 100 draws, Evidently {EVIDENTLY_DRAWS}")
    print(table.map("{:.0%}".format).to_string())
    cost = drift_inputs.cpu(training, clean[:5088])
    print("\nCPU of a batch of 5,088 rows, ms (Evidently: a reference of 5,000 rows)")
    print(f"  inputs compared {cost['inputs']:.1f}, whole verdict {cost['verdict']:.1f}, Evidently's preset ", end="")
    print(f"{cost['evidently']:,.0f} ({cost['evidently'] / cost['inputs']:.0f} and ", end="")
    print(f"{cost['evidently'] / cost['verdict']:.0f} times as much)")
    print(f"  import, s: ours {drift_inputs.import_seconds('health_predict.core.monitoring.drift'):.1f}, ", end="")
    print(f"Evidently {drift_inputs.import_seconds('evidently.presets'):.1f}")
    return {
        "false_alarm_max": max(share for share, _ in alarms.values()),
        "power_min": float(table.drop("no shift")["ours"].min()),
        "cpu_vs_evidently": round(cost["evidently"] / cost["inputs"], 1),
    }


def scenarios() -> dict[str, float]:
    """(c) delay, (f) verdicts against the truth, and the run length without drift."""
    print("\nfalse alarms of tests that look at every batch: a batch, and any in the first 16")
    for name, (rate, early) in drift_scenarios.run_length().items():
        print(f"  {name:<12} {rate:.2%}   {early:.1%}")
    outcomes = drift_scenarios.run()
    print(f"\nverdict within 4 drifted batches, {len(drift_scenarios.SEEDS)} seeds")
    print(
        f"  {'scenario':<27}{'expected':<22}{'verdicts':<32}{'right':>6}"
        f"{'delay':>7}{'inputs':>8}{'quality':>9}  columns"
    )
    for name, expected in drift_scenarios.EXPECTED.items():
        found = [outcome for outcome in outcomes if outcome.scenario == name]
        verdicts = ", ".join(f"{verdict} {n}" for verdict, n in Counter(o.verdict for o in found).most_common())
        right = sum(outcome.verdict in expected for outcome in found)
        delays = [outcome.delay for outcome in found if outcome.delay]
        columns = Counter(column for outcome in found for column in outcome.columns).most_common(2)
        print(
            f"  {name:<27}{' or '.join(expected):<22}{verdicts:<32}{right:>4}/{len(found)}"
            f"{np.mean(delays) if delays else float('nan'):>7.1f}{sum(o.inputs for o in found):>8}"
            f"{sum(o.quality for o in found):>9}  {', '.join(column for column, _ in columns)}"
        )
    clean = sum(outcome.early for outcome in outcomes if outcome.scenario == "none")
    print(f"  (of {len(drift_scenarios.SEEDS)} clean batches before the drift, {clean} were not called steady)")
    return {}


def stream() -> dict[str, float]:
    """(e) the policies on the stream."""
    source = Path(os.environ.get("HEALTH_PREDICT_DATA_COPY", ""))
    real = source.is_file()
    data = build(read_cohort(source, DIABETES) if real else synthesize(60_000, seed=1))
    print(f"\nthe {'real' if real else 'SYNTHETIC'} stream, {BATCHES} batches: gain in prequential AUC over never")
    never, every = walk(data, ()), walk(data, range(BATCHES - 1))
    span = _gain(data, never, every)
    rows: list[tuple[str, int, list[Floats] | tuple[Floats, ...]]] = [("never", 0, never), ("every", 15, every)]
    for interval in (2, 3, 4, 5):
        done = replay(data, Policy.SCHEDULED, interval=interval)
        rows.append((f"scheduled, every {interval}", done.retrainings, done.scores))
    drift = replay(data, Policy.DRIFT)
    rows.append(("drift", drift.retrainings, drift.scores))
    late = replay(data, Policy.DRIFT, delay=1)
    rows.append(("drift, labels a batch late", late.retrainings, late.scores))
    for count in (2, 3, 4, 5):
        rows.append((f"best {count} in hindsight", count, walk(data, best_in_hindsight(data, count))))
    print(
        f"  {'policy':<28}{'trainings':>9}{'AUC':>8}  {'gain, 95 % interval':<24}{'kept':>7}"
        f"{f'kept, first {TRUSTWORTHY}':>16}"
    )
    first = _mean(data, every[:TRUSTWORTHY]) - _mean(data, never[:TRUSTWORTHY])
    for name, count, served in rows:
        gain, low, high = _interval(data, never, served)
        kept = gain / span
        early = (_mean(data, served[:TRUSTWORTHY]) - _mean(data, never[:TRUSTWORTHY])) / first
        print(
            f"  {name:<28}{count:>9}{_mean(data, served):>8.4f}  {gain:+.4f} [{low:+.4f}, {high:+.4f}]"
            f"  {kept:>7.0%}{early:>16.0%}"
        )
    _timeline(data, drift)
    return {"gain_kept": round(_gain(data, never, drift.scores) / span, 3), "retrainings": drift.retrainings}


def _mean(data: Stream, served: Sequence[Floats]) -> float:
    return mean_auc(data, served)


def _gain(data: Stream, never: Sequence[Floats], served: Sequence[Floats]) -> float:
    return _mean(data, served) - _mean(data, never)


def _interval(data: Stream, never: Sequence[Floats], served: Sequence[Floats]) -> tuple[float, float, float]:
    """Gain with its 95 % interval: patients of each batch resampled, both policies on the same ones."""
    random = np.random.default_rng(1)
    samples = np.zeros(RESAMPLES)
    for batch, (old, new) in enumerate(zip(never, served, strict=True)):
        rows = data.rows(batch)
        labels, patients = data.outcomes[rows], data.frame[PATIENT].iloc[rows].to_numpy(dtype=object)
        if np.array_equal(old, new):
            continue
        _, codes = np.unique(patients.astype(str), return_inverse=True)
        for i in range(RESAMPLES):
            weights = np.bincount(random.integers(0, codes.max() + 1, codes.max() + 1), minlength=codes.max() + 1)[
                codes
            ]
            drawn = np.repeat(np.arange(len(rows)), weights)
            samples[i] += _auc(labels[drawn], new[drawn]) - _auc(labels[drawn], old[drawn])
    low, high = np.percentile(samples / len(never), [2.5, 97.5])
    return _gain(data, never, served), float(low), float(high)


def _auc(labels: Floats, scores: Floats) -> float:
    order = np.argsort(scores, kind="stable")  # ties are too few to matter in an interval
    ranks = np.flatnonzero(labels[order]) + 1
    m = len(ranks)
    return float((ranks.sum() - m * (m + 1) / 2) / (m * (len(labels) - m)))


def _timeline(data: Stream, drift: Replay) -> None:
    print("\nthe drift policy, batch by batch")
    alarm = None
    outside = counted = 0
    for batch, (action, findings, scores) in enumerate(zip(drift.actions, drift.findings, drift.scores, strict=True)):
        labels = data.outcomes[data.rows(batch)]
        auc, variance = delong(labels, scores)
        ratio = float(labels.sum() / scores.sum())
        note = " (challenger lost)" if batch in drift.lost else ""
        gain = findings.discrimination.gain if findings and findings.discrimination else None
        print(
            f"  {batch:>3}  AUC {auc:.3f} ± {1.96 * variance**0.5:.3f}  O/E {ratio:.2f}  "
            f"refit {'     -' if gain is None else f'{gain.value:+.3f}'}  {action}{note}"
        )
        if alarm is not None and batch >= alarm + 2:
            counted += 1
            outside += not 0.9 <= ratio <= 1.1
        if alarm is None and action is not Action.NONE:
            alarm = batch
    print(
        f"  observed/expected within .9 to 1.1 in {counted - outside} of {counted} batches "
        "from the second after the first alarm on"
    )


if __name__ == "__main__":
    main()
