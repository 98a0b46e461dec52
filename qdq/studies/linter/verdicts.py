"""The linter's prediction and the compiler's engine for one case, and where they differ."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from engines.tensorrt_rtx import Compiler, Refused, Shapes, coverage
from export.lint import Finding, lint
from export.lint.limits import RTX
from qdq.studies.linter.cases import BATCH, Case

INT8, FLOAT, UNFUSED = "int8", "float", "unfused"
KINDS = {"int8_fused_attention": INT8, "float_fused_attention": FLOAT, "unfused": UNFUSED}
PLACED_IN_FLOAT = ("QDQ-N301", "QDQ-N303", "QDQ-N309")  # say that a part stays float by choice, which costs kernels


@dataclass(frozen=True)
class Engine:
    """One engine, as built or as predicted: linears in INT8 and those that write their sums as FP16, by node name;
    attentions as INT8, FLOAT or UNFUSED by the name of their softmax. `refused` is the reason when there is none.
    """

    refused: str = ""
    kernels: int = 0  # 0 when predicted
    linears: frozenset[str] = frozenset()
    sums: frozenset[str] = frozenset()
    attentions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """A case with both engines; `plain` is the one of the form without edits, None where the case has none."""

    case: Case
    built: Engine
    predicted: Engine
    findings: tuple[Finding, ...]
    plain: Engine | None

    @property
    def cost(self) -> int:
        """Kernels that the edits cost, at least 1 when a linear or an attention has left INT8."""
        if self.plain is None or self.plain.refused or self.built.refused:
            return 0
        left = len(self.plain.linears) > len(self.built.linears) or _int8(self.plain) > _int8(self.built)
        return max(self.built.kernels - self.plain.kernels, int(left))

    @property
    def warned(self) -> tuple[str, ...]:
        """Rules whose findings say that something costs kernels or INT8."""
        slow = (finding.rule for finding in self.findings if finding.severity == "performance")
        return tuple(dict.fromkeys([*slow, *(f.rule for f in self.findings if f.rule in PLACED_IN_FLOAT)]))


def _int8(engine: Engine) -> int:
    return sum(kind == INT8 for kind in engine.attentions.values())


class Judge:
    """Compiles cases, each form once, and sets the linter's report beside the engine."""

    def __init__(self, compiler: Compiler) -> None:
        self.compiler = compiler
        self.plain: dict[tuple[object, ...], Engine] = {}

    def judge(self, case: Case) -> Judged:
        """Both verdicts on a case. Raises Unavailable without the compiler, BuildError when it dies."""
        model = case.model()
        report = lint(model, RTX, case.sm, case.most)
        plain = None
        if case.edits or case.without:
            key = (case.form, case.sm, case.sequence, case.longest)
            if key not in self.plain:
                self.plain[key] = self.build(case.plain, case.plain.model())
            plain = self.plain[key]
        errors = report.of("error")
        predicted = Engine(
            refused=f"{errors[0].rule} {errors[0].reason}" if errors else "",
            linears=frozenset(layer.name for layer in report.layers if layer.role and layer.kind == "int8_gemm"),
            sums=frozenset(name for found in report.findings if found.rule == "QDQ-A401" for name in found.nodes),
            attentions={layer.name: KINDS[layer.kind] for layer in report.layers if layer.kind in KINDS},
        )
        return Judged(case, self.build(case, model), predicted, report.findings, plain)

    def build(self, case: Case, model: onnx.ModelProto) -> Engine:
        """The engine that the compiler makes of a case."""
        if case.longest is None:
            shapes = Shapes.fixed(BATCH, case.sequence)
        else:
            shapes = Shapes.between((1, 1), (BATCH, case.sequence), (BATCH, case.longest))
        # A refusal is an answer; whatever else goes wrong is an error of the run.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(model, path)
            try:
                compiled = self.compiler.compile(path, (case.sm,), shapes)
            except Refused as refused:
                return Engine(refused=str(refused.errors[0]))
            found = coverage(compiled, path)
        half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
        return Engine(
            kernels=len(compiled.kernels),
            linears=frozenset(name for name, verdict in found.linears.items() if verdict == INT8),
            sums=frozenset(
                name for name, kept in found.scales_in_fp32.items() if half and not kept and name in found.linears
            ),
            attentions={name: _attention(verdict) for name, verdict in found.attentions.items()},
        )


def _attention(verdict: str) -> str:
    if verdict == INT8:
        return INT8
    return FLOAT if verdict.startswith("fused") else UNFUSED


def differences(judged: Judged) -> tuple[str, ...]:
    """Every way in which the linter's verdict is not the compiler's, as a sentence; () where they agree."""
    built, predicted = judged.built, judged.predicted
    if built.refused or predicted.refused:
        if bool(built.refused) == bool(predicted.refused):
            return ()
        return (f"the linter passes it; refused: {built.refused}" if built.refused else f"built; {predicted.refused}",)
    checks: tuple[Callable[[Judged], Iterator[str]], ...] = (_linears, _sums, _attentions, _kernels)
    return tuple(sentence for check in checks for sentence in check(judged))


def _linears(judged: Judged) -> Iterator[str]:
    for name in sorted(judged.built.linears ^ judged.predicted.linears):
        kind = "float" if name in judged.predicted.linears else "INT8"
        yield f"{_short(name)} is {kind}, predicted otherwise"


def _sums(judged: Judged) -> Iterator[str]:
    for name in sorted(judged.built.sums ^ judged.predicted.sums):
        kind = "keeps its scale in FP32" if name in judged.predicted.sums else "writes its sums as FP16"
        yield f"{_short(name)} {kind}, predicted otherwise"


def _attentions(judged: Judged) -> Iterator[str]:
    for name, kind in judged.built.attentions.items():
        predicted = judged.predicted.attentions.get(name, "absent")
        if kind != predicted:
            yield f"{_short(name)} is {kind}, predicted {predicted}"


def _kernels(judged: Judged) -> Iterator[str]:
    if judged.plain is None or judged.plain.refused:
        return
    if judged.cost and not judged.warned:
        yield f"{judged.cost} more kernels than without the edit, and no finding says so"
    slow = [finding.rule for finding in judged.findings if finding.severity == "performance"]
    if slow and not judged.cost:
        yield f"no more kernels than without the edit, in spite of {', '.join(dict.fromkeys(slow))}"


def _short(name: str) -> str:
    return name.removeprefix("bert.encoder.")
