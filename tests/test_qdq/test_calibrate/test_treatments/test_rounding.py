"""GPTQ and AdaRound on matrices: less output error than rounding to nearest, and what they are defined as."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qdq.calibrate.treatments.rounding import adaround, gptq, inverse_factor, output_errors


def correlated(seed: int, rows: int = 200, columns: int = 16) -> tuple[Tensor, Tensor]:
    """Inputs with correlated columns, and a weight [8, columns]."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) + 2 * torch.ones(columns, columns)
    return torch.randn(rows, columns, generator=generator) @ mix, torch.randn(8, columns, generator=generator)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("method", ["gptq", "adaround"])
def test_rounding_by_output_beats_rounding_to_nearest(method: str, seed: int) -> None:
    inputs, weight = correlated(seed)
    scale = weight.abs().amax(1, keepdim=True) / 7  # four bits: rounding matters
    hessian = inputs.T @ inputs / len(inputs)
    nearest = torch.round(weight / scale).clamp(-8, 7)
    if method == "gptq":
        codes = gptq(weight, scale, inverse_factor(hessian), 7)
    else:
        codes = adaround(weight, scale, inputs, 7, seed=1)
        assert bool(((codes - weight / scale).abs() <= 1 + 1e-5).all())  # up or down, nothing else
    assert bool(((codes >= -8) & (codes <= 7) & (codes == codes.round())).all())
    before, after = (float(output_errors(c * scale - weight, hessian).mean()) for c in (nearest, codes))
    assert after < 0.7 * before


def test_gptq_of_uncorrelated_inputs_is_rounding_to_nearest() -> None:
    _, weight = correlated(0)
    scale = weight.abs().amax(1, keepdim=True) / 127
    codes = gptq(weight, scale, inverse_factor(torch.eye(16)), 127)
    assert torch.equal(codes, torch.round(weight / scale))


def test_gptq_in_blocks_is_gptq_column_by_column() -> None:
    """The textbook update of the whole remaining weight after each column."""
    inputs, weight = correlated(3, rows=600, columns=300)
    scale = weight.abs().amax(1, keepdim=True) / 127
    inverse = inverse_factor(inputs.T @ inputs / len(inputs))
    remaining, expected = weight.double().clone(), torch.empty_like(weight)
    for column in range(300):
        code = torch.round(remaining[:, column] / scale[:, 0])
        expected[:, column] = code
        error = (remaining[:, column] - code * scale[:, 0]) / inverse[column, column]
        remaining[:, column + 1 :] -= error[:, None] * inverse[column, column + 1 :][None]
    agreement = (gptq(weight, scale, inverse, 127) == expected).float().mean()
    assert float(agreement) > 0.99  # float32 against float64 at ties
