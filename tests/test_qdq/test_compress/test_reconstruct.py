"""Least squares after pruning: what stays takes over what was cut off."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdq.compress import reconstruct as module
from qdq.compress.elastic import extract, size_at
from qdq.compress.reconstruct import reconstruct, solve
from qdq.inject.widths import blocks
from qdq.loading.model import LoadedModel
from qdq.loading.pruned import PRUNABLE

Load = Callable[..., LoadedModel]
Encode = Callable[..., dict[str, torch.Tensor]]


@given(
    seed=st.integers(0, 10_000), counts=st.lists(st.integers(1, 7), min_size=1, max_size=3), always=st.integers(0, 1)
)
def test_solve_minimises_the_summed_error_of_all_widths(seed: int, counts: list[int], always: int) -> None:
    """Against numpy's least squares on the stacked problem, ridge and all."""
    generator = np.random.default_rng(seed)
    x, weight = generator.normal(size=(40, 7 + always)), generator.normal(size=(3, 7 + always))
    product = torch.from_numpy(x.T @ x)
    columns, unknowns = max(counts), max(counts) + always
    rows, wanted = [], []
    for count in counts:
        kept = np.zeros((40, unknowns))
        kept[:, :count] = x[:, :count]
        kept[:, columns:] = x[:, 7:]
        rows.append(kept)
        wanted.append(x @ weight.T)
    diagonal = np.square(np.concatenate(rows)).sum(0)[:columns].mean()
    ridge = np.sqrt(module.RIDGE * diagonal) * np.eye(unknowns)[:columns]
    before = np.concatenate([weight[:, :columns], weight[:, 7:]], 1)
    rows.append(ridge)
    wanted.append(ridge @ before.T)
    expected = np.linalg.lstsq(np.concatenate(rows), np.concatenate(wanted), rcond=None)[0].T
    found = solve(product, torch.from_numpy(weight), counts, always)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-8)


@pytest.mark.parametrize("model_type", sorted(PRUNABLE))
def test_a_narrow_model_comes_nearer_to_the_whole_one(model_type: str, load_tiny: Load, encode: Encode) -> None:
    """Neurons that repeat others are cut off, and what they did is not lost."""
    heads = "n_heads" if model_type == "distilbert" else "num_attention_heads"
    loaded = load_tiny(model_type, "text-classification", **{heads: 4})
    model, inputs = loaded.model, encode(loaded)
    for block in blocks(model):
        with torch.no_grad():
            linear, kept = block.linear("up"), block.neurons // 2
            linear.weight[kept:] = linear.weight[:kept]
            linear.bias[kept:] = linear.bias[:kept]
            block.linear("down").weight.mul_(5)
    size = size_at(model, Fraction(1, 2))
    whole = size_at(model, Fraction(1))
    # heads stay: only neurons are looked at here
    neurons = type(size)(size.width, whole.heads, size.neurons)
    with torch.no_grad():
        wanted = model(**inputs).logits
        cut = extract(model, neurons)(**inputs).logits
        reconstruct(model, [neurons], [{**inputs, "labels": torch.zeros(len(wanted), dtype=torch.long)}])
        found = extract(model, neurons)(**inputs).logits
    assert (found - wanted).square().mean() < (cut - wanted).square().mean() / 50


def test_the_full_width_stays_as_it_is(load_tiny: Load, encode: Encode) -> None:
    loaded = load_tiny(num_attention_heads=4)
    before = copy.deepcopy(loaded.model.state_dict())
    reconstruct(loaded.model, [size_at(loaded.model, Fraction(1))], [encode(loaded)])
    for name, tensor in loaded.model.state_dict().items():
        assert torch.allclose(tensor, before[name], atol=1e-4), name


def test_padding_does_not_count(load_tiny: Load, encode: Encode) -> None:
    loaded = load_tiny(num_attention_heads=4)
    inputs = encode(loaded)
    padded = {name: torch.nn.functional.pad(tensor, (0, 9)) for name, tensor in inputs.items()}
    results = []
    for batch in (inputs, padded):
        model = copy.deepcopy(loaded.model)
        reconstruct(model, [size_at(model, Fraction(1, 2))], [batch])
        results.append(blocks(model)[0].linear("down").weight)
    assert torch.allclose(*results, atol=1e-4)
