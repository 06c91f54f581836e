"""Components are thin and import nothing that a pod has not got at their top."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import health_predict
from health_predict import components
from health_predict.errors import GateError

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
    allowed = {"kfp", *sys.stdlib_module_names}
    for node in ast.parse(module.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        others = {name.split(".")[0] for name in names if not name.startswith("health_predict.components")}
        assert others <= allowed, f"{module.name}:{node.lineno}"
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


def test_only_the_commands_know_components_and_pipelines() -> None:
    # import-linter sees packages below their parent's folder only, and these two are not
    library = Path(health_predict.__file__).parent
    for file in library.rglob("*.py"):
        found = re.search(r"from health_predict(\.| import )(components|pipelines)\b", file.read_text())
        assert found is None or file.is_relative_to(library / "commands"), file


def test_another_project_s_folder_does_not_take_their_place(tmp_path: Path) -> None:
    # given packages of the same names ahead on the import path
    for name in ("components", "pipelines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('another project')")
    # then ours are found in their folders
    program = "from health_predict import components; print(components.__file__)"
    found = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).parent == FOLDER


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
