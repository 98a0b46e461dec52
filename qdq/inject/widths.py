"""Heads and FFN neurons of an encoder: the blocks that have them, and the linears they are rows and columns of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from qdq.errors import ModelError
from qdq.inject.families import Widths, family_of

PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True)
class Block:
    """One encoder block, by the roles of its linears: query, key, value, output, up, down.

    Attributes:
        path: of the block in the model, "bert.encoder.layer.0".
        module: the block.
        names: where its family keeps things.
    """

    path: str
    module: nn.Module
    names: Widths

    @property
    def attention(self) -> nn.Module:
        """The module that owns the projections and is called with heads."""
        return self.module.get_submodule(self.names.attention)

    def linear(self, role: str) -> nn.Linear:
        """The linear of a role."""
        linear = self.module.get_submodule(self._paths[role])
        assert isinstance(linear, nn.Linear)  # `blocks` has looked
        return linear

    def replace(self, role: str, linear: nn.Linear) -> None:
        """Put another linear in a role's place."""
        self.module.set_submodule(self._paths[role], linear)

    @property
    def head_size(self) -> int:
        """Features of one head."""
        return int(self.attention.attention_head_size)  # type: ignore[arg-type]

    @property
    def heads(self) -> int:
        """Number of heads, as the weights have them."""
        return self.linear("query").out_features // self.head_size

    @property
    def neurons(self) -> int:
        """Width of the feed-forward block."""
        return self.linear("up").out_features

    def set_heads(self, heads: int, size: int) -> None:
        """Correct the sizes that the attention module derived from the configuration."""
        values = {self.names.heads: heads, "attention_head_size": size, "all_head_size": heads * size}
        for name, value in values.items():
            if hasattr(self.attention, name):
                setattr(self.attention, name, value)
        if hasattr(self.attention, "scaling"):
            self.attention.scaling = size**-0.5

    @property
    def _paths(self) -> dict[str, str]:
        names = self.names
        projections = zip(PROJECTIONS, names.projections, strict=True)
        paths = {role: f"{names.attention}.{name}" for role, name in projections}
        return paths | {"output": names.output, "up": names.up, "down": names.down}


def blocks(model: PreTrainedModel) -> list[Block]:
    """The encoder blocks of `model` in order; a block that several layers share appears once.

    Raises ModelError for a family whose width cannot be pruned.
    """
    names = family_of(model.config.model_type).widths
    if names is None:
        raise ModelError(
            f"{model.config.model_type}: its width cannot be pruned (heads share a position bias across layers); "
            "leave dynabert out of the strategy"
        )
    found = [Block(path, module, names) for path, module in model.named_modules() if _is_block(module, names)]
    if not found:
        raise ModelError(f"{type(model).__name__}: has no encoder blocks; give a model with an encoder")
    return found


def _is_block(module: nn.Module, names: Widths) -> bool:
    try:
        for path in (names.attention, names.output, names.up, names.down):
            module.get_submodule(path)
    except AttributeError:
        return False
    return True
