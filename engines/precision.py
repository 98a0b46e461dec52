"""The INT8 report of build.json, from the engine's precision of every multiplication."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engines.types import Int8Report, MatmulNames, NotInt8


@dataclass(frozen=True)
class Verdict:
    """Precision an engine reports for one multiplication.

    Attributes:
        int8: it multiplies INT8 operands.
        inferred: concluded from a fused block that reports one precision for several operations.
        says: the engine's own words, given as the reason when it is not INT8.
    """

    int8: bool
    inferred: bool
    says: str


def assemble(names: MatmulNames, verdict: Callable[[str], Verdict]) -> Int8Report:
    """Ask `verdict` about every named multiplication and count.

    One whose operands carry no Q/DQ in the graph cannot run in INT8, whatever a fused block around it reports.
    """
    reasons = {item.name: item.reason for item in names.unquantized}
    not_int8: list[NotInt8] = []
    inferred: list[str] = []

    def running(group: tuple[str, ...]) -> int:
        count = 0
        for name in group:
            found = verdict(name)
            if name in reasons:
                not_int8.append(NotInt8(name, reasons[name]))
            elif found.int8:
                count += 1
                inferred.extend([name] if found.inferred else [])
            else:
                not_int8.append(NotInt8(name, found.says))
        return count

    # Counting fills the two lists above, in graph order: linears, then matmuls.
    linears, matmuls = running(names.linears), running(names.matmuls)
    return Int8Report(
        encoder_linear=(linears, len(names.linears)),
        attention_matmul=(matmuls, len(names.matmuls)),
        not_int8=(*not_int8, *names.floats),
        inferred=tuple(inferred),
    )


def summary(report: Int8Report) -> str:
    """One sentence for the screen: "36 of 36 encoder linears and 12 of 12 attention matmuls run in INT8"."""
    (linear, linears), (matmul, matmuls) = report.encoder_linear, report.attention_matmul
    text = f"{linear} of {linears} encoder linears and {matmul} of {matmuls} attention matmuls run in INT8"
    return f"{text} ({len(report.inferred)} of them read from a fused block)" if report.inferred else text
