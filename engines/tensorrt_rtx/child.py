"""Child process of `Compiler`: parse and compile ONNX files with TensorRT for RTX, one request a line.

Run as a file, with the standard library and NVIDIA's bindings only: whatever the libraries do here cannot harm the
parent. Requests and replies are lines of JSON on the file descriptors the process was started with; what a library
prints goes to standard error. See `serve` for their keys.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # prctl(2): a signal for the child when its parent ends
TABLE = "Layers:"  # head of the builder's message that lists the engine's layers
COUNT = "After reformat layers:"  # the builder's own count of what the engine is made of
WORST_KEPT = 2  # ILogger severities: internal error, error, warning; a higher one is information
# The plan holds its compiled graph as text, in which a tensor is declared before the GEMM that reads it.
STATEMENT = re.compile(rb"\n  (?:(?:sub_)?tensor|(function|runtime_fusion|fully_connected))=\{ ([^\n]*)")
TYPE = re.compile(rb' name="([^"]*)".* type=(\w+)')
TENSORS = re.compile(rb' output=\{"([^"]*)" \} input=\{"([^"]*)" "([^"]*)"')
ALPHA = re.compile(rb" alpha=([0-9A-F]+) scalar_alpha_from_opnd=(true|false) ")
NODES = re.compile(rb'\[ONNX Layer: ([^\x1f]*)\](?=\x1f|" )')
# The plan holds the source of its generated kernels, too. That of a fused attention names the instructions of its two
# products, either in front of the function or inside, depending on the template it was made from.
FUNCTION = re.compile(rb'extern "C" __global__ void (\w+)\(')
IN_FRONT = re.compile(rb"Kernel_traits = fmha::\w+<\s*fmha::(\w+),\s*fmha::(\w+),")
INSIDE = re.compile(rb"xmma::(\w+)<\w*>::template Cta_tile\w*<")


def preload(folder: str) -> None:
    """Load the two libraries of `folder` so that the bindings find them by their sonames, without LD_LIBRARY_PATH."""
    for stem in ("libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so"):
        found = sorted(Path(folder).glob(f"{stem}*"))
        if not found:
            raise OSError(f"{stem} is not in {folder}")
        ctypes.CDLL(str(found[0]), mode=ctypes.RTLD_GLOBAL)


def compile_one(trt: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Answer one request; the keys are those of `serve`."""
    kept: list[tuple[int, str]] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= WORST_KEPT or message.startswith((TABLE, COUNT)):
                kept.append((int(severity), message))

    # Parse; with any error there is nothing to build.
    started = time.monotonic()
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse_from_file(request["model"])
    errors = [parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
    if parsed and network.num_outputs == 0:  # an empty file is a graph without nodes
        parsed = False
        errors = [{"node": "", "index": -1, "operator": "", "reason": "it has no outputs", "code": ""}]
    reply: dict[str, Any] = {"parsed": parsed, "errors": errors}
    # Build, and read what only the plan tells.
    if parsed and request["shapes"] is not None:
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        set_capabilities(trt, config, request["capabilities"])
        reply["axes"] = set_shapes(builder, network, config, request["shapes"])
        plan = builder.build_serialized_network(network, config)
        reply["plan_bytes"] = None if plan is None else plan.nbytes
        if plan is not None:
            reply |= read_plan(memoryview(plan))
            if request["plan"]:
                write_whole(request["plan"], plan)
    reply["seconds"] = time.monotonic() - started
    reply["peak_mb"] = peak_mb()
    reply["log"] = kept
    return reply


def peak_mb() -> float:
    """Largest resident memory of this program in MiB; getrusage's also counts that of the process that started it."""
    with Path("/proc/self/status").open(encoding="utf-8") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))


def parser_error(error: Any) -> dict[str, Any]:
    """One refusal of the parser: its node by name and by position in the file, operator and reason."""
    return {
        "node": error.node_name(),
        "index": error.node(),
        "operator": error.node_operator(),
        "reason": error.desc(),
        "code": error.code().name,
    }


def set_capabilities(trt: Any, config: Any, capabilities: list[int]) -> None:
    """One plan for all of `capabilities`, which the parent has checked against what this version knows."""
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), index)


def set_shapes(builder: Any, network: Any, config: Any, shapes: dict[str, list[int]]) -> list[str]:
    """Give every dynamic axis of every input its range: one size, or minimum, optimum and maximum.

    Returns which of them the graph leaves open.
    """
    profile = builder.create_optimization_profile()
    dynamic = False
    found = list(dynamic_axes(network, shapes))
    for tensor, axes in found:
        sizes = {axis: shapes[role] for axis, role in axes.items()}
        if all(low == high for low, _, high in sizes.values()):
            tensor.shape = [sizes[axis][1] if axis in sizes else size for axis, size in enumerate(tensor.shape)]
            continue
        ranges = [
            [sizes[axis][which] if axis in sizes else size for axis, size in enumerate(tensor.shape)]
            for which in range(3)
        ]
        profile.set_shape(tensor.name, *ranges)
        dynamic = True
    if dynamic:
        config.add_optimization_profile(profile)
    return sorted({role for _, axes in found for role in axes.values()})


