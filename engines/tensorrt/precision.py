"""Read from the engine inspector which matrix multiplications of a built plan really run in INT8.

Rules, strict where the inspector is silent:

* a kernel whose tactic names its operand types (``…_i8i8_i8i32_…``) has those;
* otherwise a multiplication is INT8 when the first input of its kernel, the activation, is; when further float tensors
  enter the kernel too, that is a conclusion and the name is put in `Int8Report.inferred`;
* a fused attention kernel, one kernel for both multiplications, reports one set of inputs: INT8 when q, k and v all
  are, and always inferred, because the type of the probabilities inside never shows;
* anything else is not INT8, and the reason quotes what the inspector says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engines.precision import Verdict, assemble
from engines.tensorrt.kernels import (
    ATTENTION,
    FLOATS,
    INT8_TACTIC,
    Kernel,
    attention_is_int8,
    kernel_of,
    kernels_of,
    missing,
    multiplication_precision,
)
from engines.types import Int8Report, MatmulNames


def read_back(layer_info: Mapping[str, Any], names: MatmulNames) -> Int8Report:
    """Count the multiplications of `names` that run in INT8.

    Raises BuildError when the engine was built without DETAILED profiling verbosity, so that types are unknown.
    """
    kernels = kernels_of(layer_info)
    attention = frozenset(names.matmuls)
    return assemble(names, lambda node: _precision(node, kernels, attention))


def _precision(node: str, kernels: Sequence[Kernel], attention: frozenset[str]) -> Verdict:
    kernel = kernel_of(node, kernels)
    if kernel is None:
        return Verdict(False, False, missing(node, kernels))
    both = len(attention.intersection(kernel.nodes)) > 1
    if node in attention and (both or ATTENTION.search(f"{kernel.name} {kernel.tactic}")):
        if attention_is_int8(kernel):
            return Verdict(True, True, "")
        return Verdict(False, False, f"fused attention whose q, k and v are not all INT8: {kernel.says()}")
    if multiplication_precision(kernel) != "int8":
        return Verdict(False, False, kernel.says())
    told = INT8_TACTIC.search(kernel.tactic) is not None
    floats_enter = any(tensor.precision in FLOATS and tensor.is_matrix for tensor in kernel.inputs)
    return Verdict(True, floats_enter and not told, "")
