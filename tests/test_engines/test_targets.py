"""The table of targets: complete entries, told apart by their files, and the one place that knows a target's name."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from engines.opening import Opening, open_runner
from engines.targets import BASELINE, CPU_TARGETS, TARGETS, EngineOptions, target_of
from engines.triton.settings import PLATFORMS
from export.passes.pipeline import passes_for
from qdq.placing import WIDEST

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("qdq/pipeline/stages", "qdq/cli", "engines/bench", "engines/triton")  # where a target is worked with
FILES = ("qdq/pipeline/steps.py", "qdq/pipeline/compile.py", "engines/doctor.py", "engines/opening.py")


def test_entries_are_told_apart_by_their_files() -> None:
    assert all(name == target.name for name, target in TARGETS.items())
    assert len({target.suffix for target in TARGETS.values()}) == len(TARGETS)
    for target in TARGETS.values():
        assert target_of(Path("some") / target.engine) is target
    assert target_of(Path("model.txt")) is None
    assert CPU_TARGETS == ("openvino", "onnxruntime") and BASELINE in TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_known_wherever_targets_are_listed(name: str) -> None:
    """The passes that lower for it, the placement it starts from, and Triton's own names."""
    assert passes_for(name)
    assert TARGETS[name].placement in WIDEST
    assert set(TARGETS[name].backends) <= PLATFORMS.keys()


def compared(path: Path) -> list[str]:
    """Comparisons with a target's name, as ``file:line``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and any(isinstance(side, ast.Constant) and side.value in TARGETS for side in (node.left, *node.comparators))
    ]


def test_nobody_compares_names_of_targets() -> None:
    files = [ROOT / name for name in FILES] + [path for name in FOLDERS for path in (ROOT / name).glob("*.py")]
    # Triton's backends have the names of targets; their files and parameters are its own business.
    own = ("engines/triton/interface.py", "engines/triton/model_config.py")
    found = [place for path in files for place in compared(path) if not place.startswith(own)]
    assert found == []


@pytest.mark.parametrize("name", CPU_TARGETS)
def test_an_engine_is_built_and_opened_by_its_entry(name: str, tmp_path: Path) -> None:
    import numpy as np

    graph = tmp_path / "model.onnx"
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT64, ["batch", "sequence"])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", "sequence"])
    nodes = [onnx.helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "floats", [x], [y]), opset_imports=[onnx.helper.make_opsetid("", 20)]
    )
    model.ir_version = 10
    onnx.save(model, graph)
    options = EngineOptions(threads=1)
    built = TARGETS[name].build(graph, tmp_path, options, None)
    assert (built.target, built.int8) == (name, None)
    feeds = {"x": np.ones((2, 3), np.int64)}
    opened = TARGETS[name].open(built.files[0], replace(options, shape=(2, 3)))
    again = open_runner(Opening(name, str(built.files[0]), 1, static=True), (2, 3))
    for runner in (opened, again):
        assert (runner(feeds)["y"] == 1).all()
