"""CompressionTrainer: data of any map-style kind, evaluators, losses, and every mistake found before training."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset
from transformers import default_data_collator

from qdq.calibrate.checkpoint import load_checkpoint
from qdq.calibrate.treatments import rounding
from qdq.calibrate.treatments.order import treatment_tensors
from qdq.compress.arguments import CompressionArguments
from qdq.compress.datasets import Batches, LengthGrouped, digest_of
from qdq.compress.evaluators import answer_scores, builtin_evaluator
from qdq.compress.strategy import METHODS as STRATEGY_METHODS
from qdq.compress.trainer import METHODS, CompressionTrainer
from qdq.errors import ConfigError, DataError
from qdq.loading.model import LoadedModel

Load = Callable[..., LoadedModel]
Encode = Callable[..., dict[str, torch.Tensor]]


def arguments(folder: Path, strategy: str = "ptq", **options: Any) -> CompressionArguments:
    options = {"algo_list": ["abs_max"], "report_to": "none", "disable_tqdm": True, "device": "cpu", **options}
    return CompressionArguments(output_dir=str(folder), strategy=strategy, **options)


def samples(loaded: LoadedModel, encode: Encode, count: int = 12) -> list[dict[str, torch.Tensor]]:
    """Encoded sentences, labelled by what the model itself says, so that its accuracy is 1."""
    inputs = encode(loaded, count)
    with torch.no_grad():
        labels = loaded.model(**inputs).logits.argmax(-1)
    return [{**{name: inputs[name][i] for name in inputs}, "labels": labels[i]} for i in range(count)]


def tuples(data: list[dict[str, torch.Tensor]]) -> TensorDataset:
    order = ("input_ids", "attention_mask", "token_type_ids", "labels")
    return TensorDataset(*(torch.stack([row[name] for row in data]) for name in order))


def test_methods_run_in_the_order_of_the_strategy() -> None:
    assert [method.name for method in METHODS] == list(STRATEGY_METHODS)


@pytest.mark.document_row("000/2", "000/13", "000/17", "000/29", "000/39", "000/40")
def test_ptq_writes_a_checkpoint_that_computes_the_same(load_tiny: Load, encode: Encode, tmp_path: Path) -> None:
    loaded = load_tiny()
    data = samples(loaded, encode)
    options = {"algo_list": ["abs_max", "hist"], "batch_size_list": [2, 4], "batch_num_list": [1, None]}
    trainer = CompressionTrainer(
        loaded.model, arguments(tmp_path, **options), eval_dataset=data, tokenizer=loaded.tokenizer
    )
    result = trainer.compress()
    assert result.baseline == 1.0
    assert len(result.candidates) == 8
    best = result.best
    again, spec, _ = load_checkpoint(result.folders[best.name])
    assert spec == best.spec
    inputs = encode(loaded)
    with torch.no_grad():
        assert torch.equal(again.model(**inputs).logits, best.model(**inputs).logits)
    table = json.loads((tmp_path / "compression.json").read_text())
    assert table["best"] == best.name
    assert [row["metric"] for row in table["candidates"]] == [one.metric for one in result.candidates]
    assert [row["metrics"]["accuracy"] for row in table["candidates"]] == [one.metric for one in result.candidates]


TREATED = {
    "algo_list": ["clip", "mse"],
    "round_type": "adaround",
    "bias_correction": True,
    "value_centering": True,
    "equalization": True,
    "smoothing": True,
    "residual_scaling": True,
    "softmax_scale": True,
}


@pytest.mark.document_row("000/43", "000/44")
def test_ptq_treats_weights_as_compile_does(
    load_tiny: Load, encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same engine: what a treated candidate's checkpoint holds, and that only `clip` chooses clips."""
    monkeypatch.setattr(rounding, "ADAROUND_STEPS", 5)
    loaded = load_tiny()
    data = samples(loaded, encode)
    args = arguments(tmp_path, batch_num_list=[None], **TREATED)
    result = CompressionTrainer(loaded.model, args, eval_dataset=data, tokenizer=loaded.tokenizer).compress()
    found = {candidate.notes["algorithm"]: candidate for candidate in result.candidates}
    everything = [
        "bias_correction",
        "value_centering",
        "equalization",
        "smoothing",
        "residual_scaling",
        "softmax_scale",
        "clip_search",
        "adaround",
    ]
    assert found["clip"].notes["treatments"] == everything
    assert "clip_search" not in found["mse"].notes["treatments"]
    for candidate in result.candidates:
        again, _, _ = load_checkpoint(result.folders[candidate.name])
        kinds = {name.rpartition(".")[2] for name in treatment_tensors(again.model)}
        assert {"_bias_offset", "_row_scale", "_column_scale", "_codes", "_bias_shift"} <= kinds
        with torch.no_grad():
            assert torch.equal(again.model(**encode(loaded)).logits, candidate.model(**encode(loaded)).logits)


