"""Encoders written as ONNX, one option per way a lowering may write a layer, to be compiled and counted.

The weights are random: what the compiler makes of a graph depends on its form and sizes alone. All is FP16 but what is
INT8, as in a lowered graph. Names of nodes follow the exported graphs, so that kernels are found by layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from engines.estimate.workload import Encoder

OPSET, IR_VERSION = 20, 10
VOCABULARY = 1000  # a gather counts as what is gathered, so the table may be small
MASKED = -1e4


@dataclass(frozen=True)
class Form:
    """One way of writing an encoder layer; the default is FP16 without quantizers.

    `scales` of a weight are one per output "channel", one per "tensor", or one per tensor with the channels' "ratio"
    multiplied behind the product. `codes` puts a Q/DQ pair between product and ratio, of "all" linears or of those
    beside "attention". `attention` names the quantized ones of q, k, v and a, the probabilities. The `skip` of a
    residual add is "float", has its "own" Q/DQ pair, or is "shared": it reads the linears' own Q. `narrow` puts a Q
    behind every product that has none, and needs scales "tensor" without `bias`. `few_rows` lets the last layer work on
    the first token alone.
    """

    int8: bool = False
    scales: str = "channel"
    codes: str = ""
    bias: bool = True
    merged: bool = False  # query, key and value in one product
    attention: str = ""
    skip: str = "float"
    narrow: bool = False
    few_rows: bool = False


@dataclass(frozen=True)
class Network:
    """An encoder in one form at one shape; `head` is "spans" (two numbers a token) or "classifier" (with a pooler)."""

    encoder: Encoder
    form: Form
    batch: int
    sequence: int = 128
    head: str = "classifier"

    @property
    def shape(self) -> tuple[int, int]:
        """Batch and sequence."""
        return self.batch, self.sequence


def write_network(network: Network, layers: int, path: Path) -> Path:
    """Write `network` with `layers` layers to `path`, shapes fixed."""
    writer = _Writer(network)
    hidden = writer.embedding()
    for index in range(layers):
        last = network.form.few_rows and index == layers - 1
        hidden = writer.layer(hidden, f"encoder.layer.{index}", last=last)
    output = writer.head(hidden)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, network.shape)
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    graph = helper.make_graph(writer.nodes, "encoder", inputs, outputs, list(writer.constants.values()))
    opset = [helper.make_opsetid("", OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION), path)
    return path


@dataclass(frozen=True)
class _Value:
    """A tensor, and the tensor behind its Q/DQ pair once somebody asked for it."""

    name: str
    quantized: str = ""


class _Writer:
    """Nodes and constants of one network, in the order they are written."""

    def __init__(self, network: Network) -> None:
        self.network, self.form, self.encoder = network, network.form, network.encoder
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.random = np.random.default_rng(0)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def half(self, name: str, *shape: int, spread: float = 0.1, about: float = 0.0) -> str:
        return self.constant(name, self.random.normal(about, spread, shape).astype(np.float16))

    def number(self, name: str, value: float) -> str:
        return self.constant(name, np.asarray(value, np.float16))

    def integers(self, *values: int) -> str:
        return self.constant("integers_" + "_".join(map(str, values)), np.asarray(values, np.int64))

    def op(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def pair(self, value: str, name: str) -> str:
        """Q and DQ of an activation, with a scale of its own."""
        scale = self.number(f"{name}.scale", float(self.random.uniform(0.02, 0.03)))
        zero = self.constant(f"{name}.zero_point", np.zeros((), np.int8))
        code = self.op("QuantizeLinear", f"{name}.quantize", value, scale, zero)
        return self.op("DequantizeLinear", f"{name}.dequantize", code, scale, zero)

    def product(self, value: str, name: str, k: int, n: int) -> str:
        """MatMul with a weight, the ratio of its channels and its bias."""
        result = self.op("MatMul", f"{name}.MatMul", value, self.weight(name, k, n))
        coded = self.form.codes == "all" or (self.form.codes == "attention" and ".attention." in name)
        result = self.pair(result, f"{name}.product_quantizer") if coded else result
        if self.form.int8 and self.form.scales == "ratio":
            result = self.op("Mul", f"{name}.Mul", result, self.half(f"{name}.ratio", n, about=0.7))
        return self.op("Add", f"{name}.Add", result, self.half(f"{name}.bias", n)) if self.form.bias else result

    def weight(self, name: str, k: int, n: int) -> str:
        if not self.form.int8:
            return self.half(f"{name}.weight", k, n)
        codes = self.constant(f"{name}.weight", self.random.integers(-127, 128, (k, n)).astype(np.int8))
        width = (n,) if self.form.scales == "channel" else ()
        # One scale per tensor is the same in all: query, key and value must share theirs to be one kernel.
        scales = self.random.uniform(0.001, 0.002, width) if width else np.asarray(0.002)
        scale = self.constant(f"{name}.scale", scales.astype(np.float16))
        zero = self.constant(f"{name}.zero_point", np.zeros(width, np.int8))
        axis = {"axis": 1} if width else {}
        return self.op("DequantizeLinear", f"{name}.weight_quantizer.dequantize", codes, scale, zero, **axis)

    def norm(self, value: str, name: str) -> str:
        width = self.encoder.hidden
        factors = self.half(f"{name}.weight", width, about=1.0), self.half(f"{name}.bias", width)
        return self.op("LayerNormalization", f"{name}.LayerNormalization", value, *factors, axis=-1)

    def embedding(self) -> str:
        table = self.half("embeddings.word", VOCABULARY, self.encoder.hidden)
        words = self.op("Gather", "embeddings.Gather", table, "input_ids")
        places = self.half("embeddings.position", 1, self.network.sequence, self.encoder.hidden)
        mask = self.op("Cast", "mask.Cast", "attention_mask", to=TensorProto.BOOL)
        mask = self.op("Unsqueeze", "mask.Unsqueeze", mask, self.integers(1, 2))
        self.op("Where", "mask", mask, self.number("mask.kept", 0.0), self.number("mask.masked", MASKED))
        return self.norm(self.op("Add", "embeddings.Add", words, places), "embeddings.LayerNorm")

    def layer(self, hidden: str, name: str, *, last: bool) -> str:
        width, wide = self.encoder.hidden, self.encoder.intermediate
        read = _Value(hidden, self.pair(hidden, f"{name}.attention.self.query.input_quantizer"))
        context = self.attention(read, f"{name}.attention.self", last=last)
        skip = read
        if last:
            skip = _Value(self.first(read.name, f"{name}.skip"), self.first(read.quantized, f"{name}.skip_quantized"))
        # Two blocks, each ending in a residual add and a LayerNorm.
        out = f"{name}.attention.output"
        branch = self.product(self.read(context, f"{out}.dense"), f"{out}.dense", width, width)
        middle = self.norm(self.add(skip, branch, out), f"{out}.LayerNorm")
        up, down = f"{name}.intermediate", f"{name}.output"
        read = _Value(middle, self.read(middle, f"{up}.dense"))
        raised = self.product(read.quantized, f"{up}.dense", width, wide)
        raised = self.pair(raised, f"{up}.narrow") if self.form.narrow else raised
        raised = self.op("Gelu", f"{up}.intermediate_act_fn.Gelu", raised)
        branch = self.product(self.read(raised, f"{down}.dense"), f"{down}.dense", wide, width)
        return self.norm(self.add(read, branch, down), f"{down}.LayerNorm")

    def read(self, value: str, name: str) -> str:
        """The input of a linear: behind a Q/DQ pair when it is INT8."""
        return self.pair(value, f"{name}.input_quantizer") if self.form.int8 else value

    def add(self, skip: _Value, branch: str, name: str) -> str:
        form = self.form
        kept = skip.quantized if form.skip == "shared" else skip.name
        if form.skip == "own":  # as QDQBERT places them: a pair on either operand
            kept = self.pair(kept, f"{name}.add_residual_input_quantizer")
            branch = self.pair(branch, f"{name}.add_local_input_quantizer")
        branch = self.pair(branch, f"{name}.narrow") if form.narrow else branch
        return self.op("Add", f"{name}.Add", branch, kept)

    def first(self, value: str, name: str) -> str:
        """The first token, [B, 1, H]."""
        sizes = self.integers(0), self.integers(1), self.integers(1)
        return self.op("Slice", f"{name}.Slice", value, *sizes)

    def attention(self, read: _Value, name: str, *, last: bool) -> str:
        value = read.quantized if self.form.int8 else read.name
        parts = self.projections(value, name, last=last)
        for letter in self.form.attention.replace("a", ""):
            parts[letter] = self.pair(parts[letter], f"{name}.matmul_{letter}_input_quantizer")
        keys = self.op("Transpose", f"{name}.Transpose_k", parts["k"], perm=[0, 1, 3, 2])
        scores = self.op("Add", f"{name}.Add", self.op("MatMul", f"{name}.MatMul", parts["q"], keys), "mask")
        shares = self.op("Softmax", f"{name}.Softmax", scores, axis=-1)
        shares = self.pair(shares, f"{name}.matmul_a_input_quantizer") if "a" in self.form.attention else shares
        context = self.op("MatMul", f"{name}.MatMul_1", shares, parts["v"])
        context = self.op("Transpose", f"{name}.Transpose", context, perm=[0, 2, 1, 3])
        return self.op("Reshape", f"{name}.Reshape", context, self.integers(0, 0, self.encoder.hidden))

    def projections(self, value: str, name: str, *, last: bool) -> dict[str, str]:
        """Query, key and value, each [B, heads, S, head size]; the last layer's query may be of the first token."""
        width, heads = self.encoder.hidden, self.encoder.heads
        size = width // heads
        names = {"q": "query", "k": "key", "v": "value"}
        if self.form.merged and not last:
            return self.merged(value, name, "qkv")
        read = dict.fromkeys(names, value)
        if last:
            read["q"] = self.first(value, f"{name}.query")
        parts = self.merged(value, name, "kv") if self.form.merged else {}
        for letter, word in names.items():
            if letter not in parts:
                result = self.product(read[letter], f"{name}.{word}", width, width)
                split = self.op("Reshape", f"{name}.{word}.Reshape", result, self.integers(0, 0, heads, size))
                parts[letter] = self.op("Transpose", f"{name}.{word}.Transpose", split, perm=[0, 2, 1, 3])
        return parts

    def merged(self, value: str, name: str, letters: str) -> dict[str, str]:
        """Several projections as one product [H, 3H], one transpose, and a gather each."""
        width, heads, count = self.encoder.hidden, self.encoder.heads, len(letters)
        joined = self.product(value, f"{name}.{letters}", width, count * width)
        joined = self.pair(joined, f"{name}.{letters}.narrow") if self.form.narrow else joined
        split = self.op("Reshape", f"{name}.Split", joined, self.integers(0, 0, count, heads, width // heads))
        turned = self.op("Transpose", f"{name}.Turn", split, perm=[2, 0, 3, 1, 4])
        numbers = (self.constant(f"number_{index}", np.asarray(index, np.int64)) for index in range(count))
        return {
            letter: self.op("Gather", f"{name}.Gather_{letter}", turned, number, axis=0)
            for letter, number in zip(letters, numbers, strict=True)
        }

    def head(self, hidden: str) -> str:
        width = self.encoder.hidden
        if self.network.head == "spans":
            result = self.float_linear(hidden, "qa_outputs", width)
        else:
            rows = hidden if self.form.few_rows else self.first(hidden, "pooler")
            pooled = self.op("Tanh", "pooler.Tanh", self.float_linear(rows, "pooler.dense", width, width))
            result = self.float_linear(pooled, "classifier", width)
        return self.op("Cast", "logits", result, to=TensorProto.FLOAT)

    def float_linear(self, value: str, name: str, k: int, n: int = 2) -> str:
        result = self.op("MatMul", f"{name}.MatMul", value, self.half(f"{name}.weight", k, n))
        return self.op("Add", f"{name}.Add", result, self.half(f"{name}.bias", n))


FLOAT16 = Form()
LOWERED = Form(int8=True, attention="qkva", skip="own")  # QDQBERT's twenty points, lowered point by point
# INT8 tensors between all layers, as the plugins of demo/BERT exchange them: the nearest the compiler comes to the
# implicitly quantized networks whose latencies NVIDIA published.
NARROW = Form(int8=True, scales="tensor", bias=False, merged=True, attention="a", skip="shared", narrow=True)
