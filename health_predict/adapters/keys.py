"""The keys of bulk storage: what lies where. No other module spells one."""

from __future__ import annotations

RAW_FILE = "data.csv"
CONTRACT = "contract"  # digest of the contract that the storage is used for
MANIFEST, PROFILE = "manifest.json", "profile.html"  # of a dataset
CARD, ROLLOUT = "card.html", "rollout.html"  # of a model version
REPORT = "report.html"  # of a batch
EVIDENTLY, EVIDENTLY_JSON = "evidently.html", "evidently.json"  # of a batch, beside its report
DECISIONS, SETTLED = "decisions", "settled"  # kinds of records of batches
PLAN, TIMELINE, FIGURES = "plan.json", "timeline.html", "timeline.json"  # of a simulation
# What `Storage.keys` lists as a whole.
PREDICTIONS, SIMULATIONS, RUNS = "predictions/", "simulations/", "runs/"
RAW, DATASETS, ARRIVALS = "raw/", "datasets/", "arrivals/"
# Below these lie encounters and their outcomes.
OF_PATIENTS = (PREDICTIONS, ARRIVALS, "outcomes/", "batches/", DATASETS, SIMULATIONS)
WAITING_MESSAGES = "notifications/waiting/"
_SIMULATED = "sim-"
SERVED_BEFORE = f"{SIMULATIONS}served-before.json"


def contract(digest: str) -> str:
    """The data contract with this digest."""
    return f"contracts/{digest}.json"


def synthetic(digest: str) -> str:
    """What the data contract with this digest says of its synthetic cohort, as its file was written."""
    return f"contracts/{digest}.synthetic.yaml"


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


def compared_with(other: str, kind: str = "html") -> str:
    """Name of the page of a version beside another, or with `json` of what it shows."""
    return f"compare-{other}.{kind}"


def models(version: str) -> str:
    """All reports about a model version."""
    return model(version, "")


def drift_reference(version: str) -> str:
    """What batches are compared with while the version is champion."""
    return f"drift/{version}/reference.json"


def batch(folder: str, number: int) -> str:
    """A batch of a dataset or a simulation, in their folder."""
    return f"{folder}{number:02d}.parquet"


def simulation_stream(name: str) -> str:
    """The stream of a simulation."""
    return f"{_SIMULATED}{name}"


def is_simulation(stream: str) -> bool:
    """Whether a stream is a simulation's, whose predictions are not in the service's log."""
    return stream.startswith(_SIMULATED)


def door(stream: str) -> str:
    """Folder of encounters that were added and are not taken in yet."""
    return f"arrivals/{stream}/door/"


def at_door(stream: str, digest: str) -> str:
    """Added encounters, by the digest of their rows."""
    return f"{door(stream)}{digest}.parquet"


def refused(stream: str, digest: str = "") -> str:
    """How many rows of added encounters were set aside, until that is counted; without a digest the folder."""
    return f"arrivals/{stream}/refused/" + (f"{digest}.json" if digest else "")


def added(stream: str, digest: str) -> str:
    """What came of adding encounters, by the digest of all their rows."""
    return f"arrivals/{stream}/added/{digest}.json"


def arrivals(stream: str, part: str = "") -> str:
    """A part of the arrivals, `<day>/<number>`; of a name that ends with / or nothing, the folder."""
    return f"arrivals/{stream}/days/{part}" + (".parquet" if part and not part.endswith("/") else "")


def arrivals_state(stream: str) -> str:
    """How far a stream has been taken in: the watermark, what is open, and counts."""
    return f"arrivals/{stream}/state.json"


def quarantine(stream: str, name: str) -> str:
    """What broke the contract on its way in, or the report about it."""
    return f"arrivals/{stream}/quarantine/{name}"


def window(stream: str, number: int) -> str:
    """A closed window: the rows of the batch of that number."""
    return f"batches/{stream}/{number:04d}/window.json"


def window_outcomes(stream: str, number: int) -> str:
    """The known outcomes of a batch, by prediction id."""
    return f"batches/{stream}/{number:04d}/outcomes.json"


def outcomes_door(stream: str) -> str:
    """Folder of delivered files of outcomes that are not taken yet."""
    return f"arrivals/{stream}/outcomes/" if is_simulation(stream) else "outcomes/"


def outcomes(stream: str, name: str) -> str:
    """A delivered file of outcomes."""
    return f"{outcomes_door(stream)}{name}.csv"


def taken_outcomes(stream: str, name: str) -> str:
    """A file of outcomes that was taken."""
    return f"arrivals/{stream}/taken/{name}"


def forgotten() -> str:
    """What was removed on purpose: when, how much, and which models had learned from it."""
    return "forgotten.json"


def records(stream: str, kind: str) -> str:
    """Folder of a stream's records of one kind: what was decided, and how it ended."""
    return f"monitoring/{stream}/{kind}/"


def record(stream: str, kind: str, batch_key: str) -> str:
    """The record of one kind of a batch."""
    return f"{records(stream, kind)}{batch_key}.json"


def report(stream: str, batch_key: str, name: str) -> str:
    """A file of the report of a batch."""
    return f"{records(stream, 'reports')}{batch_key}/{name}"


def progress(stream: str) -> str:
    """How far monitoring has come with a stream, and what its policy remembers."""
    return f"monitoring/{stream}/progress.json"


def prediction_file(day: str, name: str) -> str:
    """A file of the prediction log, shipped by the service; `day` as YYYY-MM-DD."""
    return f"{PREDICTIONS}{day}/{name}"


def turn(stream: str) -> str:
    """Which run monitors a stream at the moment."""
    return f"monitoring/{stream}/turn.json"


def simulation(name: str, file: str) -> str:
    """A file of a simulation."""
    return f"{SIMULATIONS}{name}/{file}"


def run_end(run_id: str) -> str:
    """How a run in a cluster ended."""
    return f"{RUNS}{run_id}.json"


def waiting_message(name: str) -> str:
    """A message that not every address has taken."""
    return f"{WAITING_MESSAGES}{name}.json"


def sent_message(name: str) -> str:
    """A message that every address has taken."""
    return f"notifications/sent/{name}.json"
