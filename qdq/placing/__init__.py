"""`--placement auto`: the points of the widest placement that a model can afford on a target, by measurement."""

from __future__ import annotations

from dataclasses import replace

from qdq.inject.spec import QuantSpec, named_spec

# The widest placement `auto` starts from: on TensorRT every point that its compiler makes something of; on a CPU, the
# default without `auto`.
# Its keys are the kinds of targets, `Target.placement` in engines.targets: both CPU engines share decisions.
WIDEST = {"tensorrt": "fused", "cpu": "linear+qk"}


def base_spec(placement: str, target_kind: str) -> QuantSpec:
    """The spec of a named placement; ``auto`` is the widest one of `target_kind`, under its own name."""
    if placement != "auto":
        return named_spec(placement)
    return replace(named_spec(WIDEST[target_kind]), placement="auto")
