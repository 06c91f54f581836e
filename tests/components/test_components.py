"""Components are thin and import nothing that a pod has not got at their top."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import components
from health_predict.core.errors import GateError

FOLDER = Path(components.__file__).parent
MODULES = sorted(FOLDER.glob("*.py"))
STAGES = {
    "split",
    "hpo",
    "recalibrate",
    "register",
    "bento_build",
    "ecr_push",
    "rollout",
    "drift",
    "settle",
    "record_end",
}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_only_kfp_and_the_standard_library_stand_at_the_top(module: Path) -> None:
    allowed = {"kfp", "components", *sys.stdlib_module_names}
    for node in ast.parse(module.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in names} <= allowed, f"{module.name}:{node.lineno}"
        assert names != ["__future__"], "postponed annotations break the compiler"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_bodies_use_only_what_they_import(module: Path) -> None:
    # A module's constant is there in tests and absent in a pod.
    tree = ast.parse(module.read_text())
    top = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        used = {node.id for statement in function.body for node in ast.walk(statement) if isinstance(node, ast.Name)}
        assert not used & top


def test_every_stage_has_one_component_and_one_function() -> None:
    assert set(components.__all__) == STAGES | {"keep"}
    for name in STAGES:
        source = (FOLDER / f"{name}.py").read_text()
        assert f"from health_predict.stages.{name} import {name} as stage" in source


def test_every_component_is_described() -> None:
    for name in components.__all__:
        spec = getattr(components, name).component_spec
        assert spec.description
        for parameter, item in [*(spec.inputs or {}).items(), *(spec.outputs or {}).items()]:
            assert item.description, f"{name}.{parameter}"


def test_the_other_branch_refuses_an_unknown_value() -> None:
    assert components.keep.python_func("decision", "reject", "reject") == ("unchanged",)
    with pytest.raises(SystemExit) as caught:
        components.keep.python_func("decision", "nan", "reject")
    assert caught.value.code == GateError.exit_code