@pytest.mark.document_row("000/51")
def test_tensor_dataset_is_the_same_data(load_tiny: Load, encode: Encode, tmp_path: Path) -> None:
    loaded = load_tiny()
    data = samples(loaded, encode)
    found = [
        CompressionTrainer(loaded.model, arguments(tmp_path / name), eval_dataset=dataset, tokenizer=loaded.tokenizer)
        .compress()
        .best
        for name, dataset in (("rows", data), ("tensors", tuples(data)))
    ]
    assert found[0].table == found[1].table
    assert found[0].metric == found[1].metric


@pytest.mark.document_row("000/24", "000/25")
def test_custom_evaluate_decides(load_tiny: Load, encode: Encode, tmp_path: Path) -> None:
    loaded = load_tiny()
    seen: list[Any] = []

    def evaluate(model: nn.Module, loader: Any) -> float:
        seen.append(sum(len(batch["labels"]) for batch in loader))
        assert not model.training
        return 0.25

    trainer = CompressionTrainer(
        loaded.model,
        arguments(tmp_path),
        eval_dataset=samples(loaded, encode),
        tokenizer=loaded.tokenizer,
    )
    assert trainer.compress(custom_dynabert_evaluate=evaluate).best.metric == 0.25
    assert seen == [12, 12]  # before and after


@pytest.mark.document_row("000/17")
def test_bad_input_is_found_first(load_tiny: Load, encode: Encode, tmp_path: Path) -> None:
    loaded = load_tiny()
    data = samples(loaded, encode)

    def trainer(strategy: str = "ptq", **options: Any) -> CompressionTrainer:
        options = {"eval_dataset": data, "tokenizer": loaded.tokenizer, **options}
        return CompressionTrainer(loaded.model, arguments(tmp_path / "out", strategy), **options)

    with pytest.raises(DataError, match="custom_evaluate: returned nan"):
        trainer().compress(custom_evaluate=lambda model, loader: float("nan"))
    with pytest.raises(DataError, match="custom_evaluate: returned str"):
        trainer().compress(custom_evaluate=lambda model, loader: "good")
    with pytest.raises(DataError, match="eval_dataset: is missing"):
        trainer(eval_dataset=None).compress()
    with pytest.raises(DataError, match="eval_dataset: is empty"):
        trainer(eval_dataset=[])
    wrong = [*data[:3], {**data[3], "labels": torch.tensor(7)}]
    with pytest.raises(DataError, match=r"eval_dataset: sample 3 has label 7 .* 2 classes"):
        trainer(eval_dataset=wrong).compress()
    with pytest.raises(ConfigError, match="criterion: is str"):
        trainer(criterion="mse")
    assert not (tmp_path / "out" / "compression.json").exists()


