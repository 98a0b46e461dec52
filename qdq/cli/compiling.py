"""NVIDIA's compiler for `qdq check --compile`: its account of a file, in the words that the linter compares with."""

from __future__ import annotations

import re
from pathlib import Path

from engines.tensorrt_rtx import Compiled, Compiler, Refused, Shapes, coverage
from export.lint.compiled import CompiledGraph, LayerCost, Refusal
from qdq.base.screen import Screen
from qdq.errors import ConfigError

SHAPE = re.compile(r"(\d+)x(\d+)")


def shapes_of(text: str) -> Shapes:
    """``40x128`` as one shape, ``1x1,40x128,40x384`` as a profile. Raises ConfigError for anything else."""
    found = [SHAPE.fullmatch(part.strip()) for part in text.split(",")]
    sizes = [(int(match[1]), int(match[2])) for match in found if match]
    if len(sizes) != len(found) or len(sizes) not in (1, 3):
        raise ConfigError(
            f"--shape {text}: expected batch x sequence such as 40x128, or three such as 1x1,40x128,40x384"
        )
    if len(sizes) == 1:
        return Shapes.fixed(*sizes[0])
    least, best, most = sizes
    return Shapes.between(least, best, most)


def compile_file(path: Path, sm: int, shapes: Shapes) -> CompiledGraph:
    """Compile `path`, with a bar on the screen, and look up its linears and attentions.

    Raises Unavailable without the compiler, ConfigError for a compute capability it has not, BuildError when its
    account cannot be read. A graph that is refused is no error.
    """
    with Screen().stage("compile") as stage, Compiler() as compiler:
        name = f"TensorRT for RTX {compiler.version}"
        try:
            compiled = compiler.compile(path, (sm,), shapes)
        except Refused as refused:
            stage.say("refused")
            errors = tuple(Refusal(error.node, error.operator, error.reason) for error in refused.errors)
            return CompiledGraph(name, sm, describe(shapes), errors)
        stage.say(f"{len(compiled.kernels)} kernels")
    # A node's kernel is the last that names it, a GEMM only where no other kernel does.
    found = coverage(compiled, path)
    return CompiledGraph(
        compiler=name,
        sm=sm,
        shape=describe(shapes) if compiled.axes else "the shapes of the file",
        layers=layer_costs(compiled),
        linears=found.linears,
        outside=found.outside,
        attentions=found.attentions,
        scales=found.scales_in_fp32,
        reads={
            node: tuple(tensor.type for tensor in kernel.inputs)
            for kernel in sorted(compiled.kernels, key=lambda kernel: kernel.kind != "gemm")
            for node in kernel.onnx
        },
    )


def layer_costs(compiled: Compiled) -> tuple[LayerCost, ...]:
    """Kernels of every encoder layer, with megabytes where all shapes are fixed."""
    if compiled.static:
        return tuple(LayerCost(layer, count, size) for layer, (count, size) in compiled.per_layer().items())
    layers = [kernel.layer for kernel in compiled.kernels]
    order = sorted(set(layers), key=lambda layer: (layer is None, layer))
    return tuple(LayerCost(layer, layers.count(layer), None) for layer in order)


def describe(shapes: Shapes) -> str:
    """``40 x 128``, or ``1 x 1 to 40 x 384, made for 40 x 128``."""
    least, best, most = zip(shapes.batch, shapes.sequence, strict=True)
    if least == most:
        return f"{best[0]} x {best[1]}"
    return f"{least[0]} x {least[1]} to {most[0]} x {most[1]}, made for {best[0]} x {best[1]}"
