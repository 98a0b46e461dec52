"""Configurations of width-pruned encoders, and their registration with transformers.

transformers derives the head size from the number of heads (hidden_size / num_attention_heads), so its own classes
cannot express 8 heads of 32 at hidden size 384. A pruned checkpoint has ``model_type: pruned-bert`` and ``head_size``
in its config.json; with `register` done (`qdq.load.registration` does it), transformers' Auto classes load it like any
other. Only configurations are made here; the first instance of one brings the model classes (`qdq.load.pruned_models`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from qdq.errors import ModelError

PREFIX = "pruned-"

# model_type -> transformers' prefix of its class names. MPNet is not here: its position bias has a column per head
# that all layers share, so heads cannot be dropped layer by layer.
PRUNABLE: Mapping[str, str] = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "electra": "Electra",
    "ernie": "Ernie",
    "distilbert": "DistilBert",
    "albert": "Albert",
}


def register() -> None:
    """Make transformers' AutoConfig know every pruned family. Imports nothing more: the class is made at its first use.

    Called while transformers' own modules are being imported, when most of them cannot be.
    """
    for model_type in PRUNABLE:
        CONFIG_MAPPING.register(f"{PREFIX}{model_type}", _pending(model_type))


def config_class(model_type: str) -> Any:
    """The config class of a prunable family, made and registered when it is asked for."""
    name = f"Pruned{PRUNABLE[model_type]}Config"
    if name not in globals():
        globals()[name] = _config(model_type, PRUNABLE[model_type])  # where pickle looks for it
        CONFIG_MAPPING.register(f"{PREFIX}{model_type}", globals()[name], exist_ok=True)
    return globals()[name]


def __getattr__(name: str) -> Any:
    """A config class by its name, for pickle."""
    for model_type, prefix in PRUNABLE.items():
        if name == f"Pruned{prefix}Config":
            return config_class(model_type)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _pending(model_type: str) -> Any:
    """What stands for a config class that nobody has used yet; AutoConfig calls it, or its `from_dict`."""

    def make(cls: type, *arguments: Any, **options: Any) -> Any:
        return config_class(model_type)(*arguments, **options)

    def from_dict(cls: type, *arguments: Any, **options: Any) -> Any:
        return config_class(model_type).from_dict(*arguments, **options)

    attributes = {"model_type": f"{PREFIX}{model_type}", "__new__": make, "from_dict": classmethod(from_dict)}
    return type(f"Pending{PRUNABLE[model_type]}Config", (), attributes)


def _config(model_type: str, prefix: str) -> Any:
    base = CONFIG_MAPPING[model_type]

    def post_init(self: Any, **values: Any) -> None:
        from qdq.load.pruned_models import register_models

        register_models(model_type, type(self))
        base.__post_init__(self, **values)  # type: ignore[no-untyped-call]

    attributes = {
        "model_type": f"{PREFIX}{model_type}",
        "head_size": 64,
        "__annotations__": {"head_size": int},
        "__post_init__": post_init,
        "__module__": __name__,
        "__qualname__": f"Pruned{prefix}Config",
        "__doc__": f"{prefix}Config with `head_size`: the features of one attention head, whatever their number.",
    }
    return type(f"Pruned{prefix}Config", (base,), attributes)


def pruned_config(config: PreTrainedConfig, heads: int, head_size: int, neurons: int) -> PreTrainedConfig:
    """The config of a pruned version of a model with `config`. Raises ModelError for a family that cannot be pruned."""
    model_type = config.model_type.removeprefix(PREFIX)
    if model_type not in PRUNABLE:
        raise ModelError(
            f"model family '{model_type}' cannot be pruned in width; supported: {', '.join(PRUNABLE)}. Give a "
            "checkpoint of one of these, or leave dynabert out of the strategy"
        )
    values = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    made: PreTrainedConfig = config_class(model_type)(**{**values, "head_size": head_size})
    made.num_attention_heads = heads
    setattr(made, "hidden_dim" if model_type == "distilbert" else "intermediate_size", neurons)
    made._attn_implementation = config._attn_implementation
    return made
