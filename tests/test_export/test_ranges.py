"""Largest magnitudes of every tensor, against the tensors themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from export.ranges import measure_ranges
from qdq.errors import PassError


def test_every_computed_float_tensor_is_measured_over_all_batches(tiny: Any, canonical: Path) -> None:
    batches = [tiny.feeds(2, 6, 1), tiny.feeds(3, 9, 2)]
    done: list[int] = []
    ranges = measure_ranges(canonical, iter(batches), done.append)
    assert done == [1, 2]
    model = onnx.load(canonical)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ranges)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    values = [session.run(None, batch) for batch in batches]
    expected = [max(float(np.abs(value).max()) for value in tensor) for tensor in zip(*values, strict=True)]
    assert list(ranges.values()) == expected
    floats = {v.name for v in model.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT} | {"logits"}
    computed = [name for node in model.graph.node for name in node.output if name in floats]
    # weights are known without measuring
    assert list(ranges) == [name for name in computed if not name.endswith("weight_quantizer.dequantize")]


def write(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {text}'), path)
    return path


def test_nan_is_an_error_even_where_no_output_shows_it_and_infinity_is_skipped(tmp_path: Path) -> None:
    nodes = "a = Neg(x) b = IsNaN(a) c = Cast<to = 1>(b) y = Min(c, one)"
    path = write(tmp_path / "model.onnx", f"g (float[N] x) => (float[N] y) <float one = {{1.0}}> {{ {nodes} }}")
    x = np.ones(50, np.float32)
    x[3], x[4] = np.inf, -np.inf
    assert measure_ranges(path, [{"x": x}]) == {"a": 1.0, "c": 0.0, "y": 0.0}
    x[7] = np.nan
    with pytest.raises(PassError, match=r"1 tensor\(s\) hold NaN already in FP32, the first is 'a'; check"):
        measure_ranges(path, [{"x": x}])


def test_no_batches_and_no_file_are_errors(tmp_path: Path, canonical: Path) -> None:
    with pytest.raises(PassError, match="no batches to measure ranges on"):
        measure_ranges(canonical, [])
    with pytest.raises(PassError, match="cannot be read as ONNX"):
        measure_ranges(tmp_path / "missing.onnx", [])


def test_external_data_is_read_beside_the_graph(tmp_path: Path) -> None:
    text = "g (float[N,3] x) => (float[N,3] y) <float[3] w = {1.0, 2.0, 3.0}> { a = Mul(x, w) y = Neg(a) }"
    model = onnx.load(write(tmp_path / "inner.onnx", text))
    for tensor in model.graph.initializer:  # raw data, which is what can be stored outside
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    assert measure_ranges(path, [{"x": np.full((2, 3), 2, np.float32)}]) == {"a": 6.0, "y": 6.0}
