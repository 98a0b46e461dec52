"""`qdq check --compile`: what a compiler makes of the linted file, below the linter's report, and where the two differ.

The compiler is not known here; whoever calls hands over a `CompiledGraph`.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any
from urllib.parse import quote

from export.lint import render
from export.lint.findings import LintReport
from export.lint.fusion import FusedLayer
from export.lint.render import WIDTH, shorten

INT8 = "int8"
SHOWN = 3  # names listed per reason or difference
DATACENTER = "Datacenter TensorRT was not run; it chooses its own kernels."
REFUSAL, DIFFERENCE = "compiler-refusal", "compiler-difference"
SARIF_RULES = {REFUSAL: "the compiler refuses the graph", DIFFERENCE: "linter and compiler differ"}


@dataclass(frozen=True)
class Refusal:
    """One node that the compiler refuses; node and operator are "" when the reason is about the whole graph."""

    node: str
    operator: str
    reason: str


@dataclass(frozen=True)
class LayerCost:
    """Kernels and megabytes of an encoder layer, of everything outside them for None."""

    layer: int | None
    kernels: int
    megabytes: float | None  # None: the shapes are dynamic


@dataclass(frozen=True)
class CompiledGraph:
    """The compiler's account of a file, either `refused` or the rest.

    linears, outside, attentions: node to INT8 or the reason why not, `outside` the encoder layers; scales: INT8 linear
    to True when its scale is an FP32 number; reads: node to the types that the kernel which computes it reads.
    """

    compiler: str
    sm: int
    shape: str
    refused: tuple[Refusal, ...] = ()
    layers: tuple[LayerCost, ...] = ()
    linears: Mapping[str, str] = field(default_factory=dict)
    outside: Mapping[str, str] = field(default_factory=dict)
    attentions: Mapping[str, str] = field(default_factory=dict)
    scales: Mapping[str, bool] = field(default_factory=dict)
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def kernels(self) -> int:
        """Kernels of the engine."""
        return sum(layer.kernels for layer in self.layers)

    @property
    def megabytes(self) -> float | None:
        """Megabytes that they read and write, None with dynamic shapes."""
        found = [layer.megabytes for layer in self.layers if layer.megabytes is not None]
        return sum(found) if len(found) == len(self.layers) else None

    def as_json(self, report: LintReport) -> dict[str, Any]:
        """Plain JSON value, with the differences to the linter's `report`."""
        return {
            "compiler": self.compiler,
            "sm": self.sm,
            "shape": self.shape,
            "refused": [asdict(refusal) for refusal in self.refused],
            "kernels": self.kernels,
            "megabytes": self.megabytes,
            "layers": [asdict(layer) for layer in self.layers],
            "linears": dict(self.linears),
            "outside": dict(self.outside),
            "attentions": dict(self.attentions),
            "fp32_scales": dict(self.scales),
            "differences": [asdict(difference) for difference in differences(report, self)],
        }


@dataclass(frozen=True)
class Difference:
    """One thing that linter and compiler see differently; `node` is "" when it is about the whole file."""

    node: str
    linter: str
    compiler: str


def differences(report: LintReport, compiled: CompiledGraph) -> tuple[Difference, ...]:
    """Differences in the linter's order: what is refused, then linears, attentions and residual adds."""
    errors = report.of("error")
    if compiled.refused:
        return () if errors else (Difference("", "no error", "refused"),)
    found = [
        Difference(finding.nodes[0] if finding.nodes else finding.tensor, f"error {finding.rule}", "compiled")
        for finding in errors
    ]
    found += [difference for layer in report.layers for difference in _of_layer(layer, compiled)]
    return tuple(found)


def _of_layer(layer: FusedLayer, compiled: CompiledGraph) -> Iterator[Difference]:
    """The difference of one predicted layer, if any; one that the compiler has no name for is one."""
    name = _compiler_name(layer.name)
    multiplications = {**compiled.linears, **compiled.outside}
    if layer.kind in ("int8_gemm", "float_gemm"):
        predicted, verdict = layer.kind == "int8_gemm", multiplications.get(name, "no product with a constant")
        if name not in multiplications or predicted != (verdict == INT8):
            yield Difference(name, "INT8 GEMM" if predicted else "float GEMM", "INT8" if verdict == INT8 else verdict)
    elif layer.kind in PREDICTED:
        verdict = compiled.attentions.get(name, "no attention")
        if not verdict.startswith(PREDICTED[layer.kind]):
            yield Difference(name, layer.kind.replace("_", " ").replace("int8", "INT8"), verdict)
    elif layer.kind == "residual_add" and layer.precision == INT8:
        reads = compiled.reads.get(name, ())
        if INT8 not in reads:
            said = f"its kernel reads {' and '.join(reads)}" if reads else "no kernel of its name"
            yield Difference(name, "residual add on INT8", said)


PREDICTED = {"int8_fused_attention": INT8, "float_fused_attention": "fused", "unfused": "not fused"}


