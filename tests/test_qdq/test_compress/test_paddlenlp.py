"""The lines of PaddleNLP's compression documents, typed as printed but for paddle's own functions and models."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qdq.compress.paddlenlp import OFA, CompressionArguments, PdArgumentParser, Trainer
from qdq.errors import ConfigError, DataError
from qdq.loading.model import LoadedModel
from qdq.loading.own_class import import_class

Load = Callable[..., LoadedModel]
Encode = Callable[..., dict[str, Tensor]]
OWN = Path(__file__).resolve().parents[1] / "own_models.py"
QUIET = ("--report_to", "none", "--disable_tqdm", "True", "--device", "cpu")


def parsed(folder: Path, *words: str) -> Any:
    parser = PdArgumentParser(CompressionArguments)
    return parser.parse_args_into_dataclasses(["--output_dir", str(folder), *words, *QUIET])


def samples(load_tiny: Load, encode: Encode) -> tuple[LoadedModel, list[dict[str, Tensor]]]:
    """A tiny classifier, and sentences labelled by what it says itself."""
    loaded = load_tiny(num_hidden_layers=1)
    inputs = encode(loaded)
    with torch.no_grad():
        labels = loaded.model(**inputs).logits.argmax(-1)
    return loaded, [{**{name: inputs[name][i] for name in inputs}, "labels": labels[i]} for i in range(len(labels))]


@pytest.mark.document_row("000/12", "000/13", "000/17")
def test_what_the_parser_returns_is_given_to_the_trainer_as_it_is(
    load_tiny: Load, encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = samples(load_tiny, encode)
    monkeypatch.setattr(
        sys, "argv", ["compress.py", "--output_dir", str(tmp_path), "--strategy", "ptq", "--algo_list", "hist", *QUIET]
    )
    # Step1: 使用 `PdArgumentParser` 解析从命令行传入的超参数，以获取压缩参数 `compression_args`；
    parser = PdArgumentParser(CompressionArguments)
    compression_args = parser.parse_args_into_dataclasses()

    # Step2: 实例化 Trainer 并调用 compress()
    trainer = Trainer(
        model=model.model,
        args=compression_args,
        data_collator=None,
        train_dataset=None,
        eval_dataset=data,
        criterion=None,
    )
    result = trainer.compress()
    assert (result.baseline, result.best.name) == (1.0, "hist-4x1")
    with pytest.raises(ConfigError, match="args: is tuple with 0 of them"):
        Trainer(model=model.model, args=())
    with pytest.raises(ConfigError, match="args: is dict; give CompressionArguments"):
        Trainer(model=model.model, args={})


@pytest.mark.document_row("000/22", "000/23", "000/24")
def test_an_evaluator_that_is_printed_as_a_method(load_tiny: Load, encode: Encode, tmp_path: Path) -> None:
    loaded, data = samples(load_tiny, encode)

    @torch.no_grad()
    def evaluate_seq_cls(self: Any, model: nn.Module, data_loader: Any) -> float:
        correct = []
        model.eval()
        for batch in data_loader:
            logits = model(input_ids=batch["input_ids"], token_type_ids=batch["token_type_ids"]).logits
            # Supports paddleslim.nas.ofa.OFA model and nn.layer model.
            if isinstance(model, OFA):
                logits = logits[0]
            correct.append(logits.argmax(-1) == batch["labels"])
        res = torch.cat(correct).float().mean()
        seen.append(self)
        model.train()
        return float(res)

    seen: list[Any] = []
    trainer = Trainer(loaded.model, parsed(tmp_path, "--strategy", "ptq", "--algo_list", "abs_max"), eval_dataset=data)
    result = trainer.compress(custom_evaluate=evaluate_seq_cls)
    assert seen == [trainer, trainer]
    assert 0 < (result.best.metric or 0) <= 1
    with pytest.raises(ConfigError, match="custom_evaluate: takes 1 arguments; it is called with 2"):
        trainer.compress(custom_evaluate=lambda model: 1.0)  # type: ignore[arg-type, misc]
    with pytest.raises(ConfigError, match="custom_evaluate: takes 4 arguments"):
        trainer.compress(custom_evaluate=lambda a, b, c, d: 1.0)  # type: ignore[arg-type, misc]


@pytest.mark.document_row("000/25", "000/26")
def test_older_functions_call_the_model_in_paddles_order(load_tiny: Load, encode: Encode, tmp_path: Path) -> None:
    loaded, data = samples(load_tiny, encode)
    masks: list[Any] = []

    @torch.no_grad()
    def evaluate_seq_cls(model: nn.Module, data_loader: Any) -> float:
        correct = []
        model.eval()
        for batch in data_loader:
            logits = model(batch["input_ids"],
                           batch["token_type_ids"],
                           attention_mask=[None, None])  # fmt: skip
            # Supports paddleslim.nas.ofa.OFA model and nn.layer model.
            if isinstance(model, OFA):
                logits = logits[0]
            correct.append(logits.argmax(-1) == batch["labels"])
        model.train()
        return float(torch.cat(correct).float().mean())

    def calc_loss(loss_fct: Any, model: nn.Module, batch: Any, head_mask: Any) -> Tensor:
        logits = model(batch["input_ids"],
                    batch["token_type_ids"],
                    attention_mask=[None, head_mask])  # fmt: skip
        masks.append(head_mask)
        loss: Tensor = loss_fct(logits, batch["labels"])
        return loss

    words = ("--strategy", "dynabert", "--width_mult_list", "1/2", "--max_steps", "1")
    trainer = Trainer(loaded.model, parsed(tmp_path, *words), train_dataset=data, eval_dataset=data)
    result = trainer.compress(custom_dynabert_evaluate=evaluate_seq_cls, custom_dynabert_calc_loss=calc_loss)
    assert result.baseline == 1.0  # padding was left out as by the mask of the data
    assert any(mask is not None and mask.shape == (1, 2) for mask in masks)
    assert not loaded.model._forward_hooks and not loaded.model._forward_pre_hooks


@pytest.mark.document_row("000/18", "000/19")
def test_criterion_of_start_and_end_ids(load_tiny: Load, encode: Encode, tmp_path: Path) -> None:
    loaded = load_tiny("bert", "feature-extraction", num_hidden_layers=1)
    model = import_class(f"{OWN}:Spans")(loaded.model.config)
    inputs = encode(loaded)
    marks = torch.zeros_like(inputs["input_ids"])
    marks[:, 2] = 1
    data = [
        {**{name: inputs[name][i] for name in inputs}, "start_ids": marks[i], "end_ids": marks[i]}
        for i in range(len(marks))
    ]
    labels_seen = []

    def criterion(logits: Any, labels: Any) -> Tensor:
        loss_fct = nn.BCELoss()
        start_ids, end_ids = labels
        start_prob, end_prob = logits
        start_ids = start_ids.float()
        end_ids = end_ids.float()
        loss_start = loss_fct(start_prob, start_ids)
        loss_end = loss_fct(end_prob, end_ids)
        loss: Tensor = (loss_start + loss_end) / 2.0
        labels_seen.append(start_ids.shape)
        return loss

    words = ("--strategy", "dynabert", "--width_mult_list", "1/2", "--max_steps", "1")
    for names in ((), ("--label_names", "start_ids", "end_ids")):
        trainer = Trainer(
            model=model,
            args=parsed(tmp_path / str(len(names)), *words, *names),
            train_dataset=data,
            eval_dataset=data,
            criterion=criterion,
        )
        trainer.compress(custom_evaluate=lambda model, loader: float(len(list(loader))))
    assert labels_seen
    wrong = parsed(tmp_path / "wrong", *words, "--label_names", "starts", "end_ids")
    trainer = Trainer(model=model, args=wrong, train_dataset=data, eval_dataset=data, criterion=criterion)
    with pytest.raises(DataError, match="a batch has no starts or no end_ids, which label_names names"):
        trainer.compress(custom_evaluate=lambda model, loader: 1.0)


@pytest.mark.document_row("000/27", "000/28")
def test_several_strategies_are_tried_and_the_best_is_marked(load_tiny: Load, encode: Encode, tmp_path: Path) -> None:
    loaded, data = samples(load_tiny, encode)
    words = ("--strategy", "dynabert+ptq,dynabert,ptq", "--algo_list", "abs_max", "--width_mult_list", "1/2")
    args = parsed(tmp_path, *words, "--max_steps", "1")
    trainer = Trainer(loaded.model, args, train_dataset=data, eval_dataset=data, tokenizer=loaded.tokenizer)
    result = trainer.compress()
    names = {candidate.name for candidate in result.candidates}
    assert names == {"width-0.5-abs_max-4x1", "width-0.5", "abs_max-4x1"}
    assert result.best.metric == max(candidate.metric or 0 for candidate in result.candidates)
    assert {path.name for path in tmp_path.iterdir() if (path / "config.json").is_file()} == names
