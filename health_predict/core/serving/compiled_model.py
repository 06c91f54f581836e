"""A fitted pipeline as plain tables and an ONNX graph, with a proof that nothing changed.

Serving needs neither pandas nor scikit-learn then: the tables turn an encounter into a row of float32 numbers, the
graph turns rows into probabilities. `prove_parity` compares both against the pipeline on real rows and on generated
edge rows; what it cannot prove does not get into a Bento.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, product
from string import ascii_uppercase
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.data.codes import System
from health_predict.core.data.contract import MAXIMUM_CODE, MISSING, Column, Contract, Kind
from health_predict.core.model.calibration import CalibratedClassifier, uncalibrated
from health_predict.core.model.contributions import Explainer
from health_predict.core.model.families import Family
from health_predict.core.model.row_encoder import RowEncoder
from health_predict.core.serving.scoring import INPUT, OUTPUT, GraphScorer, Scores
from health_predict.errors import GateError

# Largest difference of a probability that float32 arithmetic in another order may cause.
TOLERANCE = 1e-6
# A threshold keeps this distance from the scores that it is chosen by, so that such a difference cannot flip one.
CLEARANCE = 2 * TOLERANCE
UNSEEN_LEVEL = "never seen in training"
# Of made-up rows: values of a count or seen ones of a number, steps of a number, columns with every missing pattern.
MOST_COUNTS, NUMBER_STEPS, MOST_PATTERNS = 250, 21, 8


@dataclass(frozen=True, slots=True)
class CompiledModel:
    """What the service needs to score: `encoder`, `graph` (ONNX bytes), and the score from which it says 1.

    `contract` says what an encounter holds. The graph takes `rows`, float32 (n, d), and gives `probabilities`, float32
    (n, 2): of the outcome's absence, and of the outcome. `calibration` is the intercept and slope of the map that they
    go through then, None when there is none (`scoring`). `explainer` tells what each column added to a score
    (`explained_model`); None: the service does not explain.
    """

    contract: Contract
    encoder: RowEncoder
    graph: bytes
    threshold: float
    family: str
    calibration: tuple[float, float] | None = None
    explainer: Explainer | None = None

    def scorer(self) -> GraphScorer:
        """What the service scores rows with."""
        return GraphScorer(self.graph, self.calibration)


@dataclass(frozen=True, slots=True)
class Parity:
    """What was compared, and how far apart the two sides are at most.

    `near` names the rows whose score lies within 1e-6 of the threshold.
    """

    rows: int
    edge_rows: int
    largest_difference: float
    threshold: float
    near: tuple[str, ...]


def compile_pipeline(pipeline: Any, family: Family, threshold: float) -> CompiledModel:
    """Tables and graph of a fitted Pipeline([("features", EncounterFeatures), ("estimator", ...)]) of a family.

    The same pipeline gives the same bytes.
    """
    features = pipeline.named_steps["features"]
    outer = pipeline.named_steps["estimator"]
    with warnings.catch_warnings():
        # The converters use names that their own dependencies have deprecated.
        warnings.simplefilter("ignore")
        model = family.to_onnx(uncalibrated(outer), len(features.encoder_.names))
    calibration = (outer.intercept, outer.slope) if isinstance(outer, CalibratedClassifier) else None
    graph = _normalised(model)
    return CompiledModel(features.contract, features.encoder_, graph, float(threshold), family.name, calibration)


def _normalised(model: Any) -> bytes:
    """One output, our names for it and the input, and nothing that tells when or by which release it was written."""
    import onnx

    graph = model.graph
    graph.name, graph.doc_string, model.doc_string = "risk", "", ""
    output = next(value for value in graph.output if "label" not in value.name)
    del graph.output[:]
    graph.output.append(output)
    _drop_unused(graph)
    ours = {graph.input[0].name: INPUT, output.name: OUTPUT}
    for node in graph.node:
        node.output[:] = [ours.get(name, name) for name in node.output]
        node.input[:] = [ours.get(name, name) for name in node.input]
    graph.input[0].name, graph.output[0].name = INPUT, OUTPUT
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _drop_unused(graph: Any) -> None:
    """Remove the nodes that only made the label."""
    while True:
        used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        kept = [node for node in graph.node if used.intersection(node.output)]
        if len(kept) == len(graph.node):
            break
        del graph.node[:]
        graph.node.extend(kept)
    used = {name for node in graph.node for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def edge_rows(frame: pd.DataFrame, contract: Contract) -> tuple[pd.DataFrame, list[str]]:
    """Encounters that a validation set may lack, and what is special about each.

    Every level of every column, unseen levels, patterns of missing values, extremes and steps of counts and numbers,
    and codes of each chapter; all satisfy the contract.
    """
    features = contract.features
    names = [column.name for column in features]
    base = {column.name: _present(frame[column.name], column) for column in features}
    rows: list[dict[str, str]] = []
    labels: list[str] = []

    def add(label: str, **values: str) -> None:
        rows.append({**base, **values})
        labels.append(label)

    for column in features:
        for value in _values(column, frame[column.name]):
            add(f"{column.name}={value}", **{column.name: value})
    counts = [column for column in features if column.kind is Kind.COUNT]
    for extreme, at in (("minimum", 0), ("maximum", -1)):
        add(f"every count at its {extreme}", **{column.name: str(column.counts[at]) for column in counts})
    nullable = [column.name for column in features if column.nullable]
    for missing in _patterns(nullable):
        add(f"missing: {', '.join(missing) or 'nothing'}", **dict.fromkeys(missing, MISSING))
    return pd.DataFrame(rows, columns=names, dtype=frame[names[0]].dtype), labels


def _patterns(nullable: list[str]) -> Iterable[list[str]]:
    """Every pattern of missing values; of many columns each one, each two, and all."""
    if len(nullable) <= MOST_PATTERNS:
        for pattern in product((False, True), repeat=len(nullable)):
            yield [name for name, absent in zip(nullable, pattern, strict=True) if absent]
    else:
        for number in (0, 1, 2, len(nullable)):
            yield from map(list, combinations(nullable, number))


def _present(values: pd.Series[str], column: Column) -> str:
    """A value that is not missing: a row with it shows what each missing one changes."""
    found = values[values != MISSING]
    return str(found.iloc[0] if len(found) else next(iter(_values(column, found))))


def _values(column: Column, seen: pd.Series[str]) -> Iterable[str]:
    kind, levels = column.kind, column.levels
    if kind is Kind.COUNT:
        counts = column.counts
        return (str(n) for n in dict.fromkeys((*counts[:: 1 + len(counts) // MOST_COUNTS], counts[-1])))
    if kind is Kind.NUMBER:
        return _numbers(column, seen)
    if column.system is not None:
        return _CODES[column.system]()
    known = dict.fromkeys((*levels, *sorted(set(seen) - {MISSING})))
    return (*known, *_unseen(column))


def _numbers(column: Column, seen: pd.Series[str]) -> list[str]:
    """The bounds, 0, even steps between the bounds, and values that were seen, with decimals and without."""
    low, high = float(column.minimum or 0), float(column.maximum or 0)
    steps = [low, high, 0.0, *np.linspace(low, high, NUMBER_STEPS)]
    texts = [f"{step:.{digits}f}" for step in steps for digits in (0, 1, 7)]
    quantiles = sorted(set(seen) - {MISSING}, key=float)
    texts += quantiles[:: 1 + len(quantiles) // MOST_COUNTS]
    return [text for text in dict.fromkeys(texts) if column.holds(text)]


def _icd9() -> Iterable[str]:
    # A round code and one with decimals in every stretch of the tabular list, and those beside it.
    numbers = (f"{n}" for n in range(1, 1000))
    decimals = (f"{n}.99" for n in range(1, 1000, 7))
    return (*numbers, *decimals, "001", "V01", "V91.9", "E800", "E999.9")


def _icd10() -> Iterable[str]:
    # In every stretch of the tabular list, round and narrowed down, with the dot and without it.
    for letter in ascii_uppercase:
        yield from (f"{letter}{n:02d}" for n in range(0, 100, 3))
        yield from (f"{letter}{n:02d}.9" for n in range(0, 100, 10))
        yield from (f"{letter}99", f"{letter}5019", f"{letter}09.A1XD", f"{letter}4A", f"{letter}7B.8")


_CODES = {System.ICD9CM: _icd9, System.ICD10CM: _icd10}


def _unseen(column: Column) -> tuple[str, ...]:
    if column.kind is not Kind.OPEN_LEVEL:
        return ()
    return (str(MAXIMUM_CODE),) if column.is_code else (UNSEEN_LEVEL,)


def prove_parity(compiled: CompiledModel, pipeline: Any, frame: pd.DataFrame) -> Parity:
    """Compare the compiled model with the pipeline on every row of `frame` (n >= 1) and on generated edge rows.

    Rows must be equal bit by bit, probabilities within 1e-6, decisions identical. Raises GateError that names the first
    rows where they are not.
    """
    edges, labels = edge_rows(frame, pipeline.named_steps["features"].contract)
    names = list(edges.columns)
    everything = pd.concat([frame[names].reset_index(drop=True), edges], ignore_index=True)
    where = [f"validation row {index}" for index in range(len(frame))] + [f"edge row {label}" for label in labels]

    expected_rows = np.asarray(pipeline.named_steps["features"].transform(everything), dtype=np.float32)
    columns = [everything[name].tolist() for name in names]
    rows = np.stack(
        [compiled.encoder.encode(dict(zip(names, values, strict=True)))[0] for values in zip(*columns, strict=True)]
    )
    different = (rows.view(np.uint32) != expected_rows.view(np.uint32)).any(axis=1)
    _refuse(different, where, "the row encoder gives other numbers than the pipeline's features")
    at = {name: number for number, name in enumerate(names)}
    together, _ = compiled.encoder.encode_columns([columns[at[table.column]] for table in compiled.encoder.tables])
    different = (together.view(np.uint32) != expected_rows.view(np.uint32)).any(axis=1)
    _refuse(different, where, "the row encoder gives a batch other numbers than the pipeline's features")

    expected = np.asarray(pipeline.named_steps["estimator"].predict_proba(expected_rows)[:, 1], dtype=np.float64)
    score = compiled.scorer()
    scores = score(rows)
    singly = np.array([score(row[None, :])[0] for row in rows[:: max(1, len(rows) // 200)]])
    difference = np.abs(scores - expected)
    _refuse(~(difference <= TOLERANCE), where, f"probabilities differ by more than {TOLERANCE}")
    _refuse(
        np.abs(singly - expected[:: max(1, len(rows) // 200)]) > TOLERANCE,
        where[:: max(1, len(rows) // 200)],
        f"probabilities of single rows differ by more than {TOLERANCE}",
    )

    threshold = compiled.threshold
    decided = expected >= threshold
    _refuse((scores >= threshold) != decided, where, f"decisions at {threshold!r} differ")
    near = np.flatnonzero(np.minimum(np.abs(scores - threshold), np.abs(expected - threshold)) < TOLERANCE)
    return Parity(
        rows=len(frame),
        edge_rows=len(edges),
        largest_difference=float(difference.max()),
        threshold=threshold,
        near=tuple(where[index] for index in near),
    )


def clear_threshold(threshold: float, real: Scores, made_up: Scores) -> float:
    """The middle of a gap between neighbouring scores that decides like the threshold; `score >= threshold` means 1.

    `real` (n,) are the scores of real rows, `made_up` (m,) those of `edge_rows`. A gap is so wide that the rounding of
    a score cannot flip a row. Of those, the one is taken that moves the fewest real rows to the other side, and among
    equals the nearest.
    """
    scores = np.sort(np.concatenate([real, made_up]).astype(np.float64))
    # The ends of [0, 1] close the first and the last gap.
    low = np.concatenate([[-2 * CLEARANCE], scores])
    high = np.concatenate([scores, [1.0 + 2 * CLEARANCE]])
    middle = ((low + high) / 2)[high - low > 2 * CLEARANCE]
    before = np.searchsorted(np.sort(real), [threshold, *middle])
    best = np.lexsort((np.abs(middle - threshold), np.abs(before[1:] - before[0])))[0]
    return float(middle[best])


def cleared(threshold: float, pipeline: Any, frame: pd.DataFrame) -> float:
    """`clear_threshold` on the rows that `prove_parity` compares: those of `frame`, and their edge rows."""
    edges, _ = edge_rows(frame, pipeline.named_steps["features"].contract)
    real, made_up = (np.asarray(pipeline.predict_proba(rows)[:, 1], dtype=np.float64) for rows in (frame, edges))
    return clear_threshold(threshold, real, made_up)


def _refuse(wrong: npt.NDArray[np.bool_], where: list[str], problem: str) -> None:
    found = np.flatnonzero(wrong)
    if len(found):
        first = "; ".join(where[index] for index in found[:10])
        more = f"; and {len(found) - 10} more" if len(found) > 10 else ""
        raise GateError(
            f"the compiled model is not the pipeline: {problem}: {first}{more}",
            "this version cannot be served; register it again, or report the rows with the library versions",
        )
