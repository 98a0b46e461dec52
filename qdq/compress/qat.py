"""The method `qat`: quantizers calibrated by PTQ, then trained together with the weights they quantize."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from qdq.calibrate.calibrate import summarise
from qdq.calibrate.treatments.rounding import fold_rounding
from qdq.calibrate.treatments.share_skips import tie_skips
from qdq.compress.best import KeepBest
from qdq.compress.distillation import (
    counted,
    labelled,
    logit_error,
    recorded_states,
    soft_cross_entropy,
    squared_error,
)
from qdq.compress.evaluators import logits_of
from qdq.compress.fake_quant import RangeSettings, finish, make_trainable, trained_quantizers
from qdq.compress.method import CompressedModel, Method, Session
from qdq.compress.ptq import Ptq
from qdq.compress.training import fingerprint, train
from qdq.tasks.heads import head_of_model

DISTILLED_SHARE = 0.9  # of the loss; the labels have the rest
STATE_WEIGHT = 10.0  # of hidden states against logits, whose gradients come from few texts only
RANGE_RATE = 30.0  # learning rate of learnable ranges, times that of the weights


class QuantizedTraining(nn.Module):
    """Module of a QAT training: its loss is the task loss of the quantized model and its distance from the teacher."""

    accepts_loss_kwargs = False

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel | None, session: Session) -> None:
        super().__init__()
        self.student = student
        self._teacher, self._session = (teacher,), session

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """The batch of the student model, with labels."""
        mask = counted(batch)
        for point in trained_quantizers(self.student):
            point.token_mask = mask
        try:
            teacher = self._teacher[0]
            if self._session.recipe is not None:
                return {"loss": self._session.recipe.distance(self.student, batch)}
            if teacher is None:
                return {"loss": self._session.loss(self.student, batch, None)}
            outputs: list[Any] = []
            hook = self.student.register_forward_hook(lambda module, inputs, output: outputs.append(output))
            with recorded_states(self.student) as states, hook:
                loss = self._session.loss(self.student, batch, None)
            distance = self._distance(teacher, batch, logits_of(outputs[0]), states)
        finally:
            for point in trained_quantizers(self.student):
                point.token_mask = None
        return {"loss": (1 - DISTILLED_SHARE) * loss + DISTILLED_SHARE * distance}

    def _distance(
        self, teacher: PreTrainedModel, batch: dict[str, Tensor], logits: Any, states: list[Tensor]
    ) -> Tensor:
        labels = self._session.eval.labels
        inputs = labels.without(batch)
        with torch.no_grad(), recorded_states(teacher) as wanted:
            target = logits_of(teacher(**inputs))
        error = squared_error(states, wanted, counted(batch))
        counts = labelled(batch, labels)
        if head_of_model(teacher).kind == "marks":
            return soft_cross_entropy(logits, target, counts, "marks") + STATE_WEIGHT * error
        return logit_error(logits, target, counts) + STATE_WEIGHT * error

    def freeze(self) -> None:
        """Let the activation ranges stay as they are."""
        for point in trained_quantizers(self.student):
            point.frozen = True
            if point.learns:
                point.clip.requires_grad_(False)
                point.clip.grad = None


class FreezeRanges(TrainerCallback):
    """Freezes the ranges after a share of all steps; a resumed run freezes them at the same step."""

    def __init__(self, module: QuantizedTraining, share: float) -> None:
        self.module, self.share = module, share

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Freeze when the share is reached; transformers calls this before every step."""
        if state.global_step >= self.share * state.max_steps:
            self.module.freeze()


class Qat(Method):
    """Quantization-aware training from the best PTQ-calibrated model of the lists.

    `window`: batches that range_abs_max looks back; None is all of them.
    """

    name = "qat"

    def __init__(self, window: int | None = None) -> None:
        self._window = window

    def run(self, session: Session, before: CompressedModel) -> list[CompressedModel]:
        """The trained quantized model."""
        # Calibrate, and let the ranges learn.
        start = Ptq(self.name).run(session, before)[0]
        assert start.spec is not None and start.table is not None  # PTQ has quantized it
        student = start.model
        args = session.args
        kind = args.activation_quantize_type or "moving_average_abs_max"
        settings = RangeSettings(kind, args.moving_rate, args.use_pact, self._window)
        fold_rounding(student)  # the training starts from the rounded weights and corrected biases
        originals = make_trainable(student, settings)
        teacher = None
        if args.distillation and session.recipe is None:  # from the given model, of full width
            teacher = copy.deepcopy(session.teacher or session.model).train(False).requires_grad_(False)
        # Train, and take the best model that was passed through.
        module = QuantizedTraining(student, teacher, session)
        deciding = {"model": fingerprint(student), "ranges": settings, "distillation": args.distillation}
        deciding["freeze_observers"] = args.freeze_observers
        folder = session.output / "training" / (f"{before.name}-qat" if before.name else "qat")
        best = KeepBest(session, folder, {self.name: lambda: student})
        train(session, module, folder, deciding, RANGE_RATE, [FreezeRanges(module, args.freeze_observers), best])
        step = best.restore(self.name, student)
        finish(student, originals)
        if start.spec.shared_skip:  # each quantizer has learned a range of its own
            tie_skips(student)
        student.train(False)
        # Describe and score it.
        table = summarise(student, "qat", None, start.table.samples, start.table.tokens)
        notes = {"calibrated": start.notes["algorithm"], "calibrated_metric": start.metric, "pact": args.use_pact}
        notes |= {"best_step": step}
        made = before.evolve("qat", notes, model=student, spec=start.spec, table=table)
        with session.screen.stage(made.name) as stage:
            made = made.scored(session.evaluate(student))
            stage.say(f"{made.metric:.4f}; {start.metric:.4f} before training")
        return [made]
