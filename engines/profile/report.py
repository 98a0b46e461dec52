"""profile.json and layers.json: what an engine's time went to, and its multiplications against the machine's peak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from engines.bench.machine import machine
from engines.profile.layers import GROUPS, Layer, Profiled


def profile_report(
    profiles: Mapping[str, tuple[str, Profiled]], peak: Mapping[str, float], setting: Mapping[str, Any]
) -> dict[str, Any]:
    """The profile.json object (times in milliseconds).

    `profiles`: label -> (engine, what it measured), in the order to show them; `setting`: batch, sequence, threads and
    whatever else all of them share.
    """
    return {
        **setting,
        "peak": dict(peak),
        "machine": machine(),
        "profiles": [_entry(label, engine, profiled, peak) for label, (engine, profiled) in profiles.items()],
    }


def layer_report(profiles: Mapping[str, tuple[str, Profiled]]) -> dict[str, Any]:
    """The layers.json object: every layer of every engine."""
    return {label: [asdict(layer) for layer in profiled.layers] for label, (_, profiled) in profiles.items()}


def _entry(label: str, engine: str, profiled: Profiled, peak: Mapping[str, float]) -> dict[str, Any]:
    groups = {group: sum(x.milliseconds for x in profiled.layers if x.group == group) for group in GROUPS}
    return {
        "label": label,
        "engine": engine,
        "call_ms": profiled.call_ms,
        "layers_ms": sum(groups.values()),
        "groups": groups,
        "gemm": {
            "int8": _gemm([layer for layer in profiled.layers if layer.int8], peak["int8"]),
            "float": _gemm([layer for layer in profiled.layers if not layer.int8], peak["fp32"]),
        },
    }


def _gemm(layers: list[Layer], peak: float) -> dict[str, float] | None:
    """Billions of operations a second of the multiplications by weights, and the share of the peak; None without."""
    counted = [layer for layer in layers if layer.group == "gemm" and layer.multiply_adds]
    milliseconds = sum(layer.milliseconds for layer in counted)
    if not milliseconds:
        return None
    speed = 2e-6 * sum(layer.multiply_adds for layer in counted) / milliseconds
    return {"ms": milliseconds, "giga_operations_per_s": speed, "of_peak": speed / peak}
