"""The layers of a built plan as the engine inspector describes them, read from the spellings of TensorRT 10 and 11.

Every layer has a name, a type, inputs and outputs with their data types, a tactic, and in "Metadata" the ONNX nodes it
came from, as ``[ONNX Layer: name]``. TensorRT 10 writes a tensor's type as ``"Format/Datatype": "Int8"`` (for older
kernels a phrase such as "Row major Int8 format") and the engine's tensors as ``"Bindings"``, a list of names;
TensorRT 11 writes ``"Datatype"`` beside ``"Format"``, ``"I/O Tensors"`` as objects, and weights under ``"Constants"``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qdq.base.artifacts import read_json
from qdq.errors import BuildError

ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]+)\]")  # several are joined with \x1e or \x1f, or by nothing
MYELIN_SUFFIX = re.compile(r"_myl\d+_\d+$")
DATATYPE = re.compile(r"uint8|int8|int4|int32|int64|bool|fp8|fp4|bfloat16|bf16|half|fp16|float|fp32", re.IGNORECASE)
# Kernel libraries spell operand and accumulator types into tactic names: sm80_xmma_gemm_i8i8_i8i32_f32_…,
# sm80_xmma_gemm_f16f16_f16f32_f32_…, cutlass_…_i16832gemm_s8_…. Generated (Myelin) kernels carry only a hash.
INT8_TACTIC = re.compile(r"(?<![a-z0-9])([is]8[a-z0-9]*_[is]8[is]32|i8i8|s8s8|i\d{5}gemm_s8|int8)", re.IGNORECASE)
FLOAT_TACTIC = re.compile(r"(?<![a-z0-9])(t?f32|b?f16|e4m3)[a-z0-9]*_(t?f32|b?f16|e4m3)b?f(16|32)_", re.IGNORECASE)
ATTENTION = re.compile(r"mha|fused_attention|flash_?attention|iattention", re.IGNORECASE)
MULTIPLICATION_NODE = re.compile(r"(matmul|gemm|einsum)(_\d+)?$", re.IGNORECASE)
MULTIPLIES = ("gemm", "matmul", "matrixmultiply", "matrix_multiply", "mha", "conv")
MOVES_DATA = frozenset({"reformat", "noop", "constant", "shuffle"})  # layer types that compute nothing
SPELLINGS = {"half": "fp16", "float": "fp32", "bfloat16": "bf16"}
FLOATS = frozenset({"fp16", "bf16", "fp32"})


@dataclass(frozen=True)
class KernelTensor:
    """An input or output of an engine layer. `datatype` is lower case, "unknown" where the inspector has none."""

    name: str
    datatype: str  # as spelled: half, fp16, int8, …
    sizes: tuple[int, ...]  # negative for a dynamic axis

    @property
    def precision(self) -> str:
        """One spelling per type: int8, fp16, bf16, fp32, …"""
        return SPELLINGS.get(self.datatype, self.datatype)

    @property
    def is_matrix(self) -> bool:
        """Two axes or more that are not 1: no bias, mask row, scale, nor a GEMM's alpha and beta."""
        return sum(size != 1 for size in self.sizes) >= 2

    @property
    def is_activation(self) -> bool:
        """A matrix that changes with the input. Of fixed shapes only a batch above 1 can tell it from a weight."""
        dynamic = any(size < 0 for size in self.sizes)
        return self.is_matrix and (dynamic or (len(self.sizes) > 2 and self.sizes[0] != 1))


@dataclass(frozen=True)
class Kernel:
    """One layer of the engine."""

    name: str
    kind: str
    tactic: str
    nodes: tuple[str, ...]  # ONNX nodes it came from
    inputs: tuple[KernelTensor, ...]
    outputs: tuple[KernelTensor, ...]

    @cached_property
    def types(self) -> tuple[str, ...]:
        """Data type of every input as the inspector spells it."""
        return tuple(tensor.datatype for tensor in self.inputs)

    @property
    def is_attention(self) -> bool:
        """True for one fused attention: it says so, or both multiplications of an attention are in it."""
        named = ATTENTION.search(f"{self.name} {self.tactic}") is not None
        softmax = any("softmax" in node.lower() for node in self.nodes)
        multiplications = sum(MULTIPLICATION_NODE.search(node) is not None for node in self.nodes)
        return named or (softmax and multiplications > 1)

    def says(self) -> str:
        """Quote the inspector, for a reason."""
        types = ", ".join(self.types) or "none listed"
        tactic = f", tactic {self.tactic}" if self.tactic else ""
        return f"engine layer '{self.name}' takes {types}{tactic}"


