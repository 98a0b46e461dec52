"""`--placement auto`: the points of the widest placement that a model can afford on a target, by measurement."""

from __future__ import annotations

from qdq.inject.spec import QuantSpec, named_spec

# The widest placement `auto` starts from: on TensorRT every point can pay; on a CPU, the default without `auto`.
WIDEST = {"tensorrt": "qdqbert", "openvino": "linear+qk", "onnxruntime": "linear+qk"}


def base_spec(placement: str, target: str) -> QuantSpec:
    """The spec of a named placement; ``auto`` is the widest one of `target`, under its own name."""
    from dataclasses import replace

    if placement != "auto":
        return named_spec(placement)
    return replace(named_spec(WIDEST[target]), placement="auto")
