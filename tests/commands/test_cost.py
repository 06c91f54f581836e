"""`health-predict cost`: the sums a person would check by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from health_predict.aws import cost
from health_predict.cli import app
from health_predict.commands.cost import stack_file
from health_predict.errors import SettingsError


def test_always_on_is_the_sum_of_host_address_disks_bucket_and_images() -> None:
    # when nothing is configured
    said = CliRunner().invoke(app, ["cost", "--json"])
    # then the figures are those of the defaults: t3a.xlarge, 40 + 50 GiB
    found = json.loads(said.output)
    assert found["region"] == "us-east-1"
    parts = found["always_on"]["parts"]
    assert parts["host"] == pytest.approx(0.1504 * 730, abs=0.01)
    assert parts["disks"] == pytest.approx(0.08 * 90, abs=0.01)
    assert found["always_on"]["usd"] == pytest.approx(sum(parts.values()), abs=0.03)
    # and a schedule saves running hours but no disk, while managed services cost more than either
    assert found["scheduled"]["parts"]["disks"] == parts["disks"]
    assert found["scheduled"]["usd"] < found["always_on"]["usd"] < found["managed"]["usd"]


def test_the_stack_s_own_configuration_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a stack in another region that runs ten hours on two days
    monkeypatch.chdir(tmp_path)
    Path("Pulumi.dev.yaml").write_text(
        "config:\n  aws:profile: x\n  health-predict:region: eu-central-1\n  health-predict:data_gib: 100\n"
        "  health-predict:schedule: {timezone: Europe/Berlin, days: [MON, TUE]}\n"
    )
    # when its cost is asked for
    found = json.loads(CliRunner().invoke(app, ["cost", "--stack", "dev", "--json"]).output)
    # then it is that of twenty hours a week
    hours = 20 * cost.WEEKS_A_MONTH
    assert found["scheduled"]["parts"]["host"] == pytest.approx(0.1728 * hours, abs=0.01)
    assert found["scheduled"]["parts"]["disks"] == pytest.approx(0.0952 * 140, abs=0.01)
    # and people read the same sums
    said = CliRunner().invoke(app, ["cost", "--stack", "dev"]).output
    assert "MON-TUE 08:00 to 18:00" in said
    assert f"{found['scheduled']['usd']:.2f}" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist"),
        ("config: [", "cannot be read"),
        ("config:\n  health-predict:regoin: mars\n", "there is no such key"),
    ],
)
def test_a_missing_or_wrong_stack_is_named(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "Pulumi.dev.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=words):
        stack_file(file)
