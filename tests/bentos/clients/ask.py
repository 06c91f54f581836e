"""Asks every path of a service by the client that openapi-python-client makes of its document, as `generated`."""

from __future__ import annotations

import json
import os
import sys

from generated import Client
from generated.api.default import health, livez, metrics, readyz
from generated.api.service_ap_is import readmission_predict, readmission_predict_batch
from generated.models import Encounter, Explanation, Health, Prediction, Violations

with Client(base_url=sys.argv[1]) as client:
    encounter = Encounter.from_dict(json.loads(os.environ["EXAMPLE"]))

    one = readmission_predict.sync(client=client, body=encounter, explain=True, log=False)
    assert isinstance(one, Prediction)
    assert isinstance(one.explanation, Explanation)
    assert one.risk_group in ("low", "medium", "high", "very high")

    many = readmission_predict_batch.sync(client=client, body=[encounter, encounter])
    assert isinstance(many, list)
    assert [answer.probability_score for answer in many] == [one.probability_score] * 2

    encounter.time_in_hospital = 99
    wrong = readmission_predict.sync(client=client, body=encounter)
    assert isinstance(wrong, Violations)
    assert wrong.detail[0].loc == ["body", "time_in_hospital"]

    state = health.sync(client=client)
    assert isinstance(state, Health)
    assert state.ready
    assert isinstance(state.risk_cutoffs, list)
    assert "health_predict_requests_total" in (metrics.sync(client=client) or "")
    assert [probe.sync_detailed(client=client).status_code for probe in (livez, readyz)] == [200, 200]
    print(json.dumps(one.to_dict()))
