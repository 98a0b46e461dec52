"""A one-layer encoder as a canonical QDQ graph, written node by node with onnx.helper; no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.types import BuiltEngine, TensorInfo

from .triton_parts import FEEDS, INPUTS, LOGITS, tiny_onnx

HIDDEN, HEADS, INNER, VOCABULARY = 64, 2, 128, 50  # from 32 wide on, the runtimes use their INT8 kernels
LAYER = "encoder.layer.0"
SELF = f"{LAYER}.attention.self"
OPERANDS = ("q", "k", "softmax", "v")

WriteEncoder = Callable[..., Path]
MakeFeeds = Callable[..., dict[str, NDArray[Any]]]


class EncoderWriter:
    """Nodes and initializers of one encoder layer, named as the exporter names them: every output like its node."""

    def __init__(
        self, float_inputs: Collection[str], float_weights: Collection[str], operands: Collection[str]
    ) -> None:
        self.float_inputs, self.float_weights, self.operands = float_inputs, float_weights, operands
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(3)

    def constant(self, name: str, value: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def pair(self, tensor: str, point: str, scale: float) -> str:
        constants = [
            self.constant(f"{point}.scale", np.float32(scale)),
            self.constant(f"{point}.zero_point", np.int8(0)),
        ]
        codes = self.node("QuantizeLinear", [tensor, *constants], f"{point}.quantize")
        return self.node("DequantizeLinear", [codes, *constants], f"{point}.dequantize")

    def weight(self, name: str, shape: tuple[int, int]) -> str:
        codes = self.rng.integers(-127, 128, shape).astype(np.int8)
        scale = self.rng.uniform(1e-3, 2e-3, shape[1]).astype(np.float32)
        if name.removeprefix(f"{LAYER}.") in self.float_weights:
            return self.constant(f"{name}.weight", codes * scale)
        point = f"{name}.weight_quantizer"
        inputs = [
            self.constant(f"{point}.codes", codes),
            self.constant(f"{point}.scale", scale),
            self.constant(f"{point}.zero_point", np.zeros(shape[1], np.int8)),
        ]
        return self.node("DequantizeLinear", inputs, f"{point}.dequantize", axis=1)

    def linear(self, tensor: str, name: str, shape: tuple[int, int], quantized: str | None = None) -> str:
        """MatMul and bias; `quantized` is the tensor behind a Q/DQ pair that q, k and v share."""
        if name.removeprefix(f"{LAYER}.") not in self.float_inputs:
            tensor = quantized or self.pair(tensor, f"{name}.input_quantizer", 0.03)
        product = self.node("MatMul", [tensor, self.weight(name, shape)], f"{name}.MatMul")
        bias = self.constant(f"{name}.bias", self.rng.normal(0, 0.1, shape[1]).astype(np.float32))
        return self.node("Add", [product, bias], f"{name}.Add")

    def norm(self, tensor: str, name: str, output: str | None = None) -> str:
        affine = [
            self.constant(f"{name}.weight", np.ones(HIDDEN, np.float32)),
            self.constant(f"{name}.bias", np.zeros(HIDDEN, np.float32)),
        ]
        result = self.node("LayerNormalization", [tensor, *affine], f"{name}.LayerNormalization", axis=-1)
        self.nodes[-1].output[0] = output or result
        return output or result

    def operand(self, tensor: str, which: str) -> str:
        scale = 1 / 127 if which == "softmax" else 0.02
        point = f"{SELF}.matmul_{which}_input_quantizer"
        return self.pair(tensor, point, scale) if which in self.operands else tensor

    def attention(self, tensor: str, mask: str) -> str:
        shared = self.pair(tensor, f"{SELF}.query.input_quantizer", 0.03)
        heads = self.constant(f"{SELF}.heads", np.array([0, 0, HEADS, HIDDEN // HEADS]))
        split = {}
        for index, name in enumerate(("query", "key", "value")):
            projected = self.linear(tensor, f"{SELF}.{name}", (HIDDEN, HIDDEN), shared)
            shaped = self.node("Reshape", [projected, heads], f"{SELF}.Reshape_{index}")
            split[name[0]] = self.node("Transpose", [shaped], f"{SELF}.Transpose_{index}", perm=[0, 2, 1, 3])
        keys = self.node("Transpose", [self.operand(split["k"], "k")], f"{SELF}.Transpose_3", perm=[0, 1, 3, 2])
        scores = self.node("MatMul", [self.operand(split["q"], "q"), keys], f"{SELF}.MatMul")
        masked = self.node("Add", [scores, mask], f"{SELF}.Add")
        weights = self.operand(self.node("Softmax", [masked], f"{SELF}.Softmax", axis=-1), "softmax")
        context = self.node("MatMul", [weights, self.operand(split["v"], "v")], f"{SELF}.MatMul_1")
        merged = self.node("Transpose", [context], f"{SELF}.Transpose_4", perm=[0, 2, 1, 3])
        shape = self.constant(f"{SELF}.merged", np.array([0, 0, HIDDEN]))
        return self.node("Reshape", [merged, shape], f"{SELF}.Reshape_3")

    def mask(self) -> str:
        """[B,1,1,S]: 0 where a token is, -1e4 where none is."""
        floats = self.node("Cast", ["attention_mask"], "graph.Cast", to=TensorProto.FLOAT)
        axes = self.constant("graph.axes", np.array([1, 2]))
        inverted = [
            self.constant("graph.one", np.float32(1)),
            self.node("Unsqueeze", [floats, axes], "graph.Unsqueeze"),
        ]
        return self.node(
            "Mul", [self.node("Sub", inverted, "graph.Sub"), self.constant("graph.low", np.float32(-1e4))], "graph.Mul"
        )

    def model(self) -> onnx.ModelProto:
        table = self.constant("embeddings.weight", self.rng.normal(0, 1, (VOCABULARY, HIDDEN)).astype(np.float32))
        embedded = self.norm(self.node("Gather", [table, "input_ids"], "embeddings.Gather"), "embeddings.LayerNorm")
        context = self.attention(embedded, self.mask())
        output = self.linear(context, f"{LAYER}.attention.output.dense", (HIDDEN, HIDDEN))
        attended = self.node("Add", [output, embedded], f"{LAYER}.attention.output.Add")
        hidden = self.norm(attended, f"{LAYER}.attention.output.LayerNorm")
        inner = self.linear(hidden, f"{LAYER}.intermediate.dense", (HIDDEN, INNER))
        activated = self.node("Gelu", [inner], f"{LAYER}.intermediate.intermediate_act_fn.Gelu")
        outer = self.linear(activated, f"{LAYER}.output.dense", (INNER, HIDDEN))
        residual = self.node("Add", [outer, hidden], f"{LAYER}.output.Add")
        self.norm(residual, f"{LAYER}.output.LayerNorm", "last_hidden_state")
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
            for name in ("input_ids", "attention_mask")
        ]
        result = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", HIDDEN])
        graph = helper.make_graph(self.nodes, "qdq", inputs, [result], self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def write_encoder(tmp_path: Path) -> WriteEncoder:
    """Write a canonical graph: ``write_encoder(name, float_inputs, float_weights, operands)``.

    The linears whose inputs or weights stay float are named relative to the layer (``intermediate.dense``); `operands`
    are the quantized ones of the two attention matmuls, all four unless told.
    """

    def write(
        name: str = "model.qdq.onnx",
        float_inputs: Collection[str] = (),
        float_weights: Collection[str] = (),
        operands: Collection[str] = OPERANDS,
    ) -> Path:
        model = EncoderWriter(float_inputs, float_weights, operands).model()
        onnx.checker.check_model(model, full_check=True)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)
        return path

    return write


@pytest.fixture(scope="session")
def make_feeds() -> MakeFeeds:
    """Random ids [B, S]; every second row is padded in its last third."""

    def make(batch: int, sequence: int, seed: int = 0) -> dict[str, NDArray[Any]]:
        mask = np.ones((batch, sequence), np.int64)
        mask[1::2, sequence - sequence // 3 :] = 0
        ids = np.random.default_rng(seed).integers(0, VOCABULARY, (batch, sequence))
        return {"input_ids": ids, "attention_mask": mask}

    return make


@pytest.fixture
def engine(tmp_path: Path) -> BuiltEngine:
    folder = tmp_path / "engine"
    folder.mkdir()
    return BuiltEngine("onnxruntime", (tiny_onnx(folder / "model.onnx"),), INPUTS, (LOGITS,), None, {})


@pytest.fixture
def plan(tmp_path: Path) -> BuiltEngine:
    """A TensorRT engine's interface; its bytes are never parsed here."""
    path = tmp_path / "plan" / "model.plan"
    path.parent.mkdir()
    path.write_bytes(b"a plan")
    inputs = tuple(TensorInfo(name, "int32", (None, None)) for name in FEEDS)
    hidden = TensorInfo("last_hidden_state", "float16", (None, None, 384))
    return BuiltEngine("tensorrt", (path,), inputs, (hidden,), None, {})
