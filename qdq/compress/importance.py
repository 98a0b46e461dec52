"""Importance of each head and each FFN neuron to the loss: first-order estimates from gradients.

Source: DynaBERT (arXiv 2004.04037), section 3.1, after Michel et al. (arXiv 1905.10650) for heads and Molchanov et al.
(arXiv 1611.06440) for neurons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdq.base.types import Progress
from qdq.calibrate.rebatch import Batch
from qdq.compress.evaluators import evaluating
from qdq.compress.method import Loss
from qdq.inject.attention import HEAD_MASK, IMPLEMENTATION, register
from qdq.inject.widths import PROJECTIONS, Block, blocks


@dataclass(frozen=True)
class Importance:
    """Importance of heads [blocks, heads] and neurons [blocks, neurons], float32; larger matters more."""

    heads: Tensor
    neurons: Tensor


@contextmanager
def masked_heads(model: PreTrainedModel, mask: Tensor) -> Iterator[None]:
    """Multiply the attention probabilities of every head by `mask` [blocks, heads] while the block runs.

    transformers 5 ignores `head_mask`, so the model uses our attention function meanwhile.
    """
    register()
    previous = model.config._attn_implementation
    model.config._attn_implementation = IMPLEMENTATION
    owners = [block.attention for block in blocks(model)]
    try:
        for owner, row in zip(owners, mask, strict=True):
            setattr(owner, HEAD_MASK, row)
        yield
    finally:
        model.config._attn_implementation = previous
        for owner in owners:
            delattr(owner, HEAD_MASK)


def measure_importance(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    loss: Loss,
    progress: Progress | None = None,
) -> Importance:
    """Importance of every head and neuron, summed over batches.

    A head's is |d loss / d mask|; a neuron's is |w . d loss / d w| over its row of the first FFN linear (with bias)
    plus the same over its column of the second: the first-order change of the loss when it is removed. Leaves the
    model's parameters as they were and without gradients.
    """
    # Gradients reach a mask over the heads, and the weights of the neurons.
    found = blocks(model)
    mask = torch.ones(len(found), found[0].heads, device=model.device, requires_grad=True)
    heads = torch.zeros_like(mask)
    neurons = torch.zeros(len(found), found[0].neurons, device=model.device)
    with evaluating(model):
        for done, batch in enumerate(batches, start=1):
            model.zero_grad()
            mask.grad = None
            with masked_heads(model, mask):
                loss(model, batch, mask).backward()  # type: ignore[no-untyped-call]
            assert mask.grad is not None
            heads += mask.grad.abs()
            neurons += torch.stack([_neurons(block) for block in found])
            if progress:
                progress(done, len(batches))
    model.zero_grad()
    return Importance(heads.cpu(), neurons.cpu())


@torch.no_grad()
def weight_norms(model: PreTrainedModel) -> Importance:
    """Importance of every head and neuron by the L1 norm of the weights that compute it and that read it."""
    heads, neurons = [], []
    for block in blocks(model):
        rows = torch.stack([block.linear(role).weight.abs().sum(1) for role in PROJECTIONS]).sum(0)
        features = rows + block.linear("output").weight.abs().sum(0)
        heads.append(features.view(block.heads, block.head_size).sum(1))
        neurons.append(block.linear("up").weight.abs().sum(1) + block.linear("down").weight.abs().sum(0))
    return Importance(torch.stack(heads).cpu(), torch.stack(neurons).cpu())


def _neurons(block: Block) -> Tensor:
    up, down = block.linear("up"), block.linear("down")
    rows = _change(up.weight).sum(dim=1)
    if up.bias is not None:
        rows = rows + _change(up.bias)
    return rows.abs() + _change(down.weight).sum(dim=0).abs()


def _change(parameter: Tensor) -> Tensor:
    """First-order change of the loss when elements become zero, with the sign turned."""
    assert parameter.grad is not None  # every block takes part in the loss
    return (parameter * parameter.grad).detach()


def rewire(model: PreTrainedModel, importance: Importance) -> None:
    """Reorder heads and neurons of every block in place, most important first; the model computes the same.

    Equally important ones keep their order.
    """
    for block, heads, neurons in zip(blocks(model), importance.heads, importance.neurons, strict=True):
        order = torch.argsort(heads, descending=True, stable=True)
        size = block.head_size
        features = (order[:, None] * size + torch.arange(size)).reshape(-1)
        for role in PROJECTIONS:
            _permute(block.linear(role), rows=features)
        _permute(block.linear("output"), columns=features)
        order = torch.argsort(neurons, descending=True, stable=True)
        _permute(block.linear("up"), rows=order)
        _permute(block.linear("down"), columns=order)


def _permute(linear: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    with torch.no_grad():
        if rows is not None:
            for parameter in linear.parameters():
                parameter.copy_(parameter[rows.to(parameter.device)])
        if columns is not None:
            linear.weight.copy_(linear.weight[:, columns.to(linear.weight.device)])
