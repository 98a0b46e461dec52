"""NVIDIA's own compiler on any machine: TensorRT for RTX parses and compiles a graph without a GPU.

`parse` says which nodes are refused, `compile_graph` which kernels the engine has, `coverage` which linears and
attentions of the graph run in INT8. A `Compiler` does the same for many graphs in one child process.
"""

from __future__ import annotations

from engines.tensorrt_rtx.build import build, open_plan
from engines.tensorrt_rtx.compiler import Compiler, Shapes, compile_graph, parse
from engines.tensorrt_rtx.coverage import Coverage, coverage
from engines.tensorrt_rtx.kernels import Compiled, Gemm, Kernel, NodeError, Refused, Tensor
from engines.tensorrt_rtx.libraries import installed_version, missing
from engines.tensorrt_rtx.proof import Pair, proof_text, prove

__all__ = [
    "Compiled",
    "Compiler",
    "Coverage",
    "Gemm",
    "Kernel",
    "NodeError",
    "Pair",
    "Refused",
    "Shapes",
    "Tensor",
    "build",
    "compile_graph",
    "coverage",
    "installed_version",
    "missing",
    "open_plan",
    "parse",
    "proof_text",
    "prove",
]
