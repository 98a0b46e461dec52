"""A tiny engine and what a Triton repository of it is made with; `engine` and `plan` are fixtures of conftest.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.triton import TritonSettings
from engines.types import TensorInfo

IDS = np.array([101, 759, 208, 102, 0, 0], dtype=np.int64)
MASK = np.array([1, 1, 1, 1, 0, 0], dtype=np.int64)
FEEDS = {"input_ids": IDS, "attention_mask": MASK}
INPUTS = tuple(TensorInfo(name, "int64", ("batch", "sequence")) for name in FEEDS)
LOGITS = TensorInfo("logits", "float32", ("batch", 2))


def tiny_onnx(path: Path, *, external: bool = False) -> Path:
    """logits[B,2] = mean over the sequence of mask * table[ids]: an encoder's interface in four nodes."""
    table = numpy_helper.from_array(np.linspace(-1, 1, 2048, dtype=np.float32).reshape(1024, 2), "table")
    axes = numpy_helper.from_array(np.array([1]), "axes")
    last = numpy_helper.from_array(np.array([2]), "last")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["rows", "mask3"], ["masked"]),
        helper.make_node("ReduceMean", ["masked", "axes"], ["logits"], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info(i.name, TensorProto.INT64, i.shape) for i in INPUTS]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, LOGITS.shape)]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, [table, axes, last])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(model, str(path), save_as_external_data=external, location=f"{path.name}.data")
    return path


def settings(**changes: Any) -> TritonSettings:
    return dataclasses.replace(TritonSettings("tiny", "onnxruntime"), **changes)
