"""Every graph that the linter and the compiler both judge, by name; a fixed seed, so the list is the same every time.

`NAMED` are the graphs that the rules of `export.lint` name as their proof, and near misses; `all_cases` adds forms of
the encoder drawn at random, and the removal of points from the graphs that this project writes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import onnx

from export.lint.removal import without_points
from qdq.studies.linter.graphs import edits as e
from qdq.studies.linter.graphs.editor import Graph
from qdq.studies.linter.graphs.edits import Edit
from qdq.studies.linter.graphs.encoder import encoder
from qdq.studies.linter.graphs.form import Body, Form, Projections, Skip, Weights
from qdq.studies.linter.named import NAMED_EDITS, NAMED_FORMS

SEED = 13
SMS = (75, 80, 89, 120)
BASE = Form(layers=1)
BATCH, SEQUENCE = 2, 16
BODIES: tuple[Body, ...] = ("fp16", "fp16", "fp16", "fp32", "bf16")
WEIGHTS: tuple[Weights, ...] = ("channel", "channel", "tensor", "ratio", "ratio", "float")
QKV: tuple[Projections, ...] = ("three", "merged", "merged", "split")
SKIPS: tuple[Skip, ...] = ("shared", "own", "float")
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "RoBERTa, XLM-R and CamemBERT": {"types": False, "summed": True},
    "DistilBERT": {"types": False},
    "ALBERT and ELECTRA": {"embedding": 16},
    "MPNet": {"types": False, "summed": True, "relative": True},
}
LOWERED = replace(BASE, body="fp16", weights="ratio", qkv="merged", branch=False, smoothing=True)


@dataclass(frozen=True)
class Case:
    """One graph for one GPU: a form of the encoder, edits of it, and points taken away.

    `longest` is the largest sequence of a profile; None is one fixed shape of `sequence` tokens.
    """

    name: str
    form: Form
    edits: tuple[Edit, ...] = ()
    without: tuple[str, ...] = ()
    sm: int = 80
    sequence: int = SEQUENCE
    longest: int | None = None

    @property
    def plain(self) -> Case:
        """The same form on the same GPU without edits and with all its points."""
        return replace(self, name=f"{self.name} (plain)", edits=(), without=())

    @property
    def most(self) -> int:
        """Tokens of the longest input that the engine takes."""
        return self.longest or self.sequence

    def model(self) -> onnx.ModelProto:
        """Write the graph."""
        graph = Graph(encoder(self.form))
        for edit in self.edits:
            edit(graph)
        if self.longest is None:
            graph.fix({"batch": BATCH, "sequence": self.sequence})
        return without_points(graph.model, self.without) if self.without else graph.model


def _named() -> Iterator[Case]:
    for name, edit in NAMED_EDITS.items():
        yield Case(name, BASE, (edit,))
    for name, (changes, sm, sizes) in NAMED_FORMS.items():
        yield Case(
            name,
            replace(BASE, **changes),
            sm=sm,
            sequence=sizes.get("sequence", SEQUENCE),
            longest=sizes.get("longest"),
        )


NAMED = {case.name: case for case in _named()}


def all_cases() -> tuple[Case, ...]:
    """Every case: named ones, removals of one point and of several, forms at random, edits in FP16, other families."""
    draw = random.Random(SEED)
    return (*NAMED.values(), *_removals(draw), *_forms(draw), *_edited(draw), *_families())


def points(form: Form) -> tuple[str, ...]:
    """Every point of the form's first layer, named as in placement.json."""
    layer = "bert.encoder.layer.0"
    projections = ("query", "key", "value") if form.qkv == "three" else ("qkv",)
    linears = (
        *(f"attention.self.{projection}" for projection in projections),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    )
    found = [f"{layer}.{linear}.{kind}_quantizer" for linear in linears for kind in ("input", "weight")]
    found += [f"{layer}.attention.self.matmul_{operand}_input_quantizer" for operand in form.attention]
    for add in ("attention.output", "output"):
        # An inverse of smoothing stands between the skip's pair and the add.
        found += [f"{layer}.{add}.add_residual_input_quantizer"] if form.skip != "float" and not form.smoothing else []
        found += [f"{layer}.{add}.add_local_input_quantizer"] if form.branch else []
    return tuple(found)


def _removals(draw: random.Random) -> Iterator[Case]:
    """Each point of the canonical and of the lowered graph taken away alone, and several together."""
    for name, form in (("canonical", replace(BASE, body="fp16")), ("lowered", LOWERED)):
        placed = points(form)
        for point in placed:
            short = point.removeprefix("bert.encoder.layer.0.").removesuffix("_quantizer")
            yield Case(f"{name} without {short}", form, without=(point,), sm=draw.choice(SMS))
        for number in range(12):
            taken = tuple(sorted(draw.sample(placed, draw.randint(2, 5))))
            yield Case(f"{name} without {len(taken)} points, {number}", form, without=taken, sm=draw.choice(SMS))


def _forms(draw: random.Random) -> Iterator[Case]:
    """Forms of the encoder at random: bodies, weights, projections, attention, skips, sizes, GPUs, shapes."""
    for number in range(80):
        heads, size = draw.choice((2, 2, 4)), draw.choice((16, 16, 32, 32, 64, 24, 8, 128))
        # Drawn in a fixed order: another one would be another list.
        body = draw.choice(BODIES)
        weights = draw.choice(WEIGHTS)
        form = Form(
            layers=draw.choice((1, 1, 2, 3)),
            hidden=heads * size,
            heads=heads,
            inner=draw.choice((64, 128)),
            body=body,
            weights=weights,
            inputs=draw.random() < 0.95,
            codes="fp8" if weights == "tensor" and draw.random() < 0.3 else "int8",
            qkv=draw.choice(QKV),
            attention=draw.choice(("qkva", "qkva", "qkva", "", "", "qk", "av", "q", "v")),
            skip=draw.choice(SKIPS),
            branch=draw.random() < 0.5,
            smoothing=draw.random() < 0.3,
            gelu=draw.choice(("op", "tanh", "erf", "relu")),
            norm=draw.choice(("op", "op", "chain")),
            mask=draw.choice(("where", "scores", "product")),
            late_scale=draw.random() < 0.2,
            wide_scales=draw.random() < 0.05,
            positions=640,
        )
        longest = draw.choice((None, None, 64, 384, 512, 600))
        yield Case(f"form {number}", form, sm=draw.choice(SMS), longest=longest)


def _edited(draw: random.Random) -> Iterator[Case]:
    """Two named edits at once, turned into FP16, for a GPU at random."""
    gentle = [name for name in NAMED_EDITS if name.startswith(("Q ", "second", "late", "float", "skip", "no ", "GELU"))]
    for number in range(24):
        chosen = draw.sample(gentle, 2)
        changes = (*(NAMED_EDITS[name] for name in chosen), e.edit(partial(Graph.half)))
        form = replace(BASE, layers=draw.choice((1, 2)))
        yield Case(f"{' and '.join(chosen)}, {number}", form, changes, sm=draw.choice(SMS))


def _families() -> Iterator[Case]:
    """The graphs of other families, canonical and lowered, for every GPU; BERT and ERNIE are wired as all others."""
    for name, changes in FAMILIES.items():
        for sm in SMS:
            lowered = sm in (75, 120)
            form = replace(LOWERED, layers=2) if lowered else replace(BASE, layers=2)
            kind = "lowered" if lowered else "canonical"
            yield Case(f"{name}, {kind}, SM {sm}", replace(form, **changes), sm=sm, longest=64)
