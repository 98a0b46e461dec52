"""Every algorithm from one calibration pass: what a pass of its own gives, whatever the size of the forwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qdq.calibrate.algorithms import Algorithm, algorithm_named
from qdq.calibrate.calibrate import collect, freeze_weights, settle
from qdq.calibrate.rebatch import MicroBatches
from qdq.calibrate.table import CalibrationTable
from qdq.errors import DataError
from qdq.inject import inject
from qdq.inject.spec import named_spec
from qdq.loading.model import LoadedModel, load_model
from qdq.text.data import Record
from qdq.text.encode import encode_batch

Batches = Sequence[Mapping[str, Tensor]]
Checkpoint = Callable[..., Path]

ALL = named_spec("qdqbert")
QUERY = "bert.encoder.layer.0.attention.self.query.input_quantizer"
EVERY = [algorithm_named(name) for name in ("max", "percentile", "hist", "KL", "mse", "emd", "avg", "moving_average")]


@pytest.fixture(scope="module")
def bert(tiny_checkpoint: Checkpoint) -> LoadedModel:
    """Never injected itself: `injected` copies it."""
    return load_model(str(tiny_checkpoint("bert")))


@pytest.fixture(scope="module")
def records(sentences: tuple[str, ...]) -> list[Record]:
    return [Record(text, sentences[-index] if index % 4 == 0 else None) for index, text in enumerate(sentences[:20])]


def injected(loaded: LoadedModel) -> nn.Module:
    module = copy.deepcopy(loaded.module())
    inject(module.model, ALL)
    freeze_weights(module)
    return module


def tensors(feeds: Any) -> Batches:
    return [{name: torch.from_numpy(array) for name, array in feed.items()} for feed in feeds]


def of_size(loaded: LoadedModel, records: list[Record], size: int) -> Batches:
    """The records as batches of that many, padded to their longest."""
    groups = [records[i : i + size] for i in range(0, len(records), size)]
    return tensors(encode_batch(loaded.tokenizer, group, loaded.inputs, 64, pad_to="longest") for group in groups)


def tables(
    loaded: LoadedModel, batches: Batches, size: int, algorithms: Sequence[Algorithm] = EVERY
) -> dict[str, CalibrationTable]:
    """Every algorithm from one pass, as the user's batches of `size`."""
    module = injected(loaded)
    collected = collect(module, MicroBatches.of(batches, size), algorithms)
    return {algorithm.label: settle(module, ALL, collected, algorithm) for algorithm in algorithms}


def test_one_pass_gives_what_a_pass_for_each_algorithm_gives(bert: LoadedModel, records: list[Record]) -> None:
    batches = of_size(bert, records, 4)
    together = tables(bert, batches, 4)
    for algorithm in EVERY:
        assert tables(bert, batches, 4, [algorithm])[algorithm.label] == together[algorithm.label]


def test_batch_size_changes_nothing_but_the_per_batch_algorithms(bert: LoadedModel, records: list[Record]) -> None:
    """To the last bit, padding and order within the forwards included."""
    found = [tables(bert, of_size(bert, records, size), size) for size in (1, 4, 16)]
    assert found[0]["mse"].samples == len(records)
    for label in found[0]:
        if label == "moving_average":
            assert found[0][label] != found[1][label] != found[2][label]
        elif label != "avg":
            assert found[0][label] == found[1][label] == found[2][label], label


def test_average_is_that_of_the_users_batches(bert: LoadedModel, records: list[Record]) -> None:
    """Mean over batches of four of the mean of the samples' largest magnitudes, computed from single samples."""
    singles = of_size(bert, records, 1)
    largest = [tables(bert, [single], 1, EVERY[:1])["max"].activations[QUERY] for single in singles]
    means = [np.mean(largest[i : i + 4]) for i in range(0, len(records), 4)]
    found = tables(bert, singles, 4)["avg"].activations[QUERY]
    assert found == pytest.approx(float(np.mean(means)), rel=1e-5)


def test_rebatching_needs_samples_of_one_kind(bert: LoadedModel, records: list[Record]) -> None:
    batch = dict(of_size(bert, records, 4)[0])
    with pytest.raises(DataError, match="there are no samples"):
        MicroBatches.of([], 4)
    with pytest.raises(DataError, match="different inputs"):
        MicroBatches.of([batch, {name: batch[name] for name in ("input_ids", "attention_mask")}], 4)


def test_choices_of_one_sample_stay_together(tiny_checkpoint: Checkpoint, records: list[Record]) -> None:
    loaded = load_model(str(tiny_checkpoint("bert", "multiple-choice")))
    fives = [records[i : i + 5] for i in (0, 5, 10, 15)]
    batches = tensors([encode_batch(loaded.tokenizer, five, loaded.inputs, 64, choices=2) for five in fives])
    one, two = tables(loaded, batches, 5), tables(loaded, batches, 10)
    assert one["mse"] == two["mse"]
    assert one["mse"].samples == 20
    assert one["moving_average"] != two["moving_average"]
