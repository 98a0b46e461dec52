"""Model classes of width-pruned encoders: the original architecture with narrower attention and FFN linears.

Parameters have the names of the original model, so export, engines and everything else that looks at modules treat a
pruned model as the family it comes from.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from qdq.inject.widths import PROJECTIONS, blocks
from qdq.load.kinds import TASKS


class Pruned:
    """Mixed in before a transformers class: builds that class, then narrows it to the configured heads."""

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        full = copy.deepcopy(config)
        full.num_attention_heads = config.hidden_size // config.head_size  # what transformers can build
        super().__init__(full, *arguments, **options)  # type: ignore[call-arg]  # the transformers class behind
        model = cast(PreTrainedModel, self)
        config._attn_implementation = model.config._attn_implementation  # transformers has chosen it for the copy
        narrow(model, config)


def narrow(model: PreTrainedModel, config: Any) -> None:
    """Give `model` the attention width of `config`, with new parameters, and `config` itself."""
    previous, inner = model.config, config.num_attention_heads * config.head_size
    for module in model.modules():
        if vars(module).get("config") is previous:
            module.config = config
    for block in blocks(model):
        for role in PROJECTIONS:
            block.replace(role, _linear(block.linear(role), out_features=inner))
        block.replace("output", _linear(block.linear("output"), in_features=inner))
        block.set_heads(config.num_attention_heads, config.head_size)


def _linear(old: nn.Linear, in_features: int | None = None, out_features: int | None = None) -> nn.Linear:
    widths = (in_features or old.in_features, out_features or old.out_features)
    return nn.Linear(*widths, bias=old.bias is not None, device=old.weight.device, dtype=old.weight.dtype)


def pruned_class(original: type[PreTrainedModel], config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of the pruned version of a model of class `original`: a registered one, or one made for it."""
    known = globals().get(f"Pruned{original.__name__}")
    if known is not None and issubclass(known, original):
        return known  # type: ignore[no-any-return]
    return _class_for(original, type(config))


def _class_for(original: type[Any], config: type[Any]) -> type[PreTrainedModel]:
    if issubclass(original, Pruned):
        return cast(type[PreTrainedModel], original)
    attributes = {"config_class": config, "__module__": __name__, "__doc__": f"{original.__name__}, pruned in width."}
    return type(f"Pruned{original.__name__}", (Pruned, original), attributes)


def register_models(model_type: str, config: type[Any]) -> None:
    """The classes of one family with the Auto classes of their tasks; a second call finds them there."""
    for task in TASKS.values():
        auto = getattr(transformers, task.auto_class)
        original = auto._model_mapping.get(CONFIG_MAPPING[model_type], None)
        if original is None or f"Pruned{original.__name__}" in globals():
            continue
        made = _class_for(original, config)
        globals()[made.__name__] = made  # where pickle and `pruned_class` look for it
        auto.register(config, made)
