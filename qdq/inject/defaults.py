"""Default descriptors of pytorch-quantization: set for a process by ``QuantLinear.set_default_quant_desc_*``.

They decide the quantizers of the classes in `qdq.calibrate.qdqbert`, as QDQBERT's documentation has it. Everywhere
else a QuantSpec decides, and `overruled` says so where the two differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qdq.errors import ConfigError
from qdq.inject.quantizer import default_descriptor
from qdq.inject.spec import QuantSpec, named_spec

METHODS = ("max", "histogram")


@dataclass(frozen=True)
class Defaults:
    """Quantizers of a model: the points and their codes, and whether activations are calibrated from a histogram."""

    spec: QuantSpec
    histogram: bool


def defaults() -> Defaults:
    """The quantizers that the two default descriptors ask for; unset they are 8 bits, max, weights per channel.

    Raises ConfigError naming what a descriptor asks for and has no form in a graph of QuantizeLinear.
    """
    (inputs, _), (weights, _) = default_descriptor("input"), default_descriptor("weight")
    _check(inputs, "input", (None,))
    _check(weights, "weight", (None, 0, (0,)))
    bits = {"activation_bits": inputs.num_bits, "weight_bits": weights.num_bits}
    spec = named_spec("qdqbert", per_channel_weights=weights.axis is not None, **bits)
    return Defaults(spec, inputs.calib_method == "histogram")


def overruled(spec: QuantSpec) -> str:
    """Return one line on default descriptors that were set and that `spec` contradicts, "" when there are none."""
    (inputs, inputs_set), (weights, weights_set) = default_descriptor("input"), default_descriptor("weight")
    lines = []
    if inputs_set and inputs.num_bits != spec.activation_bits:
        lines.append(f"activations of {inputs.num_bits} bits (the spec: {spec.activation_bits})")
    if weights_set and weights.num_bits != spec.weight_bits:
        lines.append(f"weights of {weights.num_bits} bits (the spec: {spec.weight_bits})")
    if weights_set and (weights.axis is not None) != spec.per_channel_weights:
        scales = ("one scale per tensor", "one scale per channel")
        lines.append(
            f"{scales[not spec.per_channel_weights]} of a weight (the spec: {scales[spec.per_channel_weights]})"
        )
    if not lines:
        return ""
    return (
        f"QuantLinear's default descriptors ask for {', '.join(lines)} and do not decide here, the quant spec does; "
        "they decide for the classes of qdq.calibrate.qdqbert"
    )


def _check(descriptor: Any, role: str, axes: tuple[Any, ...]) -> None:
    where = f"set_default_quant_desc_{role}"
    if not 2 <= descriptor.num_bits <= 8:
        raise ConfigError(f"{where}: num_bits {descriptor.num_bits} is outside 2..8")
    axis = tuple(descriptor.axis) if isinstance(descriptor.axis, list | tuple) else descriptor.axis
    if axis not in axes:
        ways = "None" if axes == (None,) else "None, or 0 for one scale per output channel"
        raise ConfigError(f"{where}: axis {descriptor.axis} is not supported; give {ways}")
    if descriptor.calib_method not in METHODS:
        raise ConfigError(f"{where}: calib_method '{descriptor.calib_method}' is unknown; valid: {', '.join(METHODS)}")
    # Codes that TensorRT does not take, ranges that do not come from calibration, and real integers
    asked = {name: getattr(descriptor, name) for name in ("unsigned", "narrow_range", "learn_amax", "scale_amax")}
    asked |= {"amax": descriptor.amax is not None, "fake_quant=False": not descriptor.fake_quant}
    for name, value in asked.items():
        if value:
            raise ConfigError(f"{where}: {name} is not supported; leave it out of the QuantDescriptor")
