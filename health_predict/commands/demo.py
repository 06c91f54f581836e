"""`health-predict demo`: the readmission pipeline on the real data, then how to talk to what it deployed."""

from __future__ import annotations

import json
import shlex
import sys
import time
import urllib.request
from typing import Any

from rich.console import Console

from health_predict.adapters.dataset import fetch
from health_predict.adapters.mlflow import Tracking
from health_predict.adapters.processes import ProcessTarget
from health_predict.adapters.storage import open_storage, whole_file
from health_predict.commands.pipeline import run_pipeline
from health_predict.core.columns import EXAMPLE
from health_predict.core.errors import GateError, UnreachableError
from health_predict.core.evaluation import Estimate
from health_predict.core.promotion import Decision
from health_predict.report.model_card import LABELS
from health_predict.settings import Settings, load_settings
from health_predict.stages.register import EVALUATION

SHOWN = ("auc", "average_precision", "f1", "brier", "observed_expected", "sensitivity_top20", "ppv_top20")


def demo() -> None:
    """From the raw data to a trained, deployed, answering model, on this machine."""
    began = time.monotonic()
    console = Console(file=sys.stdout)  # pinned: a running pipeline redirects sys.stdout
    settings = load_settings()
    target = ProcessTarget(settings)
    target.check_port()
    data = fetch(settings, console)
    console.print(f"[bold]data        [/bold]{data.path} ({data.source})", highlight=False, soft_wrap=True)
    run = run_pipeline(settings, "readmission", {}, console)
    version = str(run.outputs["model_version"])
    serving = target.active()
    if serving is None and run.outputs["decision"] == Decision.REJECT:
        reasons = "; ".join(_evaluation(Tracking(settings), version)["reasons"])
        raise GateError(
            f"version {version} was rejected and nothing serves yet: {reasons}",
            "give it more encounters or trials (HEALTH_PREDICT_INITIAL_SHARE, HEALTH_PREDICT_TRIALS)",
        )
    if serving is None:
        raise UnreachableError("the endpoint is not up", "see `health-predict status`")
    _report(console, settings, version, serving.model_version, target.url)
    console.print(f"\ndone in {time.monotonic() - began:.0f} s", highlight=False)


def _report(console: Console, settings: Settings, version: str, serving: str, url: str) -> None:
    tracking = Tracking(settings)
    record = tracking.version(serving)
    tested = _evaluation(tracking, serving)["on_test"]
    synthetic = record.tags["dataset_source"] == "synthetic"
    console.rule(f"version {serving} serves: {record.tags['family']}")
    if version != serving:
        reasons = "; ".join(_evaluation(tracking, version)["reasons"])
        console.print(f"version {version} was trained and rejected: {reasons}", highlight=False)
    if synthetic:
        console.print(
            "[bold red]SYNTHETIC DATA: these patients do not exist; the figures say nothing about real ones[/]"
        )
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
        "next             health-predict status | lineage | pipeline run monitoring -p batch=0 -p labelled_batches=1",
        "stop             make down",
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


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
