"""Evidently's report: by column name, a whole file, silent, without a connection."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from health_predict.adapters import evidently as adapter
from health_predict.core.data.contract import Kind
from health_predict.core.monitoring.input_drift import psi
from tests.browser import address, browser, needs_chromium
from tests.cohorts import synthesize
from tests.contracts import DIABETES


def test_report_names_the_column_that_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # given a batch with capped counts and no way out to the network
    attempts: list[object] = []

    def refuse(self: socket.socket, address: object) -> None:
        attempts.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(adapter, "REFERENCE_ROWS", 800)
    frame = synthesize(1500, seed=4)
    batch = frame[1000:].assign(
        number_diagnoses=frame["number_diagnoses"].astype(int).clip(upper=4).astype(str), payer_code="?"
    )
    # when
    statistics = adapter.evidently_report(
        frame[:1000],
        batch,
        DIABETES,
        tmp_path / "report" / "evidently.html",
        json_file=tmp_path / "report" / "evidently.json",
    )
    # then the statistics are by column, the moved one is far off, and the file is there
    assert set(statistics) <= {column.name for column in DIABETES.features}
    assert len(statistics) > 40
    assert statistics["number_diagnoses"] < 0.001 or statistics["number_diagnoses"] > 0.5
    assert "<html" in (tmp_path / "report" / "evidently.html").read_text()[:500].lower()
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["evidently.html", "evidently.json"]
    # and what Evidently makes of them
    assert statistics.drifted["number_diagnoses"]
    assert set(statistics.drifted) == {column.name for column in DIABETES.features}
    # and nothing was said or sent
    assert not attempts
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_evidentlys_own_workspace_opens_the_snapshot(tmp_path: Path) -> None:
    # given the snapshot that lies beside a report
    from evidently.core.report import Snapshot
    from evidently.ui.workspace import Workspace

    frame, file = synthesize(600, seed=4), tmp_path / "evidently.json"
    statistics = adapter.evidently_report(frame[:300], frame[300:], DIABETES, tmp_path / "page.html", json_file=file)
    # when a workspace takes it as a run of a project
    workspace = Workspace.create(str(tmp_path / "workspace"))
    project = workspace.create_project("drift")
    run = workspace.add_run(project.id, Snapshot.load(str(file)))
    # then one that is opened later has it, with the same figures
    opened = Workspace(str(tmp_path / "workspace"))
    assert list(opened.list_runs(project.id)) == [run.id]
    stored = opened.get_run(project.id, run.id)
    assert stored is not None
    assert adapter.statistics(Snapshot.load_model(stored).dict()) == statistics


@needs_chromium
def test_levels_that_are_scripts_are_shown_and_not_run(tmp_path: Path) -> None:
    # given a batch with levels that the contract takes, and that would end the script of a page and begin another
    harmful = {
        "race": "</script><script>document.title='taken over'</script>",
        "payer_code": "<img src=x onerror=\"document.title='taken over'\">",
    }
    assert all(DIABETES.by_name[name].holds(value) for name, value in harmful.items())
    frame, page = synthesize(400, seed=4), tmp_path / "page.html"
    batch = frame[200:].assign(**harmful)
    # when a person opens the page
    assert harmful.keys() <= adapter.evidently_report(frame[:200], batch, DIABETES, page).keys()
    with browser() as chromium, chromium.visit(address(page)) as shown:
        shown.wait_for_function("document.body.innerText.includes('Drift')")
        # then it is the report, and nothing of the data ran
        assert shown.title() != "taken over"
    assert not any(value in page.read_text() for value in harmful.values())


def test_our_stability_index_is_evidentlys_where_both_compute_the_same() -> None:
    # given two samples, and the columns whose levels all occur in both (Evidently fills empty cells differently)
    reference, current = (synthesize(2500, seed=seed) for seed in (5, 6))
    theirs = adapter.statistics(adapter.run_preset(reference, current, DIABETES, method="psi").dict())
    compared = 0
    for column in DIABETES.features:
        before, after = (frame[column.name].value_counts(normalize=True) for frame in (reference, current))
        if column.kind is Kind.COUNT or set(before.index) != set(after.index):
            continue
        # when ours is computed over the same levels
        ours = psi(before.to_numpy(dtype=float), after.reindex(before.index).to_numpy(dtype=float))
        # then
        assert ours == pytest.approx(theirs[column.name], abs=1e-9), column.name
        compared += 1
    assert compared >= 10
