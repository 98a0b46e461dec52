"""Kernels of encoders, compiled once and kept beside the published rows, so that a fit needs no compiler.

A network is compiled with `COMPILED` layers, of which the second is a middle one: it stands for all that are alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from engines.estimate.compiled import kernel_ops
from engines.estimate.kernels import graph_ops
from engines.estimate.model import DATA
from engines.estimate.published import Row, published_rows
from engines.estimate.workload import ENCODERS, LayerRecord, Op, encoder_layers
from qdq.base.artifacts import read_json
from qdq.studies.estimate.forms import FLOAT16, NARROW, Form, Network, write_network

if TYPE_CHECKING:
    from engines.tensorrt_rtx import Compiler

KERNELS = DATA / "kernels.json"
CAPABILITIES = (75, 80)  # one list of kernels that fits the T4 and the A100
COMPILED = 4  # layers: first, middle, and the last two, which differ where the last works on few rows
MIDDLE = 1
FORMS: Mapping[str, Form] = {"int8": NARROW, "float16": FLOAT16}  # of the published networks, by precision
ASKED = (("bert-base", 40, 128),)  # shapes that nobody published and everybody asks for


@dataclass(frozen=True)
class Kernels:
    """Kernels of a middle layer, and all others of an engine with COMPILED layers."""

    middle: tuple[Op, ...]
    others: tuple[Op, ...]

    def of(self, layers: int, whole: bool = True) -> tuple[Op, ...]:
        """The kernels of `layers` layers, with what stands before and behind them when `whole`."""
        return self.others + self.middle * (layers - COMPILED + 1) if whole else self.middle * layers


def compile_network(compiler: Compiler, network: Network) -> Kernels:
    """Write `network`, compile it, and read its kernels. Raises Unavailable, BuildError."""
    from engines.tensorrt_rtx import Shapes

    with TemporaryDirectory(prefix="qdq-estimate-") as scratch:
        path = write_network(network, COMPILED, Path(scratch) / "encoder.onnx")
        compiled = compiler.compile(path, CAPABILITIES, Shapes.fixed(*network.shape))
    ops = kernel_ops(compiled.kernels)
    inside = [kernel.layer == MIDDLE for kernel in compiled.kernels]
    return Kernels(
        tuple(op for op, middle in zip(ops, inside, strict=True) if middle),
        tuple(op for op, middle in zip(ops, inside, strict=True) if not middle),
    )


def compile_published(compiler: Compiler) -> dict[str, Any]:
    """The content of data/kernels.json: every published network that the compiler takes, in the form nearest to it."""
    shapes = {(row.encoder, row.batch, row.sequence) for row in published_rows() if row.precision in FORMS}
    networks = []
    for encoder, batch, sequence in sorted({*shapes, *ASKED}):
        for precision, form in FORMS.items():
            network = Network(ENCODERS[encoder], form, batch, sequence, head="spans")
            found = compile_network(compiler, network)
            key = {"encoder": encoder, "batch": batch, "sequence": sequence, "precision": precision}
            networks.append({**key, "middle": _packed(found.middle), "others": _packed(found.others)})
    return {"compiler": compiler.version, "capabilities": list(CAPABILITIES), "networks": networks}


def _packed(ops: Iterable[Op]) -> list[str]:
    """One line per kernel: how often it comes, then the fields of `Op`, the name left out."""
    lines: Counter[str] = Counter()
    for op in ops:
        kind, _, *fields = astuple(op)
        lines[" ".join(map(str, (kind, *fields)))] += 1
    return [f"{times} {line}" for line, times in lines.items()]


def _unpacked(lines: Iterable[str]) -> tuple[Op, ...]:
    ops: list[Op] = []
    for line in lines:
        times, kind, precision, *numbers = line.split()
        ops += [Op(kind, kind, precision, *map(int, numbers))] * int(times)
    return tuple(ops)


@lru_cache(maxsize=1)
def kept_kernels() -> dict[tuple[str, int, int, str], Kernels]:
    """Kernels of the published networks by encoder, batch, sequence and precision."""
    return {
        (entry["encoder"], entry["batch"], entry["sequence"], entry["precision"]): Kernels(
            _unpacked(entry["middle"]), _unpacked(entry["others"])
        )
        for entry in read_json(KERNELS)["networks"]
    }


def row_ops(row: Row, *, compiled: bool = True) -> tuple[Op, ...]:
    """Kernels of a published network: as compiled, or predicted where that is asked for or all there is.

    The compiler builds neither FP32 for the T4 nor FasterTransformer's INT8-v1.
    """
    return _row_ops(row.encoder, row.precision, row.batch, row.sequence, row.whole, compiled)


@lru_cache(maxsize=512)  # the fit asks for the same ones over and over
def _row_ops(encoder: str, precision: str, batch: int, sequence: int, whole: bool, compiled: bool) -> tuple[Op, ...]:
    kept = kept_kernels().get((encoder, batch, sequence, precision)) if compiled else None
    if kept is not None:
        return kept.of(ENCODERS[encoder].layers, whole)
    if precision != "int8-v1":
        return graph_ops(encoder_layers(ENCODERS[encoder], precision, whole=whole), batch, sequence)
    return _int32_outputs(graph_ops(_v1_layers(encoder, whole), batch, sequence))


def _v1_layers(encoder: str, whole: bool) -> tuple[LayerRecord, ...]:
    """FasterTransformer's INT8-v1: residuals in float, and products that leave everything to the kernels behind."""
    return tuple(
        replace(layer, precision="float16") if layer.kind == "residual" else replace(layer, narrow=False)
        for layer in encoder_layers(ENCODERS[encoder], "int8", whole=whole)
    )


def _int32_outputs(ops: Iterable[Op]) -> tuple[Op, ...]:
    """INT8-v1 again: an INT8 GEMM writes its INT32 sums where ours write FP16, and the kernel after it reads them."""
    changed, extra = [], 0
    for op in ops:
        op = replace(op, activation_bytes=op.activation_bytes + extra)
        extra = 2 * op.m * op.n if op.kind == "int8_gemm" else 0
        changed.append(replace(op, activation_bytes=op.activation_bytes + extra))
    return tuple(changed)
