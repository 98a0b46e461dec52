"""Compare a built engine with what was predicted for it, and name every difference.

A prediction says of each layer of the graph what it should become: an INT8 or float GEMM, one fused attention in INT8
or float, a residual add whose skip is read as INT8. The engine inspector says what TensorRT made of it. Besides, an
engine has layers nobody predicts, which only copy or convert: each costs a pass over memory, so they are named too,
except at the engine's own inputs and outputs, where token ids and results change their type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from engines.tensorrt.kernels import (
    FLOATS,
    MULTIPLICATION_NODE,
    Kernel,
    attention_is_int8,
    io_names,
    kernel_of,
    kernels_of,
    missing,
    multiplication_precision,
)

# Generated kernels are named after what they do, in words of three or four letters: __myl_MoveTran_myl0_7.
MOVE_KERNEL = re.compile(r"^__my[el]\d*_(bb\d+_\d+_)?(Move?|Copy?|Resh?|Tran?|Cast?)+(_|$)")
QUANTIZE_NODE = re.compile(r"quantize(linear)?(_\d+)?$", re.IGNORECASE)


class PredictedLayer(Protocol):
    """One layer of a predicted fusion map; the linter's records fit.

    kind: int8_gemm, float_gemm, int8_fused_attention, float_fused_attention, unfused (attention) or residual_add;
    others are not compared. name: label of its ONNX node, for an attention the Softmax's. precision: int8, fp16, bf16
    or fp32.
    """

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def precision(self) -> str: ...


Judge = Callable[[PredictedLayer, Kernel], str | None]  # the engine's layer where it is not what was predicted


@dataclass(frozen=True)
class Difference:
    """One place where the engine is not what was predicted.

    kind: gemm, attention, residual or copy. name: label of the predicted layer's ONNX node, of a copy the engine
    layer's.
    """

    kind: str
    name: str
    predicted: str
    found: str


@dataclass(frozen=True)
class Coverage:
    """Of the layers predicted to run in INT8, how many do."""

    kind: str  # INT8 GEMM, INT8 fused attention, INT8 residual add
    running: int
    predicted: int


@dataclass(frozen=True)
class Verdict:
    """Result of comparing an engine with its prediction."""

    coverage: tuple[Coverage, ...]
    differences: tuple[Difference, ...]

    @property
    def as_predicted(self) -> bool:
        """True when nothing differs."""
        return not self.differences

    def as_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {
            "as_predicted": self.as_predicted,
            "coverage": [asdict(item) for item in self.coverage],
            "differences": [asdict(item) for item in self.differences],
        }


def verdict(layer_info: Mapping[str, Any], predicted: Sequence[PredictedLayer]) -> Verdict:
    """Compare the inspector's layer information with a predicted fusion map.

    Raises BuildError when the engine was built without DETAILED profiling verbosity.
    """
    kernels = kernels_of(layer_info)
    coverage: list[Coverage] = []
    differences: list[Difference] = []
    for title, kind, judge in COMPARISONS:
        layers = [layer for layer in predicted if layer.kind in PREDICTIONS[kind]]
        found = [difference for layer in layers if (difference := _difference(kind, judge, layer, kernels))]
        differing = {difference.name for difference in found}
        int8_kind = next(iter(PREDICTIONS[kind]))
        in_int8 = [layer.name for layer in layers if layer.kind == int8_kind and layer.precision == "int8"]
        coverage.append(Coverage(title, sum(name not in differing for name in in_int8), len(in_int8)))
        differences += found
    return Verdict(tuple(coverage), (*differences, *_copies(kernels, io_names(layer_info))))


PREDICTIONS = {  # by kind of difference: kinds of predicted layers, the INT8 one first, and what each says
    "gemm": {"int8_gemm": "{} GEMM", "float_gemm": "{} GEMM"},
    "attention": {
        "int8_fused_attention": "one fused attention in INT8",
        "float_fused_attention": "one fused attention in float",
        "unfused": "an attention of separate kernels",
    },
    "residual": {"residual_add": "an add that reads an INT8 skip"},
}


def _difference(kind: str, judge: Judge, layer: PredictedLayer, kernels: Sequence[Kernel]) -> Difference | None:
    if layer.kind == "residual_add" and layer.precision != "int8":
        return None
    kernel = kernel_of(layer.name, kernels)
    found = missing(layer.name, kernels) if kernel is None else judge(layer, kernel)
    predicted = PREDICTIONS[kind][layer.kind].format(layer.precision.upper())
    return None if found is None else Difference(kind, layer.name, predicted, found)


def _gemm(layer: PredictedLayer, kernel: Kernel) -> str | None:
    runs = multiplication_precision(kernel)
    if runs == layer.precision or (runs == "float" and layer.precision in FLOATS):
        return None
    return f"runs in {runs.upper()}: {kernel.says()}"


def _attention(layer: PredictedLayer, kernel: Kernel) -> str | None:
    if not kernel.is_attention:
        return None if layer.kind == "unfused" else f"separate kernels, the softmax in engine layer '{kernel.name}'"
    int8 = attention_is_int8(kernel)
    expected = {"int8_fused_attention": int8, "float_fused_attention": not int8, "unfused": False}
    return None if expected[layer.kind] else f"fused in {'INT8' if int8 else 'float'}: {kernel.says()}"


def _residual(_layer: PredictedLayer, kernel: Kernel) -> str | None:
    """A float skip operand: the add was to read codes. The branch may be float where another kernel computed it."""
    activations = [tensor for tensor in kernel.inputs if tensor.is_activation]
    floats = sum(tensor.precision in FLOATS for tensor in activations)
    branch = not any(MULTIPLICATION_NODE.search(node) for node in kernel.nodes)
    as_codes = floats <= branch and any(tensor.precision == "int8" for tensor in activations)
    return None if as_codes else f"a float residual: {kernel.says()}"


def _copies(kernels: Sequence[Kernel], outside: frozenset[str]) -> list[Difference]:
    found = []
    for kernel in kernels:
        tensors = (*kernel.inputs, *kernel.outputs)
        if not _only_moves(kernel) or any(tensor.name in outside for tensor in tensors):
            continue
        if not any(tensor.is_activation and tensor.precision in FLOATS | {"int8"} for tensor in tensors):
            continue  # shapes, masks and constants: a few bytes
        change = " to ".join(tensor.precision.upper() for tensor in (*kernel.inputs[:1], *kernel.outputs[:1]))
        found.append(Difference("copy", kernel.name, "no layer", f"copies or converts {change}"))
    return found


def _only_moves(kernel: Kernel) -> bool:
    """By its type, its name, or because nothing but quantizers of the graph ended up in it."""
    by_type = kernel.kind.lower() == "reformat" or kernel.name.startswith("Reformatting CopyNode")
    only_quantizers = all(QUANTIZE_NODE.search(node) for node in kernel.nodes)
    return by_type or only_quantizers or MOVE_KERNEL.match(kernel.name) is not None


COMPARISONS: tuple[tuple[str, str, Judge], ...] = (  # title of the coverage, kind of difference, comparison
    ("INT8 GEMM", "gemm", _gemm),
    ("INT8 fused attention", "attention", _attention),
    ("INT8 residual add", "residual", _residual),
)
