"""The attention function and its mask: equal to transformers' own, with a mask that fits FP16."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from qdq.errors import ModelError
from qdq.inject import inject
from qdq.inject.attention import IMPLEMENTATION, MASKED_SCORE, additive_mask, attention_forward, register
from qdq.inject.spec import named_spec
from qdq.loading.model import LoadedModel


def owner(**quantizers: Any) -> Any:
    """A stand-in for an attention module."""
    names = {f"matmul_{operand}_input_quantizer": quantizers.get(operand) for operand in "qkav"}
    return SimpleNamespace(training=False, **names)


def operands(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(3, 2, 5, 4, generator=generator) for _ in range(3))
    return q, k, v


LENGTHS = torch.tensor([5, 3, 1])
MASK = torch.arange(5)[None, :] < LENGTHS[:, None]


def test_an_encoder_mask_is_one_row_per_text_and_fits_fp16() -> None:
    mask = additive_mask(MASK, bidirectional_mask_function, q_length=5, dtype=torch.float32)
    assert mask is not None
    assert mask.shape == (3, 1, 1, 5)
    assert torch.equal(mask[:, 0, 0], torch.where(MASK, 0.0, MASKED_SCORE))
    assert float(np.float16(MASKED_SCORE)) == MASKED_SCORE
    assert additive_mask(None, bidirectional_mask_function, q_length=5) is None


@pytest.mark.parametrize("padding", [None, MASK])
def test_a_causal_mask_hides_what_comes_later(padding: torch.Tensor | None) -> None:
    mask = additive_mask(padding, causal_mask_function, q_length=5)
    assert mask is not None
    seen = torch.ones(5, 5, dtype=torch.bool).tril()[None]
    expected = seen if padding is None else seen & padding[:, None, :]
    assert torch.equal(mask[:, 0], torch.where(expected, 0.0, MASKED_SCORE))


def test_another_pattern_is_refused_instead_of_taken_for_one_of_the_two() -> None:
    with pytest.raises(ModelError, match="packed sequences or windows"):
        additive_mask(MASK, lambda batch, head, q, k: q - k < 4, q_length=5)


@pytest.mark.parametrize("scaling", [None, 1.0, 0.5])
def test_without_quantizers_it_is_scaled_dot_product_attention(scaling: float | None) -> None:
    q, k, v = operands()
    mask = additive_mask(MASK, q_length=5)
    context, probabilities = attention_forward(owner(), q, k, v, mask, scaling=scaling)
    expected = nn.functional.scaled_dot_product_attention(q, k, v, MASK[:, None, None, :], scale=scaling or 1.0)
    torch.testing.assert_close(context, expected.transpose(1, 2))
    assert context.shape == (3, 5, 2, 4)
    assert bool((probabilities[~MASK[:, None, None, :].expand_as(probabilities)] == 0).all())


def test_each_matmul_operand_passes_its_own_quantizer() -> None:
    seen: dict[str, tuple[int, ...]] = {}

    def recorder(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def record(x: torch.Tensor) -> torch.Tensor:
            seen[name] = tuple(x.shape)
            return x

        return record

    module = owner(**{operand: recorder(operand) for operand in "qkav"})
    attention_forward(module, *operands(), None)
    assert seen == {"q": (3, 2, 5, 4), "k": (3, 2, 5, 4), "a": (3, 2, 5, 5), "v": (3, 2, 5, 4)}


def test_a_row_without_any_token_gives_finite_values() -> None:
    mask = additive_mask(torch.zeros(3, 5, dtype=torch.bool), q_length=5)
    context, probabilities = attention_forward(owner(), *operands(), mask)
    assert bool(context.isfinite().all())
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 2, 5))


@pytest.mark.parametrize("model_type", ["bert", "mpnet", "albert"])
def test_a_batch_with_an_empty_text_gives_finite_outputs(
    model_type: str, load_tiny: Callable[..., LoadedModel], encode: Callable[..., dict[str, torch.Tensor]]
) -> None:
    loaded = load_tiny(model_type, "feature-extraction")
    inject(loaded.model, named_spec("qdqbert"))
    batch = encode(loaded, 4)
    batch["attention_mask"][2] = 0
    with torch.no_grad():
        (states,) = loaded.module()(**batch)
    assert bool(states.isfinite().all())


def test_registering_again_changes_nothing_and_leaves_the_others_alone() -> None:
    register()
    before = dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping)
    register()
    assert (AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping) == before
    assert AttentionInterface._global_mapping[IMPLEMENTATION] is attention_forward
    ours = {attention_forward, additive_mask}
    for mapping in before:
        assert [name for name, function in mapping.items() if function in ours] == [IMPLEMENTATION]
