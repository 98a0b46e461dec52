"""The INT8 report of build.json, from the engine's precision of every multiplication."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engines.types import Int8Report, MatmulNames, NotInt8


@dataclass(frozen=True)
class Verdict:
    """Precision an engine reports for one multiplication."""

    int8: bool  # it multiplies INT8 operands
    inferred: bool  # concluded from a fused block that reports one precision for several operations
    says: str  # the engine's own words, given as the reason when it is not INT8


def assemble(names: MatmulNames, verdict: Callable[[str], Verdict]) -> Int8Report:
    """Ask `verdict` about the node of every named multiplication and count.

    One whose operands carry no Q/DQ in the graph cannot run in INT8, whatever a fused block around it reports.
    """
    reasons = {item.name: item.reason for item in names.unquantized}
    verdicts = {name: verdict(names.computed_in.get(name, name)) for name in (*names.linears, *names.matmuls)}
    running = {name: found for name, found in verdicts.items() if found.int8 and name not in reasons}
    floats = [NotInt8(name, reasons.get(name, verdicts[name].says)) for name in verdicts if name not in running]
    return Int8Report(
        encoder_linear=(sum(name in running for name in names.linears), len(names.linears)),
        attention_matmul=(sum(name in running for name in names.matmuls), len(names.matmuls)),
        not_int8=(*floats, *names.floats),
        inferred=tuple(name for name, found in running.items() if found.inferred),
    )


def summary(report: Int8Report) -> str:
    """One sentence for the screen: "36 of 36 encoder linears and 12 of 12 attention matmuls run in INT8"."""
    (linear, linears), (matmul, matmuls) = report.encoder_linear, report.attention_matmul
    text = f"{linear} of {linears} encoder linears and {matmul} of {matmuls} attention matmuls run in INT8"
    return f"{text} ({len(report.inferred)} of them read from a fused block)" if report.inferred else text