@given(st.lists(st.integers(1, 90), min_size=1, max_size=200), st.integers(1, 8), st.integers(0, 3))
def test_grouping_by_length_takes_every_sample_once_in_the_same_order(
    lengths: list[int], batch_size: int, epoch: int
) -> None:
    sampler = LengthGrouped(lengths, batch_size, seed=42)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    torch.manual_seed(len(lengths))  # a run that continues has another global random state
    again = LengthGrouped(lengths, batch_size, seed=42)
    again.set_epoch(epoch)
    assert list(again) == order
    if len(lengths) <= batch_size * LengthGrouped.BATCHES_SORTED:  # one part: batches do not overlap in length
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        spans = sorted((min(lengths[n] for n in b), max(lengths[n] for n in b)) for b in batches)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))


class Pointer(nn.Module):
    """Start and end logits that point at fixed positions, whatever the input."""

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        super().__init__()
        self.spans = dict(enumerate(spans))

    def forward(self, input_ids: torch.Tensor, **others: Any) -> tuple[torch.Tensor, torch.Tensor]:
        starts, ends = torch.zeros(2, *input_ids.shape)
        for row, ids in enumerate(input_ids):
            first, last = self.spans[int(ids[0])]
            starts[row, first] = ends[row, last] = 9.0
        return starts, ends


@pytest.mark.document_row("000/20")
def test_answers_are_scored_by_the_official_rules(load_tiny: Load) -> None:
    """Articles and punctuation do not count, a wrong word costs what SQuAD's F1 says, (0, 0) is no answer."""
    tokenizer = load_tiny().tokenizer
    words = tokenizer.convert_tokens_to_ids(["the", "cat", "finds", "blue", "house", "."])
    texts = [[0, *words], [1, *words], [2, *words]]
    gold = [(2, 3), (4, 5), (0, 0)]  # "cat finds", "blue house", none
    data = [
        {"input_ids": ids, "attention_mask": [1] * 7, "start_positions": span[0], "end_positions": span[1]}
        for ids, span in zip(texts, gold, strict=True)
    ]
    batches = Batches(data, default_data_collator, 2, torch.device("cpu"))
    found = answer_scores(Pointer([(1, 3), (5, 6), (0, 0)]), batches, tokenizer)  # "the cat finds", "house ."
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    with pytest.raises(ConfigError, match="pass tokenizer"):
        builtin_evaluator(load_tiny("bert", "question-answering").model)


def test_other_data_are_noticed() -> None:
    """By every row, one corrected label among many included; rows that differ whenever they are read say nothing."""
    rows = [
        {"input_ids": [1, 2, number], "labels": torch.tensor(number), "spans": [[1], [2, 3]]} for number in range(9)
    ]
    assert digest_of(rows) == digest_of([dict(row) for row in rows]) != ""
    assert len({digest_of(rows), digest_of(rows[:8]), digest_of(rows[::-1])}) == 3
    many = [{"input_ids": [number], "labels": 0} for number in range(1000)]
    assert digest_of(many) != digest_of([*many[:503], {**many[503], "labels": 1}, *many[504:]])

    class Random(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            return {"input_ids": torch.rand(3)}

    assert digest_of(None) == digest_of(Random(range(4))) == ""


def test_the_metric_before_is_that_of_these_rows(tmp_path: Path) -> None:
    """A run that continues reads it from the earlier one; as many other rows are scored anew."""
    metrics = iter((0.5, 0.7))
    session = SimpleNamespace(
        output=tmp_path, model=nn.Linear(1, 1), evaluate=lambda model: next(metrics), eval=SimpleNamespace(dataset=None)
    )
    owner: Any = SimpleNamespace(is_world_process_zero=lambda: True)

    def before(*numbers: int) -> float:
        session.eval.dataset = [{"input_ids": [number]} for number in numbers]
        return CompressionTrainer._baseline(owner, session, custom=False)  # type: ignore[arg-type]

    assert [before(1, 2), before(1, 2), before(1, 3)] == [0.5, 0.5, 0.7]
