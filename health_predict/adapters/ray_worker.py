"""What trials need, imported: Ray loads this module in each of its processes as they start, see `ray.py`."""

from __future__ import annotations

import gc
from contextlib import suppress
from importlib import import_module

# What is imported stays, so there is little garbage to look for: a sixth of the time.
gc.set_threshold(50_000)
for name in ("ray.tune", "sklearn.ensemble", "sklearn.linear_model", "xgboost", "health_predict.core.evaluation"):
    with suppress(Exception):  # the trials that need it will tell
        import_module(name)