def load_layer_info(path: Path) -> Mapping[str, Any]:
    """The inspector's JSON. Raises DeployError when missing or damaged, BuildError when it is no layer information."""
    value = read_json(path)
    if not isinstance(value, Mapping) or not isinstance(value.get("Layers"), list):
        raise BuildError(f"{path} has no list of layers; write it with build_engine.py or trtexec --exportLayerInfo")
    return value


def kernels_of(layer_info: Mapping[str, Any]) -> tuple[Kernel, ...]:
    """Every layer of the engine, in the engine's order.

    Raises BuildError when the engine was built without DETAILED profiling verbosity, so that types are unknown.
    """
    return tuple(_kernel(layer) for layer in layer_info["Layers"])


def io_names(layer_info: Mapping[str, Any]) -> frozenset[str]:
    """Names of the engine's own inputs and outputs."""
    tensors = layer_info.get("I/O Tensors") or layer_info.get("Bindings") or []
    return frozenset(str(tensor.get("Name")) if isinstance(tensor, Mapping) else str(tensor) for tensor in tensors)


def _kernel(layer: Any) -> Kernel:
    if not isinstance(layer, Mapping):
        raise BuildError(
            "the layer information holds only layer names; build with DETAILED profiling verbosity, as build_engine.py "
            "does (trtexec: --profilingVerbosity=detailed)"
        )
    name = str(layer.get("Name", ""))
    nodes = tuple(dict.fromkeys(ONNX_LAYER.findall(str(layer.get("Metadata", "")))))
    return Kernel(
        name=name,
        kind=str(layer.get("LayerType", "")),
        tactic=str(layer.get("TacticName", "")),
        nodes=nodes or _nodes_in_name(name),
        inputs=_tensors(layer.get("Inputs")),
        outputs=_tensors(layer.get("Outputs")),
    )


def _nodes_in_name(name: str) -> tuple[str, ...]:
    """Without metadata the name is the only trace: node names joined by "+", dots turned to "_" by Myelin."""
    return tuple(part.strip().replace(".", "_") for part in MYELIN_SUFFIX.sub("", name).split("+"))


def _tensors(listed: Any) -> tuple[KernelTensor, ...]:
    found = []
    for tensor in listed if isinstance(listed, list) else []:
        if isinstance(tensor, Mapping):
            sizes = tensor.get("Dimensions") or []
            found.append(KernelTensor(str(tensor.get("Name", "")), _datatype(tensor), tuple(map(int, sizes))))
    return tuple(found)


def _datatype(tensor: Mapping[str, Any]) -> str:
    """Type of a tensor in both spellings, lower case."""
    spelled = {key.lower(): str(value) for key, value in tensor.items()}
    text = spelled.get("datatype") or spelled.get("format/datatype", "")
    match = DATATYPE.search(text)
    return match.group().lower() if match else "unknown"


def kernel_of(node: str, kernels: Iterable[Kernel]) -> Kernel | None:
    """The layer that computes an ONNX node: of all that name it the one most like a multiplication, copies last."""
    mangled = node.replace(".", "_")
    named = [kernel for kernel in kernels if node in kernel.nodes or mangled in kernel.nodes]
    return max(named, key=_multiplies) if named else None


def _multiplies(kernel: Kernel) -> int:
    text = f"{kernel.kind} {kernel.tactic} {kernel.name}".lower()
    return sum(word in text for word in MULTIPLIES) - (2 if kernel.kind.lower() in MOVES_DATA else 0)


def missing(node: str, kernels: Sequence[Kernel]) -> str:
    """Return the reason that no layer was found for a node."""
    block = next((kernel.name for kernel in kernels if "ForeignNode" in kernel.name), None)
    if block is not None:
        return f"hidden in the block '{block}', which reports no precision per node"
    return f"no engine layer names '{node}'"


def multiplication_precision(kernel: Kernel) -> str:
    """Type of the operands a kernel multiplies: its tactic's where that names them, else its first input's."""
    if INT8_TACTIC.search(kernel.tactic):
        return "int8"
    first = kernel.inputs[0].precision if kernel.inputs else "unknown"
    if FLOAT_TACTIC.search(kernel.tactic):
        return first if first in FLOATS else "float"
    return first


def attention_is_int8(kernel: Kernel) -> bool:
    """True when q, k and v all enter a fused attention as INT8; the type of the probabilities inside never shows."""
    int8_inputs = kernel.types.count("int8")
    return int8_inputs >= 3 or (int8_inputs > 0 and int8_inputs == len(kernel.types))
