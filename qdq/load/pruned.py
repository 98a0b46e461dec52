"""Configurations of width-pruned encoders, and their registration with transformers.

transformers derives the head size from the number of heads (hidden_size / num_attention_heads), so its own classes
cannot express 8 heads of 32 at hidden size 384. A pruned checkpoint has ``model_type: pruned-bert`` and ``head_size``
in its config.json; with `register` done (`qdq.load.registration` does it), transformers' Auto classes load it like any
other. Only configurations are made here; the first instance of one brings the model classes (`qdq.load.pruned_models`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING

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
