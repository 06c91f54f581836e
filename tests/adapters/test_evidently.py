"""Evidently's report: by column name, a whole file, silent, without a connection."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from health_predict.adapters import evidently as adapter
from health_predict.core.columns import FEATURES
from health_predict.core.synthetic import synthesize


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
    statistics = adapter.evidently_report(frame[:1000], batch, tmp_path / "report" / "evidently.html")
    # then the statistics are by column, the moved one is far off, and the file is there
    assert set(statistics) <= {column.name for column in FEATURES}
    assert len(statistics) > 40
    assert statistics["number_diagnoses"] < 0.001 or statistics["number_diagnoses"] > 0.5
    assert "<html" in (tmp_path / "report" / "evidently.html").read_text()[:500].lower()
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["evidently.html"]
    # and nothing was said or sent
    assert not attempts
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
