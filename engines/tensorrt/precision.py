"""Read from the engine inspector which matrix multiplications of a built plan really run in INT8.

The inspector describes every kernel of the engine: its inputs with their types, its tactic, and in "Metadata" the ONNX
nodes it came from, as ``[ONNX Layer: name]``. TensorRT 10 writes a tensor's type as ``"Format/Datatype": "Int8"`` (for
older kernels a phrase such as "Row major Int8 format"), TensorRT 11 as ``"Datatype": "Int8"`` beside ``"Format"``.

Rules, strict where the inspector is silent:

* a kernel whose tactic names its operand types (``…_i8i8_i8i32_…``) has those;
* otherwise a multiplication is INT8 when the first input of its kernel, the activation, is; when further float tensors
  enter the kernel too, that is a conclusion and the name is put in `Int8Report.inferred`;
* a fused attention kernel, one kernel for both multiplications, reports one set of inputs: INT8 when q, k and v all
  are, and always inferred, because the type of the probabilities inside never shows;
* anything else is not INT8, and the reason quotes what the inspector says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.precision import Verdict, assemble
from engines.types import Int8Report, MatmulNames, NotInt8
from qdq.artifacts import read_json
from qdq.errors import BuildError

ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]+)\]")  # several are joined with \x1e or \x1f, or by nothing
MYELIN_SUFFIX = re.compile(r"_myl\d+_\d+$")
DATATYPE = re.compile(r"uint8|int8|int4|int32|int64|bool|fp8|fp4|bfloat16|bf16|half|fp16|float|fp32", re.IGNORECASE)
# Kernel libraries spell operand and accumulator types into tactic names: sm80_xmma_gemm_i8i8_i8i32_f32_…,
# sm80_xmma_gemm_f16f16_f16f32_f32_…, cutlass_…_i16832gemm_s8_…. Generated (Myelin) kernels carry only a hash.
INT8_TACTIC = re.compile(r"(?<![a-z0-9])([is]8[a-z0-9]*_[is]8[is]32|i8i8|s8s8|i\d{5}gemm_s8|int8)", re.IGNORECASE)
FLOAT_TACTIC = re.compile(r"(?<![a-z0-9])(t?f32|b?f16|e4m3)[a-z0-9]*_(t?f32|b?f16|e4m3)b?f(16|32)_", re.IGNORECASE)
FLOAT_TYPES = frozenset({"half", "fp16", "float", "fp32", "bf16", "bfloat16"})
ATTENTION = re.compile(r"mha|fused_attention|iattention", re.IGNORECASE)


@dataclass(frozen=True)
class Kernel:
    """One layer of the engine, reduced to what the rules need."""

    name: str
    kind: str
    tactic: str
    nodes: frozenset[str]  # ONNX nodes it came from
    types: tuple[str, ...]  # lower-case type of every input, "unknown" where the inspector has none
    operands: tuple[bool, ...]  # per input: more than one element per row, so it is no scale or alpha scalar


def load_layer_info(path: Path) -> Mapping[str, Any]:
    """The inspector's JSON. Raises DeployError when missing or damaged, BuildError when it is no layer information."""
    value = read_json(path)
    if not isinstance(value, Mapping) or not isinstance(value.get("Layers"), list):
        raise BuildError(f"{path} has no list of layers; write it with build_engine.py or trtexec --exportLayerInfo")
    return value


def read_back(
    layer_info: Mapping[str, Any],
    linears: Sequence[str],
    matmuls: Sequence[str],
    floats: Sequence[NotInt8] = (),
    unquantized: Sequence[NotInt8] = (),
) -> Int8Report:
    """Count what runs in INT8. The arguments after `layer_info` are those of `MatmulNames`.

    Raises BuildError when the engine was built without DETAILED profiling verbosity, so that types are unknown.
    """
    kernels = [_kernel(layer) for layer in layer_info["Layers"]]
    attention = frozenset(matmuls)
    names = MatmulNames(tuple(linears), tuple(matmuls), tuple(floats), tuple(unquantized))
    return assemble(names, lambda node: Verdict(*_precision(node, kernels, attention)))


