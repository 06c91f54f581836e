"""`health-predict demo`: the readmission pipeline on the real data, then how to talk to what it deployed."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import time
import urllib.request
from importlib.metadata import distributions
from pathlib import Path
from sysconfig import get_path
from typing import Any

from rich.console import Console

from health_predict.adapters.mlflow import CHAMPION, Tracking
from health_predict.adapters.processes import ProcessTarget
from health_predict.adapters.raw_data import champion_origin, raw_data
from health_predict.adapters.source_control import commit
from health_predict.adapters.storage import open_storage, whole_file
from health_predict.commands.pipeline import run_pipeline
from health_predict.commands.progress import say_source
from health_predict.core.columns import EXAMPLE
from health_predict.core.content import content_digest
from health_predict.core.errors import GateError, UnreachableError
from health_predict.core.evaluation import Estimate
from health_predict.report.comparison import LABELS
from health_predict.settings import Settings, load_settings
from health_predict.stages.register import EVALUATION

DONE = "demo.json"
SHOWN = ("auc", "average_precision", "f1", "brier", "observed_expected", "sensitivity_top20", "ppv_top20")


def demo(replace_data: bool = False) -> None:
    """From the raw data to a trained, deployed, answering model, on this machine."""
    began = time.monotonic()
    console = Console(file=sys.stdout)  # pinned: a running pipeline redirects sys.stdout
    settings = load_settings(**({"replace_data": True} if replace_data else {}))
    target = ProcessTarget(settings)
    target.check_port()
    data = raw_data(settings, champion_origin(settings), console, stand_in=True)
    console.print(f"[bold]data        [/bold]{data.path} ({data.source})", highlight=False, soft_wrap=True)
    inputs = _inputs(settings, data.sha256)
    version = _unchanged(settings, target, inputs, console)
    if version is None:
        # The very data that were chosen here, also where the synthetic cohort stands in.
        chosen = settings.model_copy(update={"data_source": str(data.path)})
        version = str(run_pipeline(chosen, "readmission", {}, console).outputs["model_version"])
    if target.active() is None:
        _serve_champion(settings, version)
    serving = target.active()
    if serving is None:
        raise UnreachableError("the endpoint is not up", "see `health-predict status`")
    source = _report(console, settings, version, serving.model_version, target.url)
    with whole_file(settings.home / DONE) as temporary:
        temporary.write_text(json.dumps({"inputs": inputs, "version": version, "serving": serving.model_version}))
    console.print(f"\ndone in {time.monotonic() - began:.0f} s", highlight=False)
    say_source(console, source)


def _serve_champion(settings: Settings, version: str) -> None:
    """Bring the champion up where the trained version did not: it was rejected, and the endpoint was down."""
    from health_predict.stages.rollout import rollout

    tracking = Tracking(settings)
    champion = tracking.by_alias(CHAMPION)
    if champion is None or "image_uri" not in champion.tags:
        raise GateError(
            f"version {version} was rejected and nothing serves yet: "
            f"{'; '.join(_evaluation(tracking, version)['reasons'])}",
            "give it more encounters or trials (HEALTH_PREDICT_INITIAL_SHARE, HEALTH_PREDICT_TRIALS)",
        )
    report = settings.home / "serving" / "rollout.html"
    rollout(settings, image_uri=champion.tags["image_uri"], model_version=champion.version, report=report)


def _inputs(settings: Settings, raw_sha256: str) -> str:
    """Digest of all that a demo's result depends on: settings, data, code and libraries."""
    root = Path(__file__).parents[2]
    chosen = ("data_source", "data_sha256", "data_copy", "replace_data")  # what they led to is in `raw_sha256`
    code = ("health_predict", "components", "pipelines", "bentos")
    identity = {
        "settings": settings.model_copy(
            update={name: Settings.model_fields[name].default for name in chosen}
        ).environment(),
        "raw": raw_sha256,
        "code": [content_digest(root / name) for name in code],
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
    from health_predict.operations.lineage import lineage  # with MLflow and pandas: seconds

    with console.status("same inputs as before: verifying what serves"):
        broken = next((link for link in lineage(settings) if link.problem), None)
    if broken is not None:
        console.print(f"[bold]lineage     [/bold]{broken.name}: {broken.problem}", highlight=False, soft_wrap=True)
        return None
    console.print(
        "[bold]unchanged   [/bold]same data, settings, code and libraries as before; "
        "every link from the endpoint to the data verified",
        highlight=False,
        soft_wrap=True,
    )
    return str(last["version"])


def _report(console: Console, settings: Settings, version: str, serving: str, url: str) -> str:
    """Say how good what serves is and how to talk to it; what its data are."""
    tracking = Tracking(settings)
    record = tracking.version(serving)
    evaluation = _evaluation(tracking, serving)
    tested = evaluation["on_test"]
    console.rule(f"version {serving} serves: {record.tags['family']}")
    if version != serving:
        reasons = "; ".join(_evaluation(tracking, version)["reasons"])
        console.print(f"version {version} was trained and rejected: {reasons}", highlight=False)
    say_source(console, record.tags["dataset_source"])
    if reason := evaluation.get("chosen_because"):  # no version of an earlier release has one
        console.print(reason, highlight=False)
    console.print(f"test set: {tested['rows']} encounters, {tested['positives']} readmitted", highlight=False)
    for name in SHOWN:
        console.print(f"  {LABELS[name]:<38} {Estimate(**tested['metrics'][name])}", highlight=False)
    encounter = settings.home / "encounter.json"
    with whole_file(encounter) as temporary:
        temporary.write_text(json.dumps(EXAMPLE, indent=1) + "\n")
    answer = _ask(url, EXAMPLE)
    profile = f"datasets/{record.tags['dataset_digest']}/profile.html"
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    console.rule("try it")
    # Long lines stay whole, so that they work when pasted.
    for line in (
        f"curl -s {url}/predict -H 'content-type: application/json' -d @{shlex.quote(str(encounter))}",
        f"  answers {json.dumps(answer)}",
        f"API page         {url}/",
        "MLflow's pages   make mlflow-ui",
        f"model card       {storage.uri(f'models/{serving}/card.html')}",
        f"data profile     {storage.uri(profile)}",
        "next             health-predict status | lineage | pipeline run monitoring | simulate",
        "stop             make down",
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return record.tags["dataset_source"]


def _evaluation(tracking: Tracking, version: str) -> dict[str, Any]:
    content: dict[str, Any] = tracking.read_json(tracking.version(version).run_id, EVALUATION)
    return content


def _ask(url: str, encounter: dict[str, Any]) -> Any:
    request = urllib.request.Request(  # noqa: S310 (our own endpoint)
        f"{url}/predict", json.dumps(encounter).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            return json.load(response)
    except OSError as error:
        raise UnreachableError(f"{url}/predict does not answer: {error}", "see `health-predict status`") from error
