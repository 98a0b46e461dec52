"""A BERT classifier as a Q/DQ graph, written node by node in any of the forms that tools write; no torch.

Nodes, points and tensors have the exporter's names, and the default form is the canonical graph, so edits and removals
that are made for the one fit the other. Weights are random; only their types, shapes and wiring matter.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.names import IR_VERSION
from qdq.studies.linter.graphs.form import Form
from qdq.studies.linter.graphs.nodes import Nodes

TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
CODES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN, "int4": TensorProto.INT4}
VOCABULARY, LABELS = 100, 3
LOWEST = -60000.0  # of a mask, within FP16


def encoder(form: Form) -> onnx.ModelProto:
    """Write the classifier: ids, mask and token types int64 [batch, sequence] in, logits [batch, 3] out."""
    return Writer(form).model()


class Writer(Nodes):
    """The classifier in one form."""

    def __init__(self, form: Form) -> None:
        super().__init__(TYPES[form.body])
        self.form = form

    def parameters(self, point: str, scale: Any, codes: str) -> list[str]:
        """Scale and zero-point of a point."""
        kind = TensorProto.FLOAT if self.form.wide_scales else TYPES[self.form.body]
        zeros = np.zeros(np.shape(scale))
        return [self.store(f"{point}.scale", scale, kind), self.store(f"{point}.zero_point", zeros, CODES[codes])]

    def pair(self, tensor: str, point: str, scale: float | None = None) -> str:
        value = 0.02 + 0.01 * self.rng.random() if scale is None else scale
        parameters = self.parameters(point, value, "fp8" if self.form.codes == "fp8" else "int8")
        codes = self.op("QuantizeLinear", f"{point}.quantize", [tensor, *parameters])
        return self.op("DequantizeLinear", f"{point}.dequantize", [codes, *parameters])

    def input(self, tensor: str, linear: str, width: int) -> str:
        """The tensor [.., width] as a linear reads it: smoothed and quantized, where the form asks for it."""
        if not self.form.inputs:
            return tensor
        if self.form.smoothing:
            factors = self.floats(f"{linear}._smoothing", self.rng.uniform(0.5, 1.5, width))
            tensor = self.op("Mul", f"{linear}.Mul", [tensor, factors])
        return self.pair(tensor, f"{linear}.input_quantizer")

    def weight(self, linear: str, shape: tuple[int, int]) -> str:
        codes = self.rng.integers(-7, 8, shape) if self.form.codes == "int4" else self.rng.integers(-127, 128, shape)
        if self.form.weights == "float":
            return self.floats(f"{linear}.weight", codes * 0.001)
        point = f"{linear}.weight_quantizer"
        per_channel = self.form.weights == "channel"
        scale = self.rng.uniform(0.0005, 0.0025, shape[1]) if per_channel else 0.0025
        parameters = self.parameters(point, scale, self.form.codes)
        stored = self.store(f"{point}.codes", codes, CODES[self.form.codes])
        axis = {"axis": 1} if per_channel else {}
        return self.op("DequantizeLinear", f"{point}.dequantize", [stored, *parameters], **axis)

    def linear(self, tensor: str, name: str, shape: tuple[int, int]) -> str:
        """Product, channel ratios and bias of an input [.., K] and a weight `shape` (K, N)."""
        result = self.op("MatMul", f"{name}.MatMul", [tensor, self.weight(name, shape)])
        if self.form.weights == "ratio":
            ratio = self.floats(f"{name}.ratio", self.rng.uniform(0.5, 1, shape[1]))
            result = self.op("Mul", f"{name}.Ratio", [result, ratio])
        if self.form.bias == "none":
            return result
        return self.op("Add", f"{name}.Add", [result, self.floats(f"{name}.bias", self.rng.normal(0, 0.1, shape[1]))])

    def norm(self, tensor: str, name: str, width: int | None = None) -> str:
        width = width or self.form.hidden
        weight = self.floats(f"{name}.weight", self.rng.uniform(0.5, 1.5, width))
        bias = self.floats(f"{name}.bias", self.rng.normal(0, 0.1, width))
        if self.form.norm == "op":
            inputs = [tensor, weight, bias]
            return self.op("LayerNormalization", f"{name}.LayerNormalization", inputs, axis=-1, epsilon=1e-12)
        axes = self.integers("axes.last", [-1])
        centred = self.op("Sub", f"{name}.Sub", [tensor, self.op("ReduceMean", f"{name}.Mean", [tensor, axes])])
        squared = self.op("Mul", f"{name}.Square", [centred, centred])
        variance = self.op("ReduceMean", f"{name}.Variance", [squared, axes])
        root = self.op("Sqrt", f"{name}.Sqrt", [self.op("Add", f"{name}.Eps", [variance, self.floats("eps", 1e-5)])])
        scaled = self.op("Mul", f"{name}.Mul", [self.op("Div", f"{name}.Div", [centred, root]), weight])
        return self.op("Add", f"{name}.Add", [scaled, bias])

    def activation(self, x: str, name: str) -> str:
        if self.form.gelu == "op":
            return self.op("Gelu", f"{name}.Gelu", [x])
        if self.form.gelu == "tanh":
            return self.op("Gelu", f"{name}.Gelu", [x], approximate="tanh")
        if self.form.gelu == "relu":
            return self.op("Relu", f"{name}.Relu", [x])
        erf = self.op("Erf", f"{name}.Erf", [self.op("Div", f"{name}.Div", [x, self.floats("root2", 2**0.5)])])
        product = self.op("Mul", f"{name}.Mul", [x, self.op("Add", f"{name}.Add", [erf, self.floats("one", 1)])])
        return self.op("Mul", f"{name}.Mul_1", [product, self.floats("half", 0.5)])

    def residual(self, branch: str, skip: str, quantized: str, name: str, first: str) -> str:
        """The add behind a block; `quantized` is the skip as the block's `first` linear reads it."""
        if self.form.branch:
            branch = self.pair(branch, f"{name}.add_local_input_quantizer")
        if self.form.skip == "own":
            skip = self.pair(skip, f"{name}.add_residual_input_quantizer")
        elif self.form.skip == "shared" and self.form.inputs:
            skip = quantized
            if self.form.smoothing:
                inverse = self.floats(f"{first}._inverse", self.rng.uniform(0.6, 2, self.form.hidden))
                skip = self.op("Mul", f"{name}.Mul", [skip, inverse])
        return self.op("Add", f"{name}.Add", [branch, skip])

    def heads_of(self, quantized: str, name: str) -> dict[str, str]:
        """Query, key and value [batch, heads, sequence, size]."""
        hidden, heads, form = self.form.hidden, self.form.heads, self.form
        size = hidden // heads
        parts, found = ("query", "key", "value"), {}
        if form.qkv == "merged":
            merged = self.linear(quantized, f"{name}.qkv", (hidden, 3 * hidden))
            shape = self.integers(f"{name}.qkv.shape", [0, 0, 3, heads, size])
            shaped = self.op("Reshape", f"{name}.qkv.Reshape", [merged, shape])
            moved = self.op("Transpose", f"{name}.qkv.Transpose", [shaped], perm=[2, 0, 3, 1, 4])
            places = [self.integers(f"{name}.{part}.index", index) for index, part in enumerate(parts)]
            pairs = zip(parts, places, strict=True)
            return {
                part[0]: self.op("Gather", f"{name}.{part}.Gather", [moved, place], axis=0) for part, place in pairs
            }
        # Three tensors of the width of the model, each into heads.
        if form.qkv == "split":
            merged = self.linear(quantized, f"{name}.qkv", (hidden, 3 * hidden))
            outputs = [f"{name}.Split_{index}" for index in range(3)]
            sizes = self.integers(f"{name}.sizes", [hidden] * 3)
            self.nodes.append(helper.make_node("Split", [merged, sizes], outputs, f"{name}.Split", axis=-1))
        else:
            outputs = [self.linear(quantized, f"{name}.{part}", (hidden, hidden)) for part in parts]
        for number, (part, tensor) in enumerate(zip(parts, outputs, strict=True)):
            suffix = f"_{number}" if number else ""
            shape = self.integers(f"{name}.Reshape{suffix}.shape", [0, 0, heads, size])
            shaped = self.op("Reshape", f"{name}.Reshape{suffix}", [tensor, shape])
            found[part[0]] = self.op("Transpose", f"{name}.Transpose{suffix}", [shaped], perm=[0, 2, 1, 3])
        return found

    def attention(self, quantized: str, name: str, mask: str) -> str:
        """The two products and the softmax between them; [batch, sequence, hidden] out."""
        form = self.form
        tensors = self.heads_of(quantized, name)

        def operand(which: str, tensor: str) -> str:
            scale = 1 / 127 if which == "a" else None
            return (
                self.pair(tensor, f"{name}.matmul_{which}_input_quantizer", scale)
                if which in form.attention
                else tensor
            )

        # Scores, mask and softmax, then the product with the values.
        turned = self.op("Transpose", f"{name}.Transpose_3", [operand("k", tensors["k"])], perm=[0, 1, 3, 2])
        scores = self.op("MatMul", f"{name}.MatMul", [operand("q", tensors["q"]), turned])
        if form.late_scale:
            scores = self.op("Div", f"{name}.Div", [scores, self.floats("root", (form.hidden // form.heads) ** 0.5)])
        if form.mask == "scores":
            scores = self.op("Where", f"{name}.Where", [mask, scores, self.floats("low", LOWEST)])
        else:
            scores = self.op("Add", f"{name}.Add", [scores, mask])
        probabilities = operand("a", self.op("Softmax", f"{name}.Softmax", [scores], axis=-1))
        context = self.op("MatMul", f"{name}.MatMul_1", [probabilities, operand("v", tensors["v"])])
        back = self.op("Transpose", f"{name}.Transpose_4", [context], perm=[0, 2, 1, 3])
        return self.op(
            "Reshape", f"{name}.Reshape_3", [back, self.integers(f"{name}.Reshape_3.shape", [0, 0, form.hidden])]
        )

    def layer(self, x: str, name: str, mask: str) -> str:
        hidden, inner = self.form.hidden, self.form.inner
        attention = f"{name}.attention.self"
        quantized = self.input(x, f"{attention}.query", hidden)
        context = self.attention(quantized, attention, mask)
        if self.form.inputs:  # a smoothing factor here is part of the value's weights
            context = self.pair(context, f"{name}.attention.output.dense.input_quantizer")
        output = self.linear(context, f"{name}.attention.output.dense", (hidden, hidden))
        added = self.residual(output, x, quantized, f"{name}.attention.output", f"{attention}.query")
        x = self.norm(added, f"{name}.attention.output.LayerNorm")
        quantized = self.input(x, f"{name}.intermediate.dense", hidden)
        up = self.linear(quantized, f"{name}.intermediate.dense", (hidden, inner))
        activated = self.activation(up, f"{name}.intermediate.intermediate_act_fn")
        activated = self.input(activated, f"{name}.output.dense", inner)
        down = self.linear(activated, f"{name}.output.dense", (inner, hidden))
        added = self.residual(down, x, quantized, f"{name}.output", f"{name}.intermediate.dense")
        return self.norm(added, f"{name}.output.LayerNorm")

    def embeddings(self) -> str:
        name, width = "bert.embeddings", self.form.embedding or self.form.hidden
        table = partial(self.rng.normal, 0, 1)
        words = self.floats(f"{name}.word_embeddings.weight", table((VOCABULARY, width)))
        places = self.floats(f"{name}.position_embeddings.weight", table((self.form.positions, width)))
        embedded = self.op("Gather", f"{name}.word_embeddings.Gather", [words, "input_ids"])
        if self.form.types:
            kinds = self.floats(f"{name}.token_type_embeddings.weight", table((2, width)))
            kind = self.op("Gather", f"{name}.token_type_embeddings.Gather", [kinds, "token_type_ids"])
            embedded = self.op("Add", f"{name}.Add", [embedded, kind])
        place = self.op("Gather", f"{name}.position_embeddings.Gather", [places, self.places(name)])
        embedded = self.norm(self.op("Add", f"{name}.Add_1", [embedded, place]), f"{name}.LayerNorm", width)
        if self.form.embedding is None:
            return embedded
        weight = self.floats(f"{name}.projection.weight", self.rng.normal(0, 0.1, (width, self.form.hidden)))
        bias = self.floats(f"{name}.projection.bias", self.rng.normal(0, 0.1, self.form.hidden))
        product = self.op("MatMul", f"{name}.projection.MatMul", [embedded, weight])
        return self.op("Add", f"{name}.projection.Add", [product, bias])

    def places(self, name: str) -> str:
        """Position ids: [1, sequence] counted, or [batch, sequence] summed over the mask."""
        if self.form.summed:
            total = self.op("CumSum", f"{name}.CumSum", ["attention_mask", self.integers(f"{name}.axis", 1)])
            real = self.op("Mul", f"{name}.Mul", [total, "attention_mask"])
            return self.op("Add", f"{name}.Add_2", [real, self.integers(f"{name}.padding", 1)])
        ids = self.store(f"{name}.position_ids", [list(range(self.form.positions))], TensorProto.INT64)
        start, axis = self.integers(f"{name}.Slice.input_1", [0]), self.integers(f"{name}.Slice.input_3", [1])
        length = self.op("Shape", "graph.Shape_1", ["token_type_ids"], start=1, end=2)
        return self.op("Slice", f"{name}.Slice", [ids, start, length, axis, axis])

    def relative(self, mask: str, name: str) -> str:
        """The mask with a bias of every head for every distance: [1, heads, sequence, sequence]."""
        places = self.places(name)
        columns, rows = (
            self.op("Unsqueeze", f"{name}.Unsqueeze_{axis}", [places, self.integers(f"{name}.axis_{axis}", [axis])])
            for axis in (1, 2)
        )
        distance = self.op("Abs", f"{name}.Abs", [self.op("Sub", f"{name}.Sub", [columns, rows])])
        bucket = self.op("Min", f"{name}.Min", [distance, self.integers(f"{name}.most", 31)])
        table = self.floats(f"{name}.weight", self.rng.normal(0, 1, (32, self.form.heads)))
        bias = self.op(
            "Transpose", f"{name}.Transpose", [self.op("Gather", f"{name}.Gather", [table, bucket])], perm=[0, 3, 1, 2]
        )
        return self.op("Add", f"{name}.Add", [mask, bias])

    def masked(self) -> str:
        """[batch, 1, 1, sequence]: what is added to the scores, or where they are kept."""
        axes = self.integers("bert.Unsqueeze.input_1", [1, 2])
        if self.form.mask == "product":
            wide = self.op("Unsqueeze", "bert.Unsqueeze", ["attention_mask", axes])
            inverse = [self.floats("one", 1), self.op("Cast", "bert.Cast", [wide], to=TYPES[self.form.body])]
            return self.op("Mul", "bert.Mul", [self.op("Sub", "bert.Sub", inverse), self.floats("low", LOWEST)])
        kept = self.op("Cast", "bert.Cast", ["attention_mask"], to=TensorProto.BOOL)
        wide = self.op("Unsqueeze", "bert.Unsqueeze", [kept, axes])
        if self.form.mask == "scores":
            return wide
        values = [self.floats("bert.Where.input_1", 0), self.floats("bert.Where.input_2", LOWEST)]
        return self.op("Where", "bert.Where", [wide, *values])

    def head(self, x: str) -> str:
        hidden = self.form.hidden
        first = self.op("Gather", "bert.pooler.Gather", [x, self.integers("bert.pooler.Gather.input_1", 0)], axis=1)
        for name, size in (("bert.pooler.dense", hidden), ("classifier", LABELS)):
            weight = self.floats(f"{name}.weight", self.rng.normal(0, 0.1, (size, hidden)))
            bias = self.floats(f"{name}.bias", self.rng.normal(0, 0.1, size))
            first = self.op("Gemm", f"{name}.Gemm", [first, weight, bias], transB=1)
            if size == hidden:
                first = self.op("Tanh", "bert.pooler.activation.Tanh", [first])
        return first

    def model(self) -> onnx.ModelProto:
        x, mask = self.embeddings(), self.masked()
        if self.form.relative:
            mask = self.relative(mask, "bert.relative")
        for number in range(self.form.layers):
            x = self.layer(x, f"bert.encoder.layer.{number}", mask)
        self.head(x)
        self.nodes[-1].output[0] = "logits"
        logits = helper.make_tensor_value_info("logits", self.kind, ["batch", LABELS])
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ]
        graph = helper.make_graph(self.nodes, "qdq", inputs, [logits], list(self.initializers.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.form.opset)], ir_version=IR_VERSION)
