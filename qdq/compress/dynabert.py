"""The method `dynabert`: width-adaptive pruning (arXiv 2004.04037), one smaller model per width.

Importance of heads and neurons, rewiring so that the most important come first, what is cut off reconstructed by what
stays, distillation from the unpruned model over all widths at once, then a real smaller model for each.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from functools import partial

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from qdq.base.artifacts import atomic_path
from qdq.compress.best import KeepBest
from qdq.compress.datasets import digest_of
from qdq.compress.distillation import WidthDistillation, WidthTraining
from qdq.compress.elastic import Size, extract, make_elastic, sizes_at
from qdq.compress.importance import Importance, measure_importance, rewire, weight_norms
from qdq.compress.method import CompressedModel, Method, Session
from qdq.compress.reconstruct import reconstruct
from qdq.compress.training import fingerprint, train
from qdq.inject.widths import blocks

IMPORTANCE_SAMPLES = 384


def _name(size: Size) -> str:
    return f"width-{float(size.width):.4g}"


class DynaBert(Method):
    """Width pruning with distillation.

    Importance is the first-order change of the loss, or `by_norm` the L1 norm of the weights, which needs no labels.
    """

    name = "dynabert"

    def __init__(self, by_norm: bool = False) -> None:
        self._by_norm = by_norm

    def check(self, session: Session) -> None:
        """Raise ConfigError for a width that leaves no whole heads, ModelError for a family without width."""
        sizes_at(session.model, session.args.widths)

    def run(self, session: Session, before: CompressedModel) -> list[CompressedModel]:
        """One model per width, widest first."""
        teacher = before.model
        # A copy of the teacher that runs at any of the widths.
        sizes = sizes_at(teacher, session.args.widths)
        student = copy.deepcopy(teacher)
        student.requires_grad_(True)  # the teacher of an earlier call is frozen
        self._rewire(session, student, sizes)
        switch = make_elastic(student)
        # All widths are trained at once.
        module: nn.Module
        if session.recipe is None:
            module = WidthDistillation(student, switch, session.teacher or teacher, sizes, session.eval.labels)
        else:
            module = WidthTraining(student, switch, sizes, session.recipe.distance)
        deciding = {"model": fingerprint(teacher), "widths": [str(size.width) for size in sizes]}
        deciding |= {"importance": "norm"} if self._by_norm else {}
        folder = session.output / "training" / "dynabert"
        best = KeepBest(session, folder, {_name(size): partial(extract, student, size) for size in sizes})
        train(session, module, folder, deciding, callbacks=[best])
        # The best state of each width becomes a model of its own.
        made = []
        for size in sizes:
            model = extract(student, size)
            model.train(False)
            notes = {"width": str(size.width), "heads": size.heads, "neurons": size.neurons}
            notes |= {"best_step": best.restore(_name(size), model)}
            new = before.evolve(_name(size), notes, model=model)
            with session.screen.stage(new.name) as stage:
                made.append(new.scored(session.evaluate(model)))
                stage.say(f"{made[-1].metric:.4f} at {size.heads} heads, {size.neurons} neurons")
        return made

    def _rewire(self, session: Session, student: PreTrainedModel, sizes: Sequence[Size]) -> None:
        assert session.train is not None  # checked before any method runs
        count = -(-IMPORTANCE_SAMPLES // session.train.batch_size)
        batches = list(itertools.islice(session.train, count))
        with session.screen.stage("importance") as stage:
            kind = f"{fingerprint(student)}-{digest_of(session.train.dataset)[:16]}"
            path = session.output / "training" / f"importance-{kind}-blocks.safetensors"
            if self._by_norm:
                importance = weight_norms(student)
            elif path.is_file():  # of a run that was interrupted
                importance = Importance(**load_file(str(path)))
            else:
                importance = measure_importance(student, batches, session.loss, stage.progress)
                with atomic_path(path) as file:
                    save_file(vars(importance), str(file))
            rewire(student, importance)
            found = blocks(student)
            stage.say(f"of {found[0].heads} heads and {found[0].neurons} neurons in {len(found)} blocks")
        with session.screen.stage("reconstruct") as stage:
            inputs = [session.train.labels.without(batch) for batch in batches]
            reconstruct(student, sizes, inputs, stage.progress)
            stage.say("what is cut off, by least squares")
