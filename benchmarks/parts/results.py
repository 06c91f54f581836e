"""What a benchmark found, as a file: `make reference` makes README's table of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "results"


def save(benchmark: str, figures: Mapping[str, float]) -> None:
    """Print the figures as the last line, and keep them as `results/<benchmark>.json`."""
    print(json.dumps(figures))
    FOLDER.mkdir(exist_ok=True)
    result = {"figures": dict(figures), "day": datetime.now(UTC).date().isoformat(), "processors": os.cpu_count()}
    (FOLDER / f"{benchmark}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def load() -> dict[str, dict[str, float]]:
    """The figures of every benchmark that left a file, by the benchmark's name."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["figures"] for path in sorted(FOLDER.glob("*.json"))
    }
