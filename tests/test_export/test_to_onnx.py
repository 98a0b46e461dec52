"""The exported file: same bytes, dynamic shapes, external data, no trace of this machine, errors that say where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.check import check_file
from export.to_onnx import export_onnx, save_proto
from export.unoptimized import open_unoptimized, run
from qdq.errors import ExportError


def logits(path: Path, feeds: Any) -> Any:
    return run(open_unoptimized(str(path), path.parent), feeds, ["logits"])[0]


def test_two_exports_are_byte_identical(canonical: Path, canonical_again: Path) -> None:
    assert canonical.read_bytes() == canonical_again.read_bytes()


def test_holds_every_placed_point(tiny: Any, canonical: Path) -> None:
    report = check_file(canonical, tiny.points)
    assert len(tiny.points) == 40
    assert (report.quantize, report.weights) == (20, 12)
    assert sum(node.op_type == "DequantizeLinear" for node in onnx.load(canonical).graph.node) == 32


@pytest.mark.parametrize(("batch", "sequence"), [(1, 5), (3, 16), (2, 64), (1, 1)])
def test_batch_and_sequence_are_dynamic(tiny: Any, canonical: Path, batch: int, sequence: int) -> None:
    feeds = tiny.feeds(batch, sequence)
    # Same arithmetic node by node; only the order of summation inside a matmul differs.
    np.testing.assert_allclose(logits(canonical, feeds), tiny.run(feeds)["logits"], atol=1e-5)


def test_optimizing_runtime_loads_it(tiny: Any, canonical: Path) -> None:
    session = onnxruntime.InferenceSession(str(canonical), providers=["CPUExecutionProvider"])
    assert session.run(["logits"], tiny.feeds(2, 6))[0].shape == (2, 3)


def test_nothing_of_this_machine_is_left(canonical: Path) -> None:
    content = canonical.read_bytes()
    home, repository, packages = Path.home(), Path(__file__).resolve().parents[2], Path(torch.__file__).parents[1]
    traces = [str(repository), str(packages), "site-packages", 'File "', ".py", "pkg.torch", str(canonical.parent)]
    traces += [str(home)] if len(str(home)) > 1 else []
    assert [trace for trace in traces if trace.encode() in content] == []


def test_names_say_which_module(canonical: Path) -> None:
    names = {node.name: node.op_type for node in onnx.load(canonical).graph.node}
    layer = "bert.encoder.layer.1"
    assert names[f"{layer}.attention.self.query.input_quantizer.quantize"] == "QuantizeLinear"
    assert names[f"{layer}.attention.self.query.weight_quantizer.dequantize"] == "DequantizeLinear"
    assert names[f"{layer}.attention.self.matmul_a_input_quantizer.dequantize"] == "DequantizeLinear"
    assert names[f"{layer}.attention.self.query.MatMul"] == names[f"{layer}.attention.self.MatMul_1"] == "MatMul"
    assert names[f"{layer}.output.add_local_input_quantizer.quantize"] == "QuantizeLinear"
    assert names[f"{layer}.output.LayerNorm.LayerNormalization"] == "LayerNormalization"
    assert names[f"{layer}.intermediate.intermediate_act_fn.Gelu"] == "Gelu"


def test_every_tensor_of_a_point_carries_its_name(canonical: Path) -> None:
    graph = onnx.load(canonical).graph
    point = "bert.encoder.layer.0.attention.self.query.weight_quantizer"
    dequantize = next(node for node in graph.node if node.name == f"{point}.dequantize")
    assert list(dequantize.input) == [f"{point}.codes", f"{point}.scale", f"{point}.zero_point"]
    assert list(dequantize.output) == [f"{point}.dequantize"]
    assert not [tensor.name for tensor in graph.initializer if tensor.name.startswith("model.")]


def test_external_data_lies_beside_the_model_and_runs(tiny: Any, canonical: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.qdq.onnx"
    save_proto(onnx.load(canonical), path, external_data_bytes=1000)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.qdq.onnx", "model.qdq.onnx.data"]
    assert path.stat().st_size < canonical.stat().st_size
    feeds = tiny.feeds(2, 9)
    np.testing.assert_array_equal(logits(path, feeds), logits(canonical, feeds))
    assert check_file(path, tiny.points) == check_file(canonical, tiny.points)


def test_external_data_is_deterministic_and_removed_when_no_longer_needed(canonical: Path, tmp_path: Path) -> None:
    written = []
    for folder in ("a", "b"):
        path = tmp_path / folder / "m.onnx"
        save_proto(onnx.load(canonical), path, external_data_bytes=1000)
        written.append((path.read_bytes(), path.with_name("m.onnx.data").read_bytes()))
    assert written[0] == written[1]
    save_proto(onnx.load(canonical), path)
    assert [file.name for file in path.parent.iterdir()] == ["m.onnx"]


def test_a_moved_file_without_its_data_is_one_clear_error(canonical: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save_proto(onnx.load(canonical), path, external_data_bytes=1000)
    path.with_name("m.onnx.data").unlink()
    with pytest.raises(ExportError, match=r"weights lie in 'm\.onnx\.data', which is not beside it"):
        check_file(path)


class Bare(torch.nn.Module):
    """A quantizer-like child without amax."""

    def __init__(self) -> None:
        super().__init__()
        self.child = torch.nn.Identity()
        self.child.point = "encoder.layer.0.attention.self.matmul_q_input_quantizer"  # type: ignore[assignment]


def test_an_uncalibrated_point_is_named(tmp_path: Path) -> None:
    example = {"input_ids": torch.ones(2, 4, dtype=torch.int64)}
    with pytest.raises(ExportError, match=r"1 point\(s\) have no amax.*layer\.0\.attention\.self\.matmul_q"):
        export_onnx(Bare(), example, ["logits"], tmp_path / "m.onnx")


def test_an_example_that_would_fix_a_size_is_refused(tmp_path: Path) -> None:
    example = {"input_ids": torch.ones(1, 4, dtype=torch.int64)}
    with pytest.raises(ExportError, match="at least two of every dimension"):
        export_onnx(torch.nn.Identity(), example, ["logits"], tmp_path / "m.onnx")


def test_a_failed_trace_names_the_root_cause(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise torch.onnx.OnnxExporterError("Failed to export.\nNext steps:") from ValueError(
            "no rule for op frobnicate"
        )

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ExportError, match="could not trace the model: no rule for op frobnicate"):
        export_onnx(torch.nn.Identity(), {"x": torch.ones(2, 2, dtype=torch.int64)}, ["y"], tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