def _compiler_name(label: str) -> str:
    """A node's name as the compiler has it: the linter calls one without a name "Op -> tensor"."""
    _, arrow, tensor = label.partition(" -> ")
    return f"node_of_{tensor}" if arrow else label


def as_text(report: LintReport, compiled: CompiledGraph) -> str:
    """The account in lines of at most 80 columns, to stand below the linter's report."""
    lines = _wrapped(f"{compiled.compiler}, SM {compiled.sm}, {compiled.shape}", "", "  ")
    if compiled.refused:
        lines.append(f"refused ({len(compiled.refused)})")
        for refusal in compiled.refused:
            lines += _wrapped(f"{refusal.operator} {refusal.node}".strip() or "the graph", "  ", "    ")
            lines += _wrapped(refusal.reason, "    ", "    ")
    else:
        lines += _account(compiled)
    found = differences(report, compiled)
    if found:
        lines += ["", f"linter and compiler differ ({len(found)})"]
        for (linter, said), group in _grouped(found):
            lines += _wrapped(f"linter: {linter}; compiler: {said}", "  ", "    ")
            lines += _names([difference.node for difference in group if difference.node])
    else:
        lines += ["", "linter and compiler agree"]
    return "\n".join([*lines, *_wrapped(DATACENTER, "", "")]) + "\n"


def _account(compiled: CompiledGraph) -> Iterator[str]:
    """Totals, layers, and everything that is not INT8 with its reason."""
    linears, attentions = (
        f"{sum(verdict == INT8 for verdict in verdicts.values())} of {len(verdicts)} in INT8"
        for verdicts in (compiled.linears, compiled.attentions)
    )
    yield f"  kernels          {_cost(compiled.kernels, compiled.megabytes)}"
    yield f"  encoder linears  {linears}"
    yield f"  attention        {attentions}"
    fp32 = sum(compiled.scales.values())
    raw = "" if fp32 == len(compiled.scales) else "; the others write INT32 sums as 16 bits"
    if compiled.scales:
        yield f"  GEMM scales      {fp32} of {len(compiled.scales)} in FP32{raw}"
    # Neighbouring layers that cost the same share a line.
    for (kernels, megabytes, outside), group in groupby(
        compiled.layers, lambda layer: (layer.kernels, _rounded(layer.megabytes), layer.layer is None)
    ):
        numbers = [layer.layer for layer in group]
        several = len(numbers) > 1
        name = f"layers {numbers[0]} to {numbers[-1]}" if several else f"layer {numbers[0]}"
        yield f"  {'outside' if outside else name:<17}{_cost(kernels, megabytes)}{' each' if several else ''}"
    for verdicts, what in ((compiled.linears, "linear"), (compiled.attentions, "attention")):
        reasons = Counter(verdict for verdict in verdicts.values() if verdict != INT8)
        for reason, count in reasons.most_common():
            yield from _wrapped(f"{count} {what}: {reason}", "  ", "    ")
            yield from _names([name for name, verdict in verdicts.items() if verdict == reason])


def _cost(kernels: int, megabytes: float | None) -> str:
    return f"{kernels}" if megabytes is None else f"{kernels}, {megabytes:.1f} MB"


def _rounded(megabytes: float | None) -> float | None:
    return None if megabytes is None else round(megabytes, 1)


def _grouped(found: Sequence[Difference]) -> list[tuple[tuple[str, str], list[Difference]]]:
    """Differences of the same kind together, in order of the first."""
    groups: dict[tuple[str, str], list[Difference]] = {}
    for difference in found:
        groups.setdefault((difference.linter, difference.compiler), []).append(difference)
    return list(groups.items())


def _names(names: Sequence[str]) -> list[str]:
    more = [f"      and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return [f"      {shorten(name, WIDTH - 6)}" for name in names[:SHOWN]] + more


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    lines = textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False)
    return [shorten(line, WIDTH) for line in lines]


def as_sarif(report: LintReport, compiled: CompiledGraph, file: str) -> dict[str, Any]:
    """The linter's run with refusals as errors, differences as notes, and the whole account among its properties."""
    sarif = render.as_sarif(report, file)
    (run,) = sarif["runs"]
    rules = run["tool"]["driver"]["rules"]
    found = [(REFUSAL, "error", refusal.node, refusal.reason) for refusal in compiled.refused]
    found += [
        (DIFFERENCE, "note", difference.node, f"linter: {difference.linter}; compiler: {difference.compiler}")
        for difference in differences(report, compiled)
    ]
    positions = {rule: len(rules) + index for index, rule in enumerate(SARIF_RULES)}
    rules += [{"id": rule, "shortDescription": {"text": text}} for rule, text in SARIF_RULES.items()]
    for rule, level, node, text in found:
        place = {
            "physicalLocation": {"artifactLocation": {"uri": quote(file.replace("\\", "/"))}},
            "logicalLocations": [{"fullyQualifiedName": node, "kind": "element"}] if node else [],
        }
        result = {"ruleId": rule, "ruleIndex": positions[rule], "level": level, "message": {"text": text}}
        run["results"].append({**result, "locations": [place]})
    run["properties"]["compiled"] = compiled.as_json(report)
    return sarif
