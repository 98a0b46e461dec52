"""An encoder that runs at several widths with one set of weights, and the real smaller models cut out of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdq.errors import ConfigError
from qdq.inject.widths import PROJECTIONS, blocks
from qdq.loading.pruned import pruned_class, pruned_config

WIDTH_TOLERANCE = 0.01  # heads; 0.667 of 12 heads is meant as 8


@dataclass(frozen=True)
class Size:
    """Heads and neurons of every block at one width."""

    width: Fraction
    heads: int
    neurons: int


def size_at(model: PreTrainedModel, width: Fraction) -> Size:
    """Heads and neurons that `width` keeps of `model`.

    Raises ConfigError, naming the widths that do, when it leaves no whole number of heads or none at all.
    """
    block = blocks(model)[0]
    heads = round(block.heads * width)
    if abs(float(block.heads * width) - heads) > WIDTH_TOLERANCE or heads < 1:
        shares = ", ".join(str(Fraction(count, block.heads)) for count in range(1, block.heads + 1))
        reason = "less than one head" if block.heads * width < 1 else "no whole number of them"
        written = str(width) if width.denominator < 1000 else f"{float(width):g}"
        raise ConfigError(
            f"width_mult_list: {written} of {block.heads} heads is {reason}; widths that divide: {shares}"
        )
    share = Fraction(heads, block.heads)
    return Size(share, heads, max(1, round(block.neurons * share)))


class Switch:
    """The width an elastic model runs at; None is all of it."""

    def __init__(self) -> None:
        self.size: Size | None = None


class ElasticLinear(nn.Linear):
    """A linear that uses only its first rows or columns, as the switch says; shares the parameters of `linear`."""

    def __init__(self, linear: nn.Linear, switch: Switch, role: str, head_size: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.switch, self.role, self.head_size = switch, role, head_size

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out], either of them narrowed."""
        if self.switch.size is None:
            return nn.functional.linear(input, self.weight, self.bias)
        weight, bias = narrowed(self.weight, self.bias, self.role, self.switch.size, self.head_size)
        return nn.functional.linear(input, weight, bias)


def narrowed(
    weight: Tensor, bias: Tensor | None, role: str, size: Size, head_size: int
) -> tuple[Tensor, Tensor | None]:
    """The part of a linear that a width keeps: leading rows where it writes heads or neurons, else columns."""
    kept = size.neurons if role in ("up", "down") else size.heads * head_size
    if role in ("output", "down"):
        return weight[:, :kept], bias
    return weight[:kept], None if bias is None else bias[:kept]


def make_elastic(model: PreTrainedModel) -> Switch:
    """Let `model` run at any width, in place; its parameters and their names stay. Returns the switch."""
    switch = Switch()
    for block in blocks(model):
        for role in (*PROJECTIONS, "output", "up", "down"):
            block.replace(role, ElasticLinear(block.linear(role), switch, role, block.head_size))
    return switch


def extract(model: PreTrainedModel, size: Size) -> PreTrainedModel:
    """The model that `model` is at one width, with physically smaller parameters and a config that says so."""
    found = blocks(model)
    config = pruned_config(model.config, size.heads, found[0].head_size, size.neurons)
    made = pruned_class(type(model), config)(config)
    state = dict(model.state_dict())
    paths = {module: path for path, module in model.named_modules()}
    for block in found:
        for role in (*PROJECTIONS, "output", "up", "down"):
            linear = block.linear(role)
            weight, bias = narrowed(linear.weight, linear.bias, role, size, block.head_size)
            state[f"{paths[linear]}.weight"] = weight
            if bias is not None:
                state[f"{paths[linear]}.bias"] = bias
    with torch.no_grad():
        made.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()})
    made.to(model.device)  # type: ignore[arg-type]  # transformers wraps the method untyped
    made.train(model.training)
    return made


def sizes_at(model: PreTrainedModel, widths: Iterable[Fraction]) -> list[Size]:
    """`size_at` of every width, largest first, each once."""
    found = {size_at(model, width) for width in widths}
    return sorted(found, key=lambda size: -size.heads)
