"""Configurations of width-pruned encoders, and their registration with transformers.

transformers derives the head size from the number of heads (hidden_size / num_attention_heads), so its own classes
cannot express 8 heads of 32 at hidden size 384. A pruned checkpoint has ``model_type: pruned-bert`` and ``head_size``
in its config.json; with `register` done, transformers' Auto classes load it like any other. Only configurations are
made here, which is cheap; the first instance of one brings the model classes (`qdq.pruned_models`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig

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
    """Make transformers' AutoConfig know every pruned family; calling it again changes nothing."""
    for model_type, prefix in PRUNABLE.items():
        if f"{PREFIX}{model_type}" not in CONFIG_MAPPING:
            AutoConfig.register(f"{PREFIX}{model_type}", _config(model_type, prefix))


def config_class(model_type: str) -> Any:
    """The registered config class of a prunable family."""
    register()
    return CONFIG_MAPPING[f"{PREFIX}{model_type}"]


def _config(model_type: str, prefix: str) -> Any:
    base = CONFIG_MAPPING[model_type]

    def post_init(self: Any, **values: Any) -> None:
        from qdq.pruned_models import register_models

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
    made = type(f"Pruned{prefix}Config", (base,), attributes)
    globals()[made.__name__] = made  # where pickle looks for it
    return made
