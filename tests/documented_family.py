"""The model family that docs/extend.md shows, as it stands there."""

from __future__ import annotations

import re
import types
from pathlib import Path

from health_predict.core.model.families import Family

PAGE = Path(__file__).parents[1] / "docs" / "extend.md"


def documented_module() -> str:
    """The source of its module."""
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    return str(code)


def documented_family() -> Family:
    """The family itself."""
    module = types.ModuleType("hist_gradient_boosting")
    exec(documented_module(), vars(module))
    family: Family = module.FAMILY
    return family
