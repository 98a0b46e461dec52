"""Steps of a run, each one or more methods of `qdq.compress`: prune, distill, qat, ptq."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

from qdq.auto.config import Configuration, HyperParameterOptimization, QuantPost
from qdq.auto.config.quantization import algorithm_of
from qdq.auto.session import Materials, arguments
from qdq.auto.training.finished import Finished
from qdq.compress.best import KeepBest
from qdq.compress.distillation import WidthTraining
from qdq.compress.dynabert import DynaBert
from qdq.compress.elastic import Size, Switch, size_at
from qdq.compress.method import CompressedModel, Session
from qdq.compress.ptq import Ptq
from qdq.compress.qat import Qat
from qdq.compress.training import fingerprint, train
from qdq.errors import ConfigError
from qdq.inject.families import family_of
from qdq.inject.spec import QuantSpec
from qdq.inject.widths import blocks

# Ranges that quantization-aware training starts from
CALIBRATED: Mapping[str, Any] = {"algo_list": ["mse"], "batch_num_list": [8]}


@dataclass(frozen=True)
class Step:
    """One step with everything it needs but the model.

    `session` has the recipe of a step that trains; `last` is the quantization step of several; `finished` has what an
    earlier run, which was killed, has done of it.
    """

    configuration: Configuration
    materials: Materials
    session: Session
    last: bool = False
    finished: Finished | None = None

    def with_arguments(self, spec: QuantSpec | None = None, **options: Any) -> Session:
        """The session with other arguments, and points to quantize."""
        return replace(
            self.session, args=arguments(self.configuration, self.materials, self.last, **options), spec=spec
        )


def prune(step: Step, before: CompressedModel) -> CompressedModel:
    """The narrower model, trained to learn from the teacher."""
    section = step.configuration.prune
    assert section is not None  # the step is configured
    session = step.with_arguments(strategy="dynabert", width_mult_list=[str(width(step))])
    return DynaBert(by_norm=section.criterion == "l1_norm").run(session, before)[0]


def width(step: Step) -> Fraction:
    """The share of heads that stays. Raises ConfigError naming the ratios that leave whole heads."""
    section = step.configuration.prune
    assert section is not None  # the step is configured
    model, kept = step.session.model, 1 - Fraction(section.pruned_ratio).limit_denominator(10**6)
    try:
        return size_at(model, kept).width
    except ConfigError as error:
        heads = blocks(model)[0].heads
        ratios = ", ".join(str(Fraction(cut, heads)) for cut in range(1, heads))
        raise ConfigError(
            f"TransformerPrune: pruned_ratio: {section.pruned_ratio} of {heads} heads is no whole number of them; "
            f"ratios that are: {ratios}"
        ) from error


def distill(step: Step, before: CompressedModel) -> CompressedModel:
    """The same model, trained to learn from other ones."""
    session, recipe = step.session, step.session.recipe
    assert recipe is not None  # every step that trains has one
    student = copy.deepcopy(before.model).requires_grad_(True)
    switch, size = Switch(), Size(Fraction(1), 0, 0)
    module = WidthTraining(student, switch, [size], recipe.distance)
    folder = session.output / "training" / "distill"
    best = KeepBest(session, folder, {"distill": lambda: student})
    train(session, module, folder, {"model": fingerprint(student)}, callbacks=[best])
    notes = {"best_step": best.restore("distill", student)}
    student.train(False)
    with session.screen.stage("distill") as stage:
        made = before.evolve("distill", notes, model=student, metric=session.evaluate(student))
        stage.say(f"{made.metric:.4f}")
    return made


def qat(step: Step, before: CompressedModel) -> CompressedModel:
    """The quantized model, trained to learn from the teacher."""
    section = step.configuration.quant_aware
    assert section is not None  # the step is configured
    session = step.with_arguments(
        QuantSpec(**section.spec()),
        strategy="qat",
        use_pact=section.use_pact,
        activation_quantize_type=section.activation_quantize_type,
        moving_rate=section.moving_rate,
        weight_quantize_type=section.weight_quantize_type,
        batch_size_list=[step.materials.rows.batch_size],
        **CALIBRATED,
    )
    return Qat(section.window_size).run(session, before)[0]


def ptq(step: Step, before: CompressedModel) -> CompressedModel:
    """The quantized model; with a search the best one by the metric of all that were drawn."""
    section = step.configuration.quant_post or QuantPost()
    search = step.configuration.search
    if search is None:
        return calibrated(step, section, before)
    settings = list(draw(section, search, step.session.args.seed))
    rows: list[dict[str, Any]] = []
    best: tuple[float, QuantPost, CompressedModel | None] | None = None
    for number, drawn in enumerate(settings):
        metric, made = tried(step, f"setting {number}", partial(calibrated, step, drawn, before))
        rows.append({"metric": metric, **{name: getattr(drawn, name) for name in SEARCHED}})
        if best is None or metric > best[0]:  # of equals the one drawn first
            best = (metric, drawn, made)
    assert best is not None  # at least one is drawn
    made = best[2] or calibrated(step, best[1], before)
    return replace(made, notes={**made.notes, "search": rows})


def tried(step: Step, name: str, make: Callable[[], CompressedModel]) -> tuple[float, CompressedModel | None]:
    """The metric of a model, and the model itself unless an earlier run has tried it."""
    known = None if step.finished is None else step.finished.part(name)
    if known is not None:
        step.session.screen.row(name, f"{known:.4f}, finished earlier")
        return float(known), None
    made = make()
    metric = float(made.metric or 0.0)
    if step.finished is not None:
        step.finished.keep(name, metric)
    return metric, made


SEARCHED = ("algo", "hist_percent", "batch_nums", "bias_correction", "weight_quantize_type")


def draw(section: QuantPost, search: HyperParameterOptimization, seed: int) -> Iterator[QuantPost]:
    """Different settings, drawn at random: `max_quant_count` of them, or all there are where those are fewer."""
    generator, seen, misses = random.Random(seed), set[QuantPost](), 0
    while len(seen) < search.max_quant_count and misses < 100:  # a small space has been drawn empty
        algorithm = generator.choice(search.ptq_algo)
        share = round(generator.uniform(*search.hist_percent), 5)
        drawn = replace(
            section,
            algo=algorithm,
            hist_percent=share if algorithm == "hist" else QuantPost.hist_percent,
            batch_nums=generator.randint(*search.batch_num),
            bias_correction=generator.choice(search.bias_correct),
            weight_quantize_type=generator.choice(search.weight_quantize_type),
        )
        if drawn in seen:
            misses += 1
            continue
        misses = 0
        seen.add(drawn)
        yield drawn


def calibrated(step: Step, section: QuantPost, before: CompressedModel, **options: Any) -> CompressedModel:
    """The model quantized as `section` says, `options` of CompressionArguments aside."""
    session = step.with_arguments(QuantSpec(**section.spec()), **{**ptq_arguments(section), **options})
    adaround = (section.epochs, section.lr) if section.recon_level else None
    return Ptq(adaround=adaround).run(session, before)[0]


def ptq_arguments(section: QuantPost) -> dict[str, Any]:
    """QuantPost as the options of CompressionArguments."""
    ranged = section.activation_quantize_type == "range_abs_max"
    return {
        "strategy": "ptq",
        "algo_list": [algorithm_of(section.algo, section.hist_percent)] if ranged else None,
        "activation_quantize_type": section.activation_quantize_type,
        "weight_quantize_type": section.weight_quantize_type,
        "batch_size_list": [section.batch_size],
        "batch_num_list": [section.batch_nums],
        "bias_correction": section.bias_correction,
        "round_type": "adaround" if section.recon_level else "round",
    }


STEPS: Mapping[str, Callable[[Step, CompressedModel], CompressedModel]] = {
    "prune": prune,
    "distill": distill,
    "qat": qat,
    "ptq": ptq,
}


def check(step: Step) -> None:
    """Raise ConfigError or ModelError for steps that this model cannot have."""
    if step.configuration.prune is not None:
        width(step)
    if any(name in step.configuration.strategies for name in ("qat", "ptq")):
        family_of(step.session.model.config.model_type)
