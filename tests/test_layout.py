"""The floor plan: who imports whom, which folder is which stage, and that heavy libraries wait until they are needed.

`lint-imports` checks the floors (contracts in pyproject.toml); what it cannot express is checked here.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "onnx", "openvino", "onnxruntime", "tensorrt", "polygraphy", "tritonclient")
MOST_ENTRIES = 17  # of qdq/, beside its __init__.py: what a newcomer takes in at one look


def modules() -> dict[str, Path]:
    """Every module of the three packages by dotted name."""
    found = (path for package in ("qdq", "export", "engines") for path in sorted((ROOT / package).rglob("*.py")))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in found}


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules among `known` that a module imports anywhere: at its top, in functions, for type checkers only."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & known.keys()
            names |= submodules or {node.module}
    return names & known.keys()


@pytest.mark.parametrize(
    "module",
    ["qdq.cli.main", "qdq.pipeline.compile", "qdq.pipeline.options", "qdq.loading.source", "engines", "export"],
)
def test_heavy_libraries_are_not_imported(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set({HEAVY}) & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == "[]"


def test_no_module_is_in_a_circle() -> None:
    known = modules()
    try:
        TopologicalSorter({name: imports(path, known) - {name} for name, path in known.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"imports run in a circle: {' -> '.join(reversed(error.args[1]))}")


def test_qdq_has_few_entries() -> None:
    entries = {path.name for path in (ROOT / "qdq").iterdir()} - {"__init__.py", "__pycache__", "py.typed"}
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


def test_every_stage_of_the_readme_is_a_module_of_its_name() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    stages = re.findall(r"^\| (\d+) \| (\w+) \|", readme, flags=re.MULTILINE)
    assert [int(number) for number, _ in stages] == list(range(1, len(stages) + 1))
    folder = ROOT / "qdq" / "pipeline" / "stages"
    for _, name in stages:
        assert (folder / f"{name}.py").is_file(), f"README's stage {name} has no {folder / name}.py"
        first = ast.get_docstring(ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))) or ""
        assert name in first.split(":")[0], f"{name}.py does not say that it is the stage {name}"


def test_the_wheel_leaves_the_studies_out() -> None:
    from setuptools import find_packages

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    find = settings["tool"]["setuptools"]["packages"]["find"]
    packages = find_packages(str(ROOT), include=find["include"], exclude=find["exclude"])
    assert "qdq.pipeline.stages" in packages
    assert [name for name in packages if "studies" in name] == []
