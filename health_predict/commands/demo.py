"""`health-predict demo`: the readmission pipeline on the real data, then how to talk to what it deployed."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from importlib.metadata import distributions
from pathlib import Path
from sysconfig import get_path

from rich.console import Console
from rich.markup import escape

from health_predict.adapters import keys
from health_predict.adapters.archives import content_digest
from health_predict.adapters.contracts import contract_of
from health_predict.adapters.data.batches import trained_through
from health_predict.adapters.data.raw_data import Origin, champion_origin, raw_data
from health_predict.adapters.files import temporary_files, write_file
from health_predict.adapters.serving.endpoint import ask
from health_predict.adapters.serving.processes import ProcessTarget
from health_predict.adapters.source_control import commit
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import CHAMPION, EVALUATION, ApprovalState, Tag, Tracking
from health_predict.adapters.tracking.history import approval_of
from health_predict.commands.pipeline import run_pipeline
from health_predict.commands.progress import console_of, say_source, working
from health_predict.core.statistics import Estimate
from health_predict.errors import GateError, UnreachableError
from health_predict.report.comparison import LABELS
from health_predict.settings import Settings, load_settings

DONE = "demo.json"
SHOWN = ("auc", "average_precision", "f1", "brier", "observed_expected", "sensitivity_top20", "ppv_top20")


def demo(replace_data: bool = False) -> None:
    """From the raw data to a trained, deployed, answering model, on this machine."""
    began = time.monotonic()
    console = console_of()
    settings = load_settings(**({"replace_data": True} if replace_data else {}))
    target = ProcessTarget(settings)
    target.check_port()
    with temporary_files(settings.home):
        source = _demonstrate(settings, target, console)
    console.print(f"\ndone in {time.monotonic() - began:.0f} s")
    say_source(console, source)


def _demonstrate(settings: Settings, target: ProcessTarget, console: Console) -> str:
    """All of it; what the data are."""
    with working(console, "looking for the data"):
        before = champion_origin(settings)
        data = raw_data(settings, before, console, stand_in=True)
        console.print(f"[bold]data        [/bold]{escape(str(data.path))} ({data.source})")
        inputs = _inputs(settings, data.sha256)
    kept = _went_on(settings, before, data.sha256, console)
    version = kept or _unchanged(settings, target, inputs, console)
    if version is None:
        # The very data that were chosen here, also where the synthetic cohort stands in.
        chosen = settings.model_copy(update={"data_source": str(data.path)})
        version = str(run_pipeline(chosen, "readmission", {}, console).outputs["model_version"])
    if target.active() is None:
        with working(console, "starting the champion"):
            _serve_champion(settings, version)
    serving = target.active()
    if serving is None:
        raise UnreachableError("the endpoint is not up", "see `health-predict status`")
    with working(console, "asking what serves"):
        source = _report(console, settings, version, serving.model_version, target.url)
    if before is not None and (old := before.version.version) != serving.model_version:
        back = f"`health-predict pipeline run deployment -p model_version={old}` brings it back"
        console.print(f"replaced         version {old}: {back}", markup=False)
    if not kept:
        done = {"inputs": inputs, "version": version, "serving": serving.model_version}
        write_file(settings.home / DONE, json.dumps(done))
    return source


def _went_on(settings: Settings, champion: Origin | None, raw_sha256: str, console: Console) -> str | None:
    """The champion where it has learned from outcomes that came after these data: a demo leaves it in service."""
    if champion is None or champion.raw_sha256 != raw_sha256:
        return None
    version = champion.version
    batches = trained_through(open_storage(settings.storage, settings.s3_endpoint_url), version)
    if not batches:
        return None
    how = "recalibrated" if Tag.RECALIBRATES in version.tags else "retrained"
    console.print(
        f"[bold]kept        [/bold]version {version.version} stays: it was {how} since, on the outcomes of {batches} "
        "batches; `health-predict pipeline run readmission` trains on the first data anew and compares both"
    )
    return version.version


def _serve_champion(settings: Settings, version: str) -> None:
    """Bring the champion up where the trained version did not: it was rejected, and the endpoint was down."""
    from health_predict.stages.approval import must_be_approved
    from health_predict.stages.rollout import serve

    tracking = Tracking(settings)
    champion = tracking.by_alias(CHAMPION)
    if champion is None:
        must_be_approved(settings, tracking, tracking.version(version))
        reasons = tracking.read_json(tracking.version(version).run_id, EVALUATION)["reasons"]
        raise GateError(
            f"version {version} was rejected and nothing serves yet: {'; '.join(reasons)}",
            "give it more encounters or trials (HEALTH_PREDICT_INITIAL_SHARE, HEALTH_PREDICT_TRIALS)",
        )
    serve(settings, champion)


def _inputs(settings: Settings, raw_sha256: str) -> str:
    """Digest of all that a demo's result depends on: settings, data, code and libraries."""
    root = Path(__file__).parents[2]
    chosen = ("contract", "data_source", "data_sha256", "data_copy", "replace_data")  # what they led to is named apart
    identity = {
        "settings": settings.model_dump(mode="json", exclude={*chosen, "notify"}),
        "contract": contract_of(settings).digest,
        "raw": raw_sha256,
        "code": [
            content_digest(root / name) for name in ("health_predict", "components", "contracts", "pipelines", "bentos")
        ],
        "commit": settings.git_commit or commit(),
        "libraries": sorted(f"{found.name}=={found.version}" for found in distributions(path=[get_path("purelib")])),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _unchanged(settings: Settings, target: ProcessTarget, inputs: str, console: Console) -> str | None:
    """The version that the last demo ended with, when it had the same inputs and all that it made is whole."""
    try:
        last = json.loads((settings.home / DONE).read_text())
    except (OSError, ValueError):
        return None
    active = target.active()
    if last["inputs"] != inputs or active is None or active.model_version != last["serving"]:
        return None
    with working(console, "same inputs as before: verifying what serves"):
        from health_predict.operations.lineage import lineage  # with MLflow and pandas: seconds

        broken = next((link for link in lineage(settings) if link.problem), None)
    if broken is not None:
        console.print(f"[bold]lineage     [/bold]{broken.name}: {escape(broken.problem)}")
        return None
    console.print(
        "[bold]unchanged   [/bold]same data, settings, code and libraries as before; "
        "every link from the endpoint to the data verified"
    )
    return str(last["version"])


def _report(console: Console, settings: Settings, version: str, serving: str, url: str) -> str:
    """Say how good what serves is and how to talk to it; what its data are."""
    tracking = Tracking(settings)
    record = tracking.version(serving)
    evaluation = tracking.read_json(record.run_id, EVALUATION)
    tested = evaluation["on_test"]
    console.rule(f"version {serving} serves: {escape(record.tags[Tag.FAMILY])}")
    if version != serving:
        trained = tracking.version(version)
        reasons = tracking.read_json(trained.run_id, EVALUATION)["reasons"]
        became = "waits for approval" if approval_of(trained) is ApprovalState.WAITING else "was rejected"
        console.print(f"version {version} was trained and {became}: {'; '.join(reasons)}", markup=False)
    say_source(console, record.tags[Tag.DATASET_SOURCE])
    console.print(evaluation["chosen_because"], markup=False)
    contract = tracking.contract
    console.print(f"test set: {tested['rows']} encounters, {tested['positives']} {contract.outcome.happened}")
    for name in SHOWN:
        console.print(f"  {LABELS[name]:<38} {Estimate(**tested['metrics'][name])}")
    encounter, example = settings.home / "encounter.json", contract.request
    write_file(encounter, json.dumps(example, indent=1) + "\n")
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    profile = storage.uri(keys.dataset(record.tags[Tag.DATASET_DIGEST], keys.PROFILE))
    console.rule("try it")
    token = settings.serving_token_file
    sent = f' -H "authorization: Bearer $(cat {shlex.quote(token)})"' if token else ""
    for line in (
        f"curl -s '{url}/predict?log=false'{sent} -H 'content-type: application/json' "
        f"-d @{shlex.quote(str(encounter))}",
        f"  answers {json.dumps(ask(f'{url}/predict?log=false', settings, example).json())}",
        f"API page         {url}/",
        "MLflow's pages   make mlflow-ui",
        f"model card       {storage.uri(keys.model(serving, keys.CARD))}",
        f"data profile     {profile}",
        "next             health-predict status | lineage | simulate",
        "what comes in    health-predict data add FILE, then health-predict pipeline run monitoring",
        "stop             make down",
    ):
        console.print(line, markup=False)
    return record.tags[Tag.DATASET_SOURCE]
