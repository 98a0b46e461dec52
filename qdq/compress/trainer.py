"""CompressionTrainer: transformers' Trainer with one more method, `compress`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import DataCollatorForTokenClassification, PreTrainedModel, Trainer

from qdq.base.artifacts import write_json
from qdq.base.screen import Screen
from qdq.compress.arguments import CompressionArguments
from qdq.compress.callbacks import bound
from qdq.compress.datasets import SPAN_COLUMNS, Batches, Labels, check_labels, digest_of, named
from qdq.compress.dynabert import DynaBert
from qdq.compress.dynamic import Dynamic
from qdq.compress.embeddings import Embeddings
from qdq.compress.engine_module import Scoring
from qdq.compress.evaluators import CustomEvaluate, builtin_evaluator, evaluator_on
from qdq.compress.loss import CalcLoss, Criterion, TaskLoss
from qdq.compress.method import CompressedModel, CompressionResult, Method, Session
from qdq.compress.output import save, save_tokenizer, show
from qdq.compress.ptq import Ptq
from qdq.compress.qat import Qat
from qdq.compress.training import fingerprint
from qdq.errors import ConfigError, DataError
from qdq.loading.own_class import is_own, reference_to, require_encoder
from qdq.loading.tokenizer import longest_sequence
from qdq.pipeline.options import CompileOptions

# In the order they run; see `qdq.compress.strategy`.
METHODS: tuple[Method, ...] = (DynaBert(), Ptq(), Qat(), Dynamic(), Embeddings())


class CompressionTrainer(Trainer):
    """A Trainer that compresses its model.

    Args beyond Trainer's:
        args: CompressionArguments, also in the tuple that `parse_args_into_dataclasses` returns.
        tokenizer: the documented name of `processing_class`.
        criterion: loss of (logits, labels), a function or a module; None is the model's own loss.

    `train_dataset` may be None for strategies without training. `eval_dataset` is required: it selects candidates and
    calibrates PTQ.
    """

    args: CompressionArguments
    teacher: PreTrainedModel | None = None  # of distillations; None is the model itself

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *positional: Any,
        tokenizer: Any = None,
        criterion: Any = None,
        **options: Any,
    ) -> None:
        args = _arguments_of(args)
        if criterion is not None and not callable(criterion):
            raise ConfigError(f"criterion: is {type(criterion).__name__}; give a function or a module")
        if tokenizer is not None:
            options.setdefault("processing_class", tokenizer)
        if model is None and "model_init" not in options:
            if args.input_infer_model_path is None:
                raise ConfigError("model: is missing; give a model, or input_infer_model_path with strategy ptq")
            model = nn.Identity()  # Trainer insists on a module; an ONNX file is quantized instead
        super().__init__(model, args, *positional, **options)
        self.labels = Labels(tuple(args.label_names or ()))
        self.label_names = self.label_names or ["labels"]  # a class of the user's own may take none in its forward
        self.criterion: Criterion | None = criterion
        if isinstance(criterion, nn.Module):
            criterion.to(args.device)
        self._name_data(given_collator=bool(positional) or options.get("data_collator") is not None)

    def _name_data(self, given_collator: bool) -> None:
        """Turn tuples into mappings, and pad token labels like the tokens unless the caller brought a collator."""
        if isinstance(self.model, nn.Identity):
            return
        if self.train_dataset is not None:
            self.train_dataset = named(self.train_dataset, self._given, "train_dataset", self.labels.names)
        if self.eval_dataset is not None and not isinstance(self.eval_dataset, dict):
            self.eval_dataset = named(self.eval_dataset, self._given, "eval_dataset", self.labels.names)
            first: Any = self.eval_dataset[0]  # type: ignore[index]  # one dataset, not several by name
            pair = self.labels.columns(first)
            if pair in SPAN_COLUMNS:  # columns that no forward takes would be removed as unused
                self.label_names = list(pair)
        tokens = type(self.model).__name__.endswith("ForTokenClassification")
        if tokens and not given_collator and self.processing_class is not None:
            self.data_collator = DataCollatorForTokenClassification(self.processing_class)  # type: ignore[arg-type]

    @property
    def _given(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self.model)

    def compress(
        self,
        custom_evaluate: CustomEvaluate | None = None,
        custom_dynabert_evaluate: CustomEvaluate | None = None,
        custom_dynabert_calc_loss: CalcLoss | None = None,
    ) -> CompressionResult:
        """Run the strategy and write every model it makes below `output_dir`.

        Args:
            custom_evaluate: ``(model, dataloader) -> float``, larger is better; None is the built-in one of the class.
            custom_dynabert_evaluate: the older name of the same.
            custom_dynabert_calc_loss: ``(loss_fct, model, batch, head_mask) -> scalar``.

        A function that takes `self` first gets this trainer. The methods of several strategies that begin alike run
        once. A run that was killed continues when it is started again with the same arguments. Raises ConfigError and
        DataError for everything that cannot work before anything is trained.
        """
        strategy = self.args.chosen_strategy
        evaluate = bound(custom_evaluate or custom_dynabert_evaluate, 2, self, "custom_evaluate")
        calc_loss = bound(custom_dynabert_calc_loss, 4, self, "custom_dynabert_calc_loss")
        if self.args.input_infer_model_path is not None:
            return self._compress_file(evaluate)
        session = self._session(evaluate, calc_loss)
        methods = {method.name: method for method in METHODS if method.name in strategy}
        self._check(session, list(methods.values()), custom=evaluate is not None)
        # Every chain of methods once, whatever strategies begin with it.
        made: dict[tuple[str, ...], list[CompressedModel]] = {}
        made[()] = [CompressedModel("", session.model, metric=session.baseline)]
        for names in (one.methods[:count] for one in strategy.each for count in range(1, len(one.methods) + 1)):
            if names not in made:
                method = methods[names[-1]]
                made[names] = [model for before in made[names[:-1]] for model in method.run(session, before)]
        return self._finish(session, [model for one in strategy.each for model in made[one.methods]])

    def _session(self, evaluate: CustomEvaluate | None, calc_loss: CalcLoss | None) -> Session:
        require_encoder(self._given)
        if self.eval_dataset is None:
            raise DataError("eval_dataset: is missing; it selects among candidates and calibrates; give one")
        if isinstance(self.eval_dataset, dict):
            raise DataError("eval_dataset: is a dictionary of datasets; give the one that decides")
        batches = self._batches(self.eval_dataset, "evaluation")
        train = None if self.train_dataset is None else self._batches(self.train_dataset, "training")
        scored = evaluator_on(batches, evaluate, lambda: builtin_evaluator(self._given, self.processing_class))
        loss, output = TaskLoss(self.criterion, calc_loss, self.labels), Path(str(self.args.output_dir))
        found = (self._given, self.args, scored, loss, train, batches, output, Screen())
        return Session(self, *found, teacher=self.teacher)

    def _batches(self, dataset: Any, description: str) -> Batches:
        """`dataset` as Trainer would collate it, unused columns removed."""
        collate = self._get_collator_with_removed_columns(self.data_collator, description=description)
        return Batches(dataset, collate, self.args.per_device_eval_batch_size, self._given.device, self.labels)

    def _check(self, session: Session, methods: list[Method], custom: bool) -> None:
        """Raise for everything that can be wrong, before any of it costs minutes."""
        if session.args.chosen_strategy.trains:
            if self.train_dataset is None:
                raise DataError(f"train_dataset: is missing; strategy {session.args.strategy} trains, give one")
            check_labels(self.train_dataset, self._given, "train_dataset", self.labels)
        for method in methods:
            method.check(session)
        if session.args.chosen_strategy.trains:
            assert session.train is not None
            session.loss(session.model, next(iter(session.train)), None)
        check_labels(self.eval_dataset, self._given, "eval_dataset", self.labels)
        with session.screen.stage("evaluate") as stage:
            session.baseline = self._baseline(session, custom)
            stage.say(f"{session.baseline:.4f} before compression")

    def _baseline(self, session: Session, custom: bool) -> float:
        """Metric of the given model; a run that continues reads the built-in evaluator's from the earlier one."""
        record = session.output / "training" / "baseline.json"
        rows = digest_of(session.eval.dataset)
        key = f"{fingerprint(session.model)} on {rows}"
        earlier = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        if rows and not custom and earlier.get("of") == key:
            return float(earlier["metric"])
        metric = session.evaluate(session.model)
        if not custom and self.is_world_process_zero():
            write_json(record, {"of": key, "metric": metric})
        return metric

    def _finish(self, session: Session, models: list[CompressedModel]) -> CompressionResult:
        scored = [made if made.metric is not None else made.scored(session.evaluate(made.model)) for made in models]
        if self.is_world_process_zero():
            for made in scored:
                save(session, made, session.output / made.name)
        result = self._report(session.screen, session.baseline, scored)
        if self.is_world_process_zero() and self.args.deploy:
            self._deploy(session.screen, Scoring(session.model, session.evaluate))
        self.accelerator.wait_for_everyone()
        return result

    def _deploy(self, screen: Screen, scoring: Scoring) -> None:
        """Engines of everything in `output_dir`, scored by the evaluator of this call."""
        from qdq.compress.deploy import deploy  # not above: `python -m qdq.compress.deploy` imports this module

        options: dict[str, Any] = {"eval_data": self.args.deploy_data, "task": self.args.task}
        if isinstance(scoring.model, PreTrainedModel):
            limit = getattr(self.processing_class, "model_max_length", CompileOptions.sequence)
            options["sequence"] = min(CompileOptions.sequence, longest_sequence(scoring.model), int(limit))
            options["model_class"] = reference_to(type(scoring.model)) if is_own(type(scoring.model)) else None
        deploy(Path(str(self.args.output_dir)), self.args.deploy, screen, scoring, **options)

    def _report(self, screen: Screen, baseline: float, models: list[CompressedModel]) -> CompressionResult:
        """Rank the models that were written, write compression.json and show it."""
        output = Path(str(self.args.output_dir))
        ranked = sorted(models, key=lambda made: -(made.metric or 0.0))
        result = CompressionResult(baseline, tuple(ranked), {made.name: output / made.name for made in ranked})
        if self.is_world_process_zero():
            # Deployment exports with this type of inputs.
            asked = {"strategy": self.args.chosen_strategy.name, "input_dtype": self.args.input_dtype}
            write_json(output / "compression.json", result.as_json() | asked)
            show(screen, result)
        return result

    def _compress_file(self, evaluate: CustomEvaluate | None) -> CompressionResult:
        """PTQ of the ONNX file; the result holds the quantized graphs as callable modules."""
        from qdq.compress.onnx_file import compress_file

        if self.eval_dataset is None or isinstance(self.eval_dataset, dict):
            raise DataError("eval_dataset: is missing; it calibrates and selects, give one")
        screen = Screen()
        batches = Batches(
            self.eval_dataset,
            self.data_collator,
            self.args.per_device_eval_batch_size,
            torch.device("cpu"),
            self.labels,
        )
        baseline, models, module, score = compress_file(self.args, batches, evaluate, self.processing_class, screen)
        result = self._report(screen, baseline, models)
        if self.processing_class is not None:
            for folder in result.folders.values():
                save_tokenizer(self.processing_class, screen, folder)
        if self.args.deploy:
            self._deploy(screen, Scoring(module, score))
        return result


def _arguments_of(args: Any) -> CompressionArguments:
    """The arguments, also as the one of what `parse_args_into_dataclasses` returns. Raises ConfigError."""
    found = (
        [one for one in args if isinstance(one, CompressionArguments)] if isinstance(args, (tuple, list)) else [args]
    )
    if len(found) == 1 and isinstance(found[0], CompressionArguments):
        return found[0]
    what = (
        f"{type(args).__name__} with {len(found)} of them" if isinstance(args, (tuple, list)) else type(args).__name__
    )
    raise ConfigError(f"args: is {what}; give CompressionArguments")
