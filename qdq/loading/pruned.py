"""Width-pruned encoders: their configurations and model classes, registered with transformers' Auto classes.

transformers derives the head size from the number of heads (hidden_size / num_attention_heads), so its own classes
cannot express 8 heads of 32 at hidden size 384. A pruned checkpoint has ``model_type: pruned-bert`` and ``head_size``
in its config.json. Importing this module makes the Auto classes load it like any other checkpoint; `qdq.compress` and
`qdq.loading.model` import it, and a program that uses neither does so itself::

    import qdq.loading.pruned
    model = AutoModelForSequenceClassification.from_pretrained("out/width-0.5")

A model class is the original one with narrower attention and FFN linears. Parameters keep their names, so export,
engines and everything else that looks at modules treat a pruned model as the family it comes from.
"""

from __future__ import annotations

import copy
from typing import Any, cast

from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from qdq.errors import ModelError
from qdq.inject.widths import PROJECTIONS, blocks
from qdq.loading.kinds import TASKS

PREFIX = "pruned-"

# MPNet is not here: its position bias has a column per head that all layers share, so heads cannot be dropped layer
# by layer.
PRUNABLE = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie", "distilbert", "albert")


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


def pruned_config(config: PreTrainedConfig, heads: int, head_size: int, neurons: int) -> PreTrainedConfig:
    """Return the config of a pruned version of a model with `config`.

    Raises ModelError for a family that cannot be pruned.
    """
    model_type = config.model_type.removeprefix(PREFIX)
    if model_type not in PRUNABLE:
        raise ModelError(
            f"model family '{model_type}' cannot be pruned in width; supported: {', '.join(PRUNABLE)}. Give a "
            "checkpoint of one of these, or leave dynabert out of the strategy"
        )
    values = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    made: PreTrainedConfig = CONFIG_MAPPING[PREFIX + model_type](**{**values, "head_size": head_size})
    made.num_attention_heads = heads
    setattr(made, "hidden_dim" if model_type == "distilbert" else "intermediate_size", neurons)
    made._attn_implementation = config._attn_implementation
    return made


def pruned_class(original: type[PreTrainedModel], config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class of the pruned version of a model of class `original`: the registered one, or one made for it."""
    if issubclass(original, Pruned):
        return original
    return _MODELS.get(original) or _model_class(original, type(config))


def _config_class(base: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    attributes = {
        "model_type": PREFIX + base.model_type,
        "head_size": 64,
        "__annotations__": {"head_size": int},  # transformers makes a dataclass of it
        "__module__": __name__,
        "__doc__": f"{base.__name__} with `head_size`: the features of one attention head, whatever their number.",
    }
    return type(f"Pruned{base.__name__}", (base,), attributes)


def _model_class(original: type[PreTrainedModel], config: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    attributes = {"config_class": config, "__module__": __name__, "__doc__": f"{original.__name__}, pruned in width."}
    return cast(type[PreTrainedModel], type(f"Pruned{original.__name__}", (Pruned, original), attributes))


def _register(model_type: str) -> None:
    """Make the classes of one family and let AutoConfig and the Auto classes of its tasks know them."""
    base = CONFIG_MAPPING[model_type]
    config = _config_class(base)
    AutoConfig.register(config.model_type, config)
    made: list[type[Any]] = [config]
    for task in TASKS.values():
        auto = task.auto()
        original = auto._model_mapping.get(base, None)
        if original is not None:
            _MODELS[original] = _model_class(original, config)
            auto.register(config, _MODELS[original])
            made.append(_MODELS[original])
    globals().update({cls.__name__: cls for cls in made})  # where pickle looks for a class


_MODELS: dict[type[PreTrainedModel], type[PreTrainedModel]] = {}  # original -> pruned

for _model_type in PRUNABLE:
    _register(_model_type)
