"""The keys of bulk storage: what lies where. No other module spells one."""

from __future__ import annotations

RAW_FILE = "diabetic_data.csv"
MANIFEST, PROFILE = "manifest.json", "profile.html"  # of a dataset
CARD, ROLLOUT = "card.html", "rollout.html"  # of a model version
REPORT = "report.html"  # of a batch
DECISIONS, SETTLED, PREDICTED = "decisions", "settled", "predictions"  # kinds of records of batches
PLAN, TIMELINE, FIGURES = "plan.json", "timeline.html", "timeline.json"  # of a simulation
# What `Storage.keys` lists as a whole.
PREDICTIONS, OUTCOMES, SIMULATIONS, RUNS = "predictions/", "outcomes/", "simulations/", "runs/"
SERVED_BEFORE = f"{SIMULATIONS}served-before.json"


def raw(sha256: str) -> str:
    """The raw file with this SHA-256."""
    return f"raw/{sha256}/{RAW_FILE}"


def dataset(digest: str, name: str = "") -> str:
    """A file of a dataset, by the name that its manifest has for it; without a name the dataset."""
    return f"datasets/{digest}/{name}" if name else f"datasets/{digest}"


def part(digest: str, name: str) -> str:
    """A part of a dataset: `train`, `validation`, `test`, or a batch of its future."""
    return dataset(digest, f"{name}.parquet")


def dataset_by_inputs(inputs_digest: str) -> str:
    """Digest of the dataset that was made from these inputs."""
    return dataset("by-inputs", inputs_digest)


def model(version: str, name: str) -> str:
    """A report about a model version: its card, its rollout."""
    return f"models/{version}/{name}"


def drift_reference(version: str) -> str:
    """What batches are compared with while the version is champion."""
    return f"drift/{version}/reference.json"


def delivered(stream: str) -> str:
    """Folder of a stream's batches: encounters as the endpoint scored them, with their prediction ids."""
    return f"batches/{stream}/"


def batch(folder: str, number: int) -> str:
    """A batch, in the folder `delivered` or among the batches of a dataset or a simulation."""
    return f"{folder}{number:02d}.parquet"


def records(stream: str, kind: str) -> str:
    """Folder of a stream's records of one kind: what was decided, what was predicted, and how each batch ended.

    The last is the watermark: a batch that has one is never handled again.
    """
    return f"monitoring/{stream}/{kind}/"


def record(stream: str, kind: str, batch_key: str) -> str:
    """The record of one kind of a batch."""
    return f"{records(stream, kind)}{batch_key}.json"


def report(stream: str, batch_key: str, name: str) -> str:
    """A file of the report of a batch."""
    return f"{records(stream, 'reports')}{batch_key}/{name}"


def policy(stream: str) -> str:
    """What the policy remembers of a stream."""
    return f"monitoring/{stream}/policy.json"


def prediction_file(day: str, name: str) -> str:
    """A file of the prediction log, shipped by the service; `day` as YYYY-MM-DD."""
    return f"{PREDICTIONS}{day}/{name}"


def outcomes(name: str) -> str:
    """A file of outcomes (prediction_id,readmitted), delivered whenever they are known."""
    return f"{OUTCOMES}{name}.csv"


def simulation(name: str, file: str) -> str:
    """A file of a simulation."""
    return f"{SIMULATIONS}{name}/{file}"


def run_end(run_id: str) -> str:
    """How a run in a cluster ended."""
    return f"{RUNS}{run_id}.json"
