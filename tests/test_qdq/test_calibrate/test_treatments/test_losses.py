"""What rounding probabilities takes from contexts, and the constant that gives most of it back."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdq.calibrate.rebatch import MicroBatches
from qdq.calibrate.treatments.arithmetic import fake_quantize
from qdq.calibrate.treatments.center import center_values
from qdq.calibrate.treatments.losses import EVERY, loss_of
from qdq.calibrate.treatments.observe import observe
from qdq.inject import inject
from qdq.inject.spec import named_spec
from qdq.loading.model import LoadedModel


@given(st.integers(0, 2**16), st.integers(1, 3), st.integers(8, 48))
@settings(max_examples=40, deadline=None)
def test_no_other_constant_leaves_less_of_what_rounding_probabilities_does(seed: int, heads: int, length: int) -> None:
    """`Loss.center` against the definition: contexts of rounded probabilities over values less a constant."""
    generator = torch.Generator().manual_seed(seed)
    rows, width = torch.randn(2, heads, length, length, generator=generator).softmax(-1), 4
    values = torch.randn(2, length, heads * width, generator=generator) + 3.0
    mask = torch.rand(2, length, generator=generator) < 0.8
    mask[0, 0] = True
    loss = loss_of(rows, values, mask)

    def error(constant: Tensor) -> float:
        moved = (values.double() - constant).view(2, length, heads, width).transpose(1, 2)
        lost = (fake_quantize(rows, 1.0) - rows).double() @ moved
        return float(lost.transpose(1, 2)[:, ::EVERY][mask[:, ::EVERY]].square().sum())

    center = loss.center
    least = error(center)
    assert least <= error(torch.zeros_like(center)) * (1 + 1e-4)
    for other in (values.double().mean((0, 1)), center + 0.1, center - 0.1):
        assert least <= error(other) * (1 + 1e-4)
    total = float(loss.error.sum())
    assert math.isclose(least, loss.left(center) * total, rel_tol=1e-3, abs_tol=1e-3 * total)


def test_a_head_that_loses_no_mass_moves_no_more_than_its_values(load_tiny: Callable[..., LoadedModel]) -> None:
    """Next to no mass is lost where a head looks at one token: dividing by it would widen the values' range at will."""
    loaded = load_tiny()
    inject(loaded.model, named_spec("qdqbert"))
    ids = torch.arange(4, 20).view(2, 8)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    observed = observe(loaded.module(), MicroBatches.of([batch], 2), probabilities=True)
    for loss in observed.losses.values():
        loss.mass, loss.joint = torch.full_like(loss.mass, 1e-12), torch.ones_like(loss.joint)
    center_values(loaded.module(), observed)
    moved = 0
    for name, part in loaded.module().named_modules():
        if name.endswith(".value"):
            assert bool((part._bias_offset.abs() <= observed.outputs[name]).all())
            moved += 1
    assert moved == len(observed.losses) > 0