def dynamic_axes(network: Any, shapes: dict[str, list[int]]) -> Iterator[tuple[Any, dict[int, str]]]:
    """Every input with dynamic axes, and what each of them is: one of `shapes`, such as batch, choices or sequence.

    An axis with a name of `shapes` is that. The axes of a [batch, sequence] input name themselves; another input's axis
    of the same name is the same. An axis that no name tells is the batch in front, choices between the two of an input
    [batch, choices, sequence], and the sequence anywhere else.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    roles = {}
    for tensor in inputs:
        if len(tensor.shape) == 2:
            for axis, role in enumerate(("batch", "sequence")):
                if tensor.shape[axis] < 0:
                    roles[tensor.get_dimension_name(axis)] = role
    roles.pop("", None)
    roles |= {name: name for name in shapes}
    for tensor in inputs:
        rank = len(tensor.shape)
        places = {0: "batch", **({1: "choices"} if rank == 3 and tensor.shape[2] < 0 else {})}
        axes = {
            axis: roles.get(tensor.get_dimension_name(axis), places.get(axis, "sequence"))
            for axis, size in enumerate(tensor.shape)
            if size < 0
        }
        if axes:
            yield tensor, axes


def read_plan(plan: Any) -> dict[str, Any]:
    """Statements of the plan's compiled graph: how many launch generated code, and every matrix product ("gemms").

    Of a product: the types of output and operands, its FP32 scale ("alpha"), and the ONNX nodes it computes. A scale
    that the product reads from a tensor is null, and so is everything that the text does not tell.
    """
    types: dict[bytes, str] = {}
    counts = {"function": 0, "runtime_fusion": 0}
    gemms = []
    for statement in STATEMENT.finditer(plan):
        kind, line = statement[1], statement[2]
        # Declarations come before what reads them; other kernels are only counted.
        if kind is None:
            if declared := TYPE.search(line):
                types[declared[1]] = declared[2].decode()
            continue
        if kind != b"fully_connected":
            counts[kind.decode()] += 1
            continue
        alpha, tensors = ALPHA.search(line), TENSORS.search(line)
        fixed = alpha is not None and alpha[2] == b"false"
        gemms.append(
            {
                "nodes": [name.decode(errors="replace") for name in NODES.findall(line)],
                "types": [types.get(name) for name in tensors.groups()] if tensors else [],
                "alpha": struct.unpack(">f", bytes.fromhex(alpha[1].decode().zfill(8)))[0] if alpha and fixed else None,
            }
        )
    return {"gemms": gemms, "statements": counts, "attentions": read_attentions(plan)}


def read_attentions(plan: Any) -> dict[str, list[str]]:
    """Instructions of the products of every fused attention, by the name of its function."""
    functions = list(FUNCTION.finditer(plan))
    ends = [*(function.start() for function in functions[1:]), len(plan)]
    before, found = 0, {}
    for function, end in zip(functions, ends, strict=True):
        if b"_mha_" in function[1]:
            in_front = [name for item in IN_FRONT.finditer(plan, before, function.start()) for name in item.groups()]
            inside = [item[1] for item in INSIDE.finditer(plan, function.start(), end)]
            found[function[1].decode()] = [name.decode() for name in in_front or inside]
        before = function.start()
    return found


def write_whole(path: str, plan: Any) -> None:
    """Write the plan under a temporary name, then rename it: a file of its name is always whole."""
    partial = Path(f"{path}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(plan)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def serve(folder: str) -> None:
    """Answer requests until standard input ends.

    The first line says what this is: {"version", "capabilities"}. A request has model (a path), capabilities, shapes
    (role: [minimum, optimum, maximum]; null only parses) and plan (a path to write to, or null). A reply has parsed,
    errors [{node, index, operator, reason, code}], seconds, peak_mb and log [[severity, message]]; of a graph that was
    built, too, axes, plan_bytes (null when the builder gave up) and what `read_plan` returns. It is only {"failed": a
    sentence} when a file could not be read or written.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    preload(folder)
    import tensorrt_rtx_bindings as trt

    known = [name[2:] for name in trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
    send(answers, {"version": trt.__version__, "capabilities": [int(number) for number in known]})
    for line in sys.stdin:
        try:
            reply = compile_one(trt, json.loads(line))
        except OSError as error:
            reply = {"failed": f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")}
        send(answers, reply)


def send(answers: Any, reply: dict[str, Any]) -> None:
    """Write one line of JSON."""
    answers.write(json.dumps(reply) + "\n")
    answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
