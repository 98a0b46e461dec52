"""What a stage's own command takes over from the run before it in the same work directory, and what it may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from qdq.errors import ConfigError
from qdq.pipeline.options import CompileOptions

# Stage -> options it is the last to read. A later stage cannot change them: it starts from files they decided.
DECIDED_BY: Mapping[str, tuple[str, ...]] = {
    "calibrate": (
        *("model", "task", "allow_pickle", "placement", "search", "max_drop", "spec", "embedding_tables"),
        *("calibration", "samples", "calibrator", "percentile"),
        *("weight_quantize_type", "activation_quantize_type", "moving_rate", "round_type", "bias_correction"),
        *("value_centering", "equalization", "smoothing", "residual_scaling", "softmax_scale"),
        *("algo_list", "batch_num_list", "batch_size_list"),
    ),
    "lower": ("body", "input_dtype"),
    "build": (
        *("precision_hint", "workspace_gib", "optimization_level", "timing_cache", "version_compatible"),
        "hardware_compatibility",
    ),
}
ORDER = ("inject", "calibrate", "export", "lower", "variants", "build", "verify", "bench", "shapes", "deploy")


def recalled(stage: str, typed: Mapping[str, Any], earlier: Mapping[str, Any]) -> CompileOptions:
    """Options of `qdq <stage>`: what is typed, else what the earlier run used, else the defaults.

    Raises ConfigError for a typed option that an earlier stage has already decided otherwise.
    """
    names = {field.name for field in fields(CompileOptions)}
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in earlier.items() if key in names}
    for decider, options in DECIDED_BY.items():
        if earlier and ORDER.index(stage) > ORDER.index(decider):
            _check_decided(decider, {name: typed[name] for name in options if name in typed}, known)
    if typed.keys() & {"placement", "spec"}:  # one takes the other's place
        known |= {"placement": None, "spec": None}
    if typed.get("model", known.get("model")) != known.get("model"):
        known |= {"placement": None, "spec": None, "task": None}  # chosen for the other model
    return CompileOptions(**{**known, **_cores_anew(typed, known), **typed})


def _cores_anew(typed: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Threads and streams share the cores: what was decided for one ends when the other, or the mode, changes."""
    if typed.get("mode", known.get("mode")) != known.get("mode"):
        return {"threads": 0, "streams": 0}
    return {"streams": 0} if "threads" in typed else {"threads": 0} if "streams" in typed else {}


def _check_decided(decider: str, typed: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name, value in typed.items():
        if known.get(name) != value:
            was = "its default" if known.get(name) is None else f"'{known[name]}'"
            raise ConfigError(
                f"--{name.replace('_', '-')}: this work directory was made with {was}, and '{value}' changes what "
                f"'qdq {decider}' wrote; run 'qdq compile' or 'qdq {decider}' with it"
            )