def _kernel(layer: Any) -> Kernel:
    if not isinstance(layer, Mapping):
        raise BuildError(
            "the layer information holds only layer names; build with DETAILED profiling verbosity, as build_engine.py "
            "does (trtexec: --profilingVerbosity=detailed)"
        )
    name = str(layer.get("Name", ""))
    inputs = [tensor for tensor in layer.get("Inputs") or [] if isinstance(tensor, Mapping)]
    nodes = frozenset(ONNX_LAYER.findall(str(layer.get("Metadata", ""))))
    return Kernel(
        name=name,
        kind=str(layer.get("LayerType", "")),
        tactic=str(layer.get("TacticName", "")),
        nodes=nodes or _nodes_in_name(name),
        types=tuple(_datatype(tensor) for tensor in inputs),
        operands=tuple(_is_operand(tensor) for tensor in inputs),
    )


def _nodes_in_name(name: str) -> frozenset[str]:
    """Without metadata the name is the only trace: node names joined by "+", dots turned to "_" by Myelin."""
    return frozenset(part.strip().replace(".", "_") for part in MYELIN_SUFFIX.sub("", name).split("+"))


def _datatype(tensor: Mapping[str, Any]) -> str:
    """Type of a tensor in both spellings, lower case."""
    spelled = {key.lower(): str(value) for key, value in tensor.items()}
    text = spelled.get("datatype") or spelled.get("format/datatype", "")
    match = DATATYPE.search(text)
    return match.group().lower() if match else "unknown"


def _is_operand(tensor: Mapping[str, Any]) -> bool:
    """Two axes or more that are not 1: a matrix, not a bias, a mask row, a scale or GEMM's alpha and beta."""
    sizes: list[int] = tensor.get("Dimensions") or []
    return sum(size != 1 for size in sizes) >= 2


def _precision(node: str, kernels: Sequence[Kernel], attention: frozenset[str]) -> tuple[bool, bool, str]:
    """(runs in INT8, inferred, reason when not) of one node."""
    mangled = node.replace(".", "_")
    named = [kernel for kernel in kernels if node in kernel.nodes or mangled in kernel.nodes]
    if not named:
        return False, False, _missing(node, kernels)
    # A node can leave several kernels, such as a format copy; the one that multiplies has the most to say.
    kernel = max(named, key=_multiplies)
    if node in attention and (len(kernel.nodes & attention) > 1 or ATTENTION.search(f"{kernel.name} {kernel.tactic}")):
        return _fused_attention(kernel)
    return _multiplication(kernel)


def _multiplies(kernel: Kernel) -> int:
    """How much a kernel looks like the one that multiplies; copies and pointwise kernels come last."""
    text = f"{kernel.kind} {kernel.tactic} {kernel.name}".lower()
    return sum(word in text for word in ("gemm", "matmul", "matrixmultiply", "mha", "conv")) - (
        2 if kernel.kind.lower() in {"reformat", "noop", "constant", "shuffle"} else 0
    )


def _multiplication(kernel: Kernel) -> tuple[bool, bool, str]:
    if INT8_TACTIC.search(kernel.tactic):
        return True, False, ""
    if FLOAT_TACTIC.search(kernel.tactic) or not kernel.types or kernel.types[0] != "int8":
        return False, False, _says(kernel)
    pairs = zip(kernel.types, kernel.operands, strict=True)
    return True, any(kind in FLOAT_TYPES and operand for kind, operand in pairs), ""


def _fused_attention(kernel: Kernel) -> tuple[bool, bool, str]:
    int8_inputs = kernel.types.count("int8")
    if int8_inputs >= 3 or (int8_inputs > 0 and int8_inputs == len(kernel.types)):
        return True, True, ""
    return False, False, f"fused attention whose q, k and v are not all INT8: {_says(kernel)}"


def _says(kernel: Kernel) -> str:
    """What the inspector says of a kernel, as a reason."""
    types = ", ".join(kernel.types) or "none listed"
    tactic = f", tactic {kernel.tactic}" if kernel.tactic else ""
    return f"engine layer '{kernel.name}' takes {types}{tactic}"


def _missing(node: str, kernels: Sequence[Kernel]) -> str:
    block = next((kernel.name for kernel in kernels if "ForeignNode" in kernel.name), None)
    if block is not None:
        return f"hidden in the block '{block}', which reports no precision per node"
    return f"no engine layer names '{node}'"
