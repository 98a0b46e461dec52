"""A floating-point pass that keeps, per linear input, every channel's extremes and a sample of rows.

Treatments are chosen on these. The rows are evenly spaced over all real (not padded) positions, so that memory does not
grow with the data: `rows_to_keep` of each input. The extremes are those of all positions: a channel that is massive for
a few tokens only must not be missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qdq.base.types import Progress
from qdq.calibrate.rebatch import MicroBatches
from qdq.calibrate.treatments.attentions import attentions
from qdq.calibrate.treatments.losses import Loss, watch_losses
from qdq.inject import quantizers
from qdq.inject.blocks import Residual
from qdq.inject.quantizer import QuantLinear

ROWS = 8192
LEAST_ROWS = 2048  # about the inner width of the models this is for, or a GPTQ Hessian has no full rank
ROW_BYTES = 2 * 1024**3  # of all inputs together: wide and deep models keep fewer rows


@dataclass
class Seen:
    """Statistics of one tensor: the lowest and highest value of each channel, [C], and sampled rows [n, C]."""

    low: Tensor
    high: Tensor
    parts: list[Tensor] = field(default_factory=list)  # other statistics may hold the same ones
    _rows: Tensor | None = None  # their copy, once it is asked for

    @property
    def rows(self) -> Tensor:
        """[n, C], n at most `rows_to_keep` (and one more for each time the tensor's module is passed in a forward).

        Changed in place by `scale` and `shift`.
        """
        if self._rows is None:
            self._rows, self.parts = torch.cat(self.parts), []
        return self._rows

    @property
    def largest(self) -> Tensor:
        """Largest magnitude of each channel, [C]."""
        return torch.maximum(-self.low, self.high)

    def scale(self, factor: Tensor) -> None:
        """The tensor is multiplied by `factor` [C], all positive, from now on."""
        self.low, self.high = self.low * factor, self.high * factor
        self.rows.mul_(factor)

    def shift(self, offset: Tensor) -> None:
        """`offset` [C] is added to the tensor from now on."""
        self.low, self.high = self.low + offset, self.high + offset
        self.rows.add_(offset)


@dataclass
class Group:
    """Linears that read the same tensor."""

    linears: dict[str, QuantLinear]
    seen: Seen

    @property
    def name(self) -> str:
        """The first linear's path."""
        return next(iter(self.linears))

    @property
    def weight(self) -> Tensor:
        """The weights below each other, [sum of outputs, in]."""
        return torch.cat([linear.effective_weight.detach() for linear in self.linears.values()])


@dataclass
class Observed:
    """Statistics of one pass over a model.

    Attributes:
        groups: of quantized linears, in model order.
        outputs: linear -> largest magnitude of every output channel, [out].
        residuals: residual add -> its local and its residual operand.
        losses: attention -> the error of rounding its probabilities.
    """

    groups: list[Group]
    outputs: Mapping[str, Tensor]
    residuals: Mapping[str, tuple[Seen, Seen]]
    losses: Mapping[str, Loss] = field(default_factory=dict)


class _Recorder:
    """Collects tensors of the forward that runs."""

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self.mask = torch.ones(0, dtype=torch.bool)
        self.offset = 0  # real positions before this forward
        self.seen: dict[str, Seen] = {}
        self.sources: dict[str, int] = {}
        self._kept: dict[int, tuple[Tensor, Seen]] = {}

    def start(self, mask: Tensor) -> None:
        self.offset += int(self.mask.sum())
        self.mask, self._kept = mask, {}

    def record(self, name: str, x: Tensor) -> None:
        """[B, S, C] of the positions that count; a tensor seen before in this forward is not copied again."""
        if id(x) not in self._kept:
            real = x[self.mask]
            first = -self.offset % self.stride
            self._kept[id(x)] = x, Seen(real.amin(0), real.amax(0), [real[first :: self.stride].clone()])
        _, now = self._kept[id(x)]
        self.sources[name] = id(x)
        seen = self.seen.setdefault(name, Seen(now.low, now.high))
        seen.low, seen.high = torch.minimum(seen.low, now.low), torch.maximum(seen.high, now.high)
        seen.parts += now.parts

    def record_add(self, name: str, local: Tensor, residual: Tensor) -> None:
        """Record both operands, though one of them may have no quantizer."""
        self.record(f"{name}:local", local)
        self.record(f"{name}:residual", residual)


def observe(
    module: nn.Module,
    batches: MicroBatches,
    progress: Progress | None = None,
    probabilities: bool = False,
) -> Observed:
    """Run `batches` through the injected `module` in floating point.

    Only linears whose input and weight are both quantized, and residual adds with a quantized operand, are recorded;
    with `probabilities` also the error of rounding those of attention.
    """
    # Points to record, and a stride over all real positions that keeps the wanted number of rows
    parts = dict(module.named_modules())
    linears = {name: part for name, part in parts.items() if isinstance(part, QuantLinear) and _both(part)}
    residuals = {name: part for name, part in parts.items() if isinstance(part, Residual) and part.quantized_operands}
    tokens = sum(int(batch["attention_mask"].sum()) for batch, _ in batches)
    recorder = _Recorder(max(1, -(-tokens // rows_to_keep([linear.in_features for linear in linears.values()]))))
    outputs: dict[str, Tensor] = {}
    losses: dict[str, Loss] = {}
    # One floating-point pass with a hook on every point
    with ExitStack() as stack, torch.no_grad():
        for name, linear in linears.items():
            stack.callback(_watch(linear, name, recorder, outputs).remove)
        for name, add in residuals.items():
            add.observer = partial(recorder.record_add, name)
            stack.callback(setattr, add, "observer", None)
        if probabilities:
            for handle in watch_losses(module, losses, lambda: recorder.mask):
                stack.callback(handle.remove)
        for point in quantizers(module).values():
            point.disable_quant()
        for done, (batch, _) in enumerate(batches, start=1):
            recorder.start(batch["attention_mask"].bool().flatten(0, -2))
            module(**batch)
            if progress:
                progress(done, len(batches))
    # Linears that read one tensor share its statistics
    groups: dict[int, Group] = {}
    for name in linears:
        if name in recorder.sources:
            groups.setdefault(recorder.sources[name], Group({}, recorder.seen[name])).linears[name] = linears[name]
    adds = {
        name: (recorder.seen[f"{name}:local"], recorder.seen[f"{name}:residual"])
        for name in residuals
        if f"{name}:local" in recorder.seen
    }
    return Observed(list(groups.values()), outputs, adds, losses)


def rows_to_keep(widths: Sequence[int]) -> int:
    """Rows of every input of `widths` channels (float32): ROWS, fewer when they would take more than ROW_BYTES."""
    return max(LEAST_ROWS, min(ROWS, ROW_BYTES // (4 * max(1, sum(widths)))))


def _both(linear: QuantLinear) -> bool:
    return linear._input_quantizer is not None and linear._weight_quantizer is not None


def _watch(linear: QuantLinear, name: str, recorder: _Recorder, outputs: dict[str, Tensor]) -> RemovableHandle:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs[0].dim() < 3:  # a head that reads one pooled vector has no positions to sample
            return
        recorder.record(name, inputs[0])
        largest = output[recorder.mask].abs().amax(0)
        outputs[name] = torch.maximum(outputs[name], largest) if name in outputs else largest

    return linear.register_forward_hook(hook)


def value_readers(module: nn.Module, observed: Observed) -> Iterator[tuple[str, QuantLinear, Group]]:
    """Yield the path of an attention, its value projection, and the group of the one linear that reads its output.

    Only attentions whose value projection was observed and whose output has a channel for each of its outputs.
    """
    known = {id(linear) for group in observed.groups for linear in group.linears.values()}
    for path, (_, _, value) in attentions(module):
        group = context_reader(path, observed)
        if id(value) in known and group is not None and group.seen.largest.shape[0] == value.out_features:
            yield path, value, group


def context_reader(path: str, observed: Observed) -> Group | None:
    """The group of the one linear that reads the output of the attention at `path`, None when there is no such group.

    BERT's sits beside the attention, the other families' inside.
    """
    readers = {name: group for group in observed.groups for name in group.linears}
    parent = path.rpartition(".")[0]
    for name in (f"{path}.out_lin", f"{path}.dense", f"{path}.o", f"{parent}.output.dense"):
        if name in readers and len(readers[name].linears) == 1:
            return readers[name]
    return None
