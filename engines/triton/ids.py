"""Ids that a model has rows for, checked request by request in front of a graph that checks none.

Copied beside the models that run inside a server: it needs nothing but numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# Input -> parameter of config.pbtxt that says how many rows its table has; Triton's own backends read neither.
PARAMETERS: Mapping[str, str] = {"input_ids": "vocabulary", "token_type_ids": "token_types"}


def tables_of(config: Mapping[str, Any]) -> dict[str, int]:
    """Rows of each input's table, out of a model's configuration as Triton hands it over; {} when it says nothing."""
    found = config.get("parameters", {})
    return {name: int(found[key]["string_value"]) for name, key in PARAMETERS.items() if key in found}


def refusal(feeds: Mapping[str, Any], tables: Mapping[str, int]) -> str | None:
    """The reason why a request cannot be answered, None when its ids are rows of their tables."""
    for name, rows in tables.items():
        if name in feeds:
            wrong = np.flatnonzero((feeds[name] < 0) | (feeds[name] >= rows))
            if wrong.size:
                first = tuple(int(place) for place in np.unravel_index(wrong[0], feeds[name].shape))
                return f"{name} holds {feeds[name][first]} at {list(first)}; the model has 0 to {rows - 1}"
    return None
