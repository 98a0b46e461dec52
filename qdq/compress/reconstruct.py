"""Let heads and neurons that stay take over the contribution of those cut off: least squares, no training.

The linears behind heads and neurons lose columns. Their outputs on training text tell which weights of the remaining
columns come nearest to what all of them gave; distillation then starts from a model that is close to its teacher.

Source: least-squares reconstruction after channel pruning (He et al., arXiv 1707.06168, section 3.1); here the weights
are shared by several widths, so the errors of all of them are summed before they are minimised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdq.base.types import Progress
from qdq.calibrate.rebatch import Batch
from qdq.compress.datasets import Labels
from qdq.compress.distillation import counted
from qdq.compress.elastic import Size
from qdq.compress.evaluators import evaluating
from qdq.inject.widths import blocks

RIDGE = 0.01  # of the mean square of an input; keeps weights near their values where the text says little of them


def reconstruct(
    model: PreTrainedModel, sizes: Sequence[Size], batches: Sequence[Batch], progress: Progress | None = None
) -> None:
    """Let the leading columns of every block's second linears stand for all of them at each of `sizes`, in place.

    `model` is rewired and runs at full width over `batches` first; padding does not count. At full width it computes
    something else afterwards.
    """
    # The columns that each width keeps of the linears behind heads and neurons.
    kept: dict[nn.Linear, list[int]] = {}
    for block in blocks(model):
        kept[block.linear("output")] = [size.heads * block.head_size for size in sizes]
        kept[block.linear("down")] = [size.neurons for size in sizes]
    products = _products(model, list(kept), batches, progress)
    # Solve for weight and bias together.
    with torch.no_grad():
        for linear, counts in kept.items():
            columns, biased = max(counts), linear.bias is not None
            weight = torch.cat([linear.weight, linear.bias[:, None]], 1) if biased else linear.weight
            found = solve(products[linear], weight, counts, int(biased)).to(weight.dtype)
            linear.weight[:, :columns] = found[:, :columns]
            if biased:
                linear.bias.copy_(found[:, columns])


def solve(product: Tensor, weight: Tensor, counts: Sequence[int], always: int = 0) -> Tensor:
    """The columns of `weight` [out, in] that minimise the squared errors of the output, summed over `counts`.

    A width of `count` keeps the first `count` inputs and the last `always` (the constant 1 of a bias). `product` is
    X^T X [in, in] of the inputs. Returns float64 [out, max(counts) + always].
    """
    product, weight = product.double(), weight.double()
    wanted = product @ weight.T
    left, right = torch.zeros_like(product), torch.zeros_like(wanted)
    last = torch.arange(len(product) - always, len(product), device=product.device)
    for count in counts:
        index = torch.cat([torch.arange(count, device=product.device), last])
        left[index[:, None], index] += product[index[:, None], index]
        right[index] += wanted[index]
    columns = max(counts)
    index = torch.cat([torch.arange(columns, device=product.device), last])
    ridge = torch.zeros(len(index), dtype=torch.float64, device=product.device)
    ridge[:columns] = RIDGE * left.diagonal()[:columns].mean().clamp(min=torch.finfo(torch.float32).tiny)
    system = left[index[:, None], index] + torch.diag(ridge)
    found: Tensor = torch.linalg.solve(system, right[index] + ridge[:, None] * weight.T[index])
    return found.T


def _products(
    model: PreTrainedModel, linears: Sequence[nn.Linear], batches: Sequence[Batch], progress: Progress | None
) -> Mapping[nn.Linear, Tensor]:
    """X^T X of every linear's inputs, float32 [in, in], with a constant 1 behind them where it has a bias."""
    products = {linear: torch.zeros(0) for linear in linears}
    mask: Tensor | None = None  # of the batch that runs

    # Each forward adds its inputs, without padding.
    def add(linear: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(linear, nn.Linear)
        x = inputs[0].flatten(0, -2)
        if mask is not None and mask.numel() == len(x):
            x = x[mask.flatten()]
        if linear.bias is not None:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        before = products[linear]
        products[linear] = x.T @ x if not before.numel() else before.addmm_(x.T, x)

    with evaluating(model), torch.no_grad(), ExitStack() as hooks:
        for linear in linears:
            hooks.enter_context(linear.register_forward_pre_hook(add))
        for done, batch in enumerate(batches, start=1):
            mask = counted(batch)
            model(**Labels().without(batch))
            if progress:
                progress(done, len(batches))
    return products
