"""The drift report before and after outcomes are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from health_predict.core.monitoring.drift import DriftReference, assess
from health_predict.report.drift_report import drift_page
from tests.browser import CHROMIUM, address, browser
from tests.cohorts import synthesize
from tests.contracts import DIABETES


@pytest.mark.parametrize("known", [True, False])
def test_the_page_tells_what_is_known(known: bool, tmp_path: Path) -> None:
    # given a batch of half the prevalence, with shifted inputs, with or without outcomes
    cohort = synthesize(5000, seed=3)
    random = np.random.default_rng(3)
    risk = random.beta(2, 10, 3000)
    labels = (random.random(3000) < risk).astype(np.float64)
    reference = DriftReference.fit(cohort[:2000], DIABETES, labels, risk, draws=100)
    batch = cohort[2000:].assign(medical_specialty="?")
    outcomes = (random.random(3000) < risk / 2).astype(np.float64) if known else np.full(3000, np.nan)
    findings = assess(reference, batch, risk, outcomes)
    assert findings.verdict == ("recalibrate" if known else "steady"), findings.reasons
    # when
    html = drift_page(
        findings,
        DIABETES,
        batch=4,
        facts=[("Model version", "3")],
        synthetic=True,
        reference_probabilities=risk,
        probabilities=risk,
        outcomes=outcomes,
        evidently={"age": 0.02},
        waiting=[] if known else ["batch 4: 3,000 within the follow-up window"],
    )
    # then
    assert "Drift report, batch 4" in html
    assert "What changed most: medical_specialty, missing: " in html
    assert "medical_specialty: the share of missing values rose" in html
    assert (">Recalibrate<" in html) is known
    assert ("Observed / expected" in html) is known
    assert 'href="evidently.html"' in html and "stability index 0" not in html
    assert ("Is it certain that the risks are off?" in html) is known
    assert ("Observed over expected is off" in html) is known
    assert ("Waiting for labels" in html) is not known
    assert ("within the follow-up window" in html) is not known
    # and it is fit to be shown at any width
    if CHROMIUM:
        (tmp_path / "report.html").write_text(html)
        with browser() as chromium:
            assert not chromium.problems(address(tmp_path / "report.html"), text="What changed most: medical_specialty")
