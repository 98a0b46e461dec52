"""A tiny encoder as an ONNX graph, and what its batch without padding is compared with; built in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from engines.packing import Packing
from export.passes import LowerOptions, lower
from export.unoptimized import open_unoptimized, run

HIDDEN, HEADS, WORDS, PLACES = 16, 2, 60, 40

BLOCK = """
   {p}h = MatMul({x}, {p}wqkv)
   {p}s = Reshape({p}h, {p}to_heads)
   {p}t = Transpose <perm = [2, 0, 3, 1, 4]> ({p}s)
   {p}q = Gather <axis = 0> ({p}t, i0)
   {p}k = Gather <axis = 0> ({p}t, i1)
   {p}v = Gather <axis = 0> ({p}t, i2)
   {p}kt = Transpose <perm = [0, 1, 3, 2]> ({p}k)
   {p}scores = MatMul({p}q, {p}kt)
   {p}masked = Add({p}scores, mask_values)
   {p}probs = Softmax <axis = -1> ({p}masked)
   {p}context = MatMul({p}probs, {p}v)
   {p}back = Transpose <perm = [0, 2, 1, 3]> ({p}context)
   {p}merged = Reshape({p}back, from_heads)
   {p}out = MatMul({p}merged, {p}wo)
   {p}sum = Add({p}out, {x})
   {p}y = LayerNormalization <axis = -1> ({p}sum, norm_scale, norm_bias)
"""


def encoder(path: Path, head: str, outputs: str, positions: str = "columns") -> Path:
    """Two blocks behind word and position embeddings, and the lines `head` that make the outputs of ``last``.

    `positions`: columns, as BERT counts them, or padding, as RoBERTa does with padding id 1.
    """
    rules = {
        "columns": "length = Shape <start = 1, end = 2> (input_ids)\nplaces = Slice(position_ids, zeros, length, ones)",
        "padding": "pads = Equal(input_ids, pad)\nkept = Not(pads)\ncounted = Cast <to = 7> (kept)\n"
        "counts = CumSum(counted, one)\nown = Mul(counts, counted)\nplaces = Add(own, pad)",
    }
    body = f"""
   {rules[positions]}
   words = Gather <axis = 0> (word_table, input_ids)
   where_they_are = Gather <axis = 0> (position_table, places)
   embedded = Add(words, where_they_are)
   x = LayerNormalization <axis = -1> (embedded, norm_scale, norm_bias)
   seen = Cast <to = 9> (attention_mask)
   seen4 = Unsqueeze(seen, middle)
   mask_values = Where(seen4, nothing, far)
{BLOCK.format(p="a", x="x")}{BLOCK.format(p="b", x="ay")}
   last = Identity(by)
   {head}"""
    text = (
        f"encoder (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask) => ({outputs}) {{{body}}}"
    )
    graph = onnx.parser.parse_graph(text)
    for node in graph.node:
        node.name = node.output[0]
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants().items())
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def constants() -> dict[str, NDArray[Any]]:
    """Weights of a fixed seed, and the small constants of the text."""
    random = np.random.default_rng(0)

    def weights(*shape: int) -> NDArray[np.float32]:
        return (random.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

    blocks = {f"{p}wqkv": weights(HIDDEN, 3 * HIDDEN) for p in "ab"} | {f"{p}wo": weights(HIDDEN, HIDDEN) for p in "ab"}
    heads = np.array([0, 0, 3, HEADS, HIDDEN // HEADS])
    return {
        "word_table": weights(WORDS, HIDDEN) * 8,
        "position_table": weights(PLACES, HIDDEN) * 4,
        "position_ids": np.arange(PLACES - 2)[None],
        **blocks,
        **{f"{p}to_heads": heads for p in "ab"},
        "from_heads": np.array([0, 0, HIDDEN]),
        "norm_scale": weights(HIDDEN) + 1,
        "norm_bias": weights(HIDDEN),
        **{f"i{index}": np.array(index) for index in range(3)},
        "zeros": np.array([0]),
        "ones": np.array([1]),
        "one": np.array(1),
        "pad": np.array(1),
        "last_axis": np.array([2]),
        "middle": np.array([1, 2]),
        "nothing": np.float32(0),
        "far": np.float32(-10000),
        "first": np.array(0),
        "head": weights(HIDDEN, 3),
    }


CLASSES = ("row = Gather <axis = 1> (last, first)\nlogits = MatMul(row, head)", "float[batch, 3] logits")
TAGS = ("logits = MatMul(last, head)", "float[batch, sequence, 3] logits")
MEAN = (
    "m = Cast <to = 1> (attention_mask)\nm3 = Unsqueeze(m, last_axis)\nkept_states = Mul(last, m3)\n"
    "total = ReduceSum <keepdims = 0> (kept_states, ones)\ncount = ReduceSum <keepdims = 0> (m3, ones)\n"
    "least = Constant <value_float = 1.0> ()\nsome = Max(count, least)\nsentence_embedding = Div(total, some)",
    f"float[batch, {HIDDEN}] sentence_embedding",
)
HEADS_OF_TASKS = {"classes": CLASSES, "tags": TAGS, "mean": MEAN}


def batch_of(lengths: list[int], columns: int, padding: int = 0, seed: int = 0) -> dict[str, NDArray[np.int32]]:
    """Random ids of texts of `lengths`, padded on the right to `columns`."""
    mask = np.arange(columns) < np.array(lengths)[:, None]
    ids = np.where(mask, np.random.default_rng(seed).integers(5, WORDS, mask.shape), padding)
    return {"input_ids": ids.astype(np.int32), "attention_mask": mask.astype(np.int32)}


def outputs_of(path: Path, feeds: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Outputs by name, node by node as written."""
    names = [value.name for value in onnx.load(path).graph.output]
    return dict(zip(names, run(open_unoptimized(str(path), path.parent), feeds, names), strict=True))


def lowered(source: Path, form: Any, row: int = 24, texts: int = 16) -> tuple[Path, Packing]:
    """The graph for TensorRT in a form, with an FP32 body so that its arithmetic is the padded graph's."""
    folder = source.parent / form
    report = lower(source, "tensorrt", folder, options=LowerOptions("fp32", form=form))
    facts = next(step["facts"] for step in report["passes"] if "facts" in step)
    inputs = [value.name for value in onnx.load(folder / "model.onnx").graph.input]
    return folder / "model.onnx", Packing(**facts, inputs=inputs, row=row, texts=texts, rows=3, tokens=40)
