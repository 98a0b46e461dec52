"""Who may import what: the spine alone joins the packages, and heavy libraries wait until they are needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "onnx", "openvino", "onnxruntime", "tensorrt", "polygraphy", "tritonclient")
# The stage modules call export/ and engines/, the command line prints their reports, readme renders them.
SPINE = {
    "stages.py",
    "onnx_ptq.py",
    "parity.py",
    "engine.py",
    "measure.py",
    "peers.py",
    "peers_build.py",
    "peers_open.py",
    "shapes.py",
    "variants.py",
    "plans.py",
    "proof.py",
    "measure_ranges.py",
    "pipeline.py",
    "cli.py",
    "file_commands.py",
    "closeness.py",
    "contestants.py",
    "placement_costs.py",
    "placement_latency.py",
    "options.py",
    "readme.py",
}


def imported(path: Path) -> set[str]:
    """Dotted names a module imports anywhere, functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize(
    "module", ["qdq.cli.main", "qdq.pipeline.compile", "qdq.pipeline.options", "qdq.load.source", "engines", "export"]
)
def test_heavy_libraries_are_not_imported(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set({HEAVY}) & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("path", modules("qdq"), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_spine_joins_the_packages(path: Path) -> None:
    others = {name for name in imported(path) if name.partition(".")[0] in ("export", "engines")}
    if others:
        assert path.parent.name == "qdq", f"{path.name} imports {sorted(others)}"
        assert path.name in SPINE, f"{path.name} imports {sorted(others)}"


@pytest.mark.parametrize(
    "path", [*modules("export"), *modules("engines")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_export_and_engines_know_only_the_foundations(path: Path) -> None:
    allowed = ("qdq.errors", "qdq.base.artifacts", "qdq.base.config", "qdq.__version__")
    foreign = {name for name in imported(path) if name.startswith("qdq.") and not name.startswith(allowed)}
    assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"
    other = "engines" if path.is_relative_to(ROOT / "export") else "export"
    crossing = {name for name in imported(path) if name.partition(".")[0] == other}
    assert not crossing, f"{path.relative_to(ROOT)} imports {sorted(crossing)}"
