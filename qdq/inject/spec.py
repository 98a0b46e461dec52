"""QuantSpec: the points a user wants quantized, starting from a named placement."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qdq.base.choices import PLACEMENTS
from qdq.base.config import choice, from_mapping, load_mapping
from qdq.errors import ConfigError

MATMUL_OPERANDS = ("q", "k", "a", "v")  # query, key, softmax probabilities, value
RESIDUAL_OPERANDS = ("local", "residual")  # the block's own output, the skip connection


@dataclass(frozen=True)
class QuantSpec:
    """The points to quantize and their codes. Names in brackets are the QDQBERT flags of the same meaning.

    Attributes:
        placement: named starting point, see qdq.base.choices; the fields it sets may be overridden beside it.
        weight_bits: width of weight codes, 2 to 8 [--wprec]. Below 8 the codes still live in INT8.
        activation_bits: width of activation codes [--aprec]. Only 8 can be exported.
        per_channel_weights: one scale per output channel; False is one per tensor [--quant-per-tensor].
        linear: quantize linear inputs and weights.
        matmul: attention matmul operands to quantize, of q, k, a (softmax probabilities), v.
        residual: residual-add operands to quantize, of local and residual.
        shared_skip: the residual operand of an add takes factor and range of the linears that read the same tensor, so
            that TensorRT has one QuantizeLinear for both; where no quantized linear reads it, it stays float.
        dynamic: linear inputs are quantized at run time, each tensor from its own range, so nothing is calibrated
            (torch.ao's dynamic quantization); CPU targets only.
        enable_layers: regular expression on point names, quantized against every other switch; the only way to
            reach the pooler and the task head [--quant-enable-layer-module].
        disable_layers: regular expression on point names that stay float [--quant-disable-layer-module].
        disable_keywords: substrings of point names that stay float [--quant-disable-keyword].
        embeddings: quantize linears of the embedding block, such as ELECTRA's embeddings_project
            [not --quant-disable-embeddings].
        embedding_tables: store the embedding tables as INT8 with one scale per row. Needs no data; a table is read,
            not multiplied, so this makes files and memory smaller, not multiplications faster.
        fuse_qkv: q, k and v share the largest amax of the three, and with per-tensor weights their weights too
            [--fuse-qkv].
        clip_gelu: upper bound on the amax of the activation behind GELU [--clip-gelu].
        recalibrate_weights: recompute weight amax from the weights even where a checkpoint has them
            [--recalibrate-weights].
        declined: (point name, reason) of points that stay float, as `--placement auto` decides them.
    """

    placement: str = "qdqbert"
    weight_bits: int = 8
    activation_bits: int = 8
    per_channel_weights: bool = True
    linear: bool = True
    matmul: tuple[str, ...] = MATMUL_OPERANDS
    residual: tuple[str, ...] = RESIDUAL_OPERANDS
    shared_skip: bool = False
    dynamic: bool = False
    enable_layers: str | None = None
    disable_layers: str | None = None
    disable_keywords: tuple[str, ...] = ()
    embeddings: bool = False
    embedding_tables: bool = False
    fuse_qkv: bool = False
    clip_gelu: float | None = None
    recalibrate_weights: bool = False
    declined: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        choice(self.placement, PLACEMENTS, "placement")
        for operand in self.matmul:
            choice(operand, MATMUL_OPERANDS, "matmul")
        for operand in self.residual:
            choice(operand, RESIDUAL_OPERANDS, "residual")
        for name in ("weight_bits", "activation_bits"):
            if not 2 <= getattr(self, name) <= 8:
                raise ConfigError(f"{name}: {getattr(self, name)} is outside 2..8")
        if self.shared_skip and "local" in self.residual:
            raise ConfigError(
                "shared_skip: the add then takes its other operand in floating point; residual: [residual]"
            )
        if self.clip_gelu is not None and not self.clip_gelu > 0:
            raise ConfigError(f"clip_gelu: {self.clip_gelu} must be positive")
        if any(len(entry) != 2 for entry in self.declined):
            raise ConfigError("declined: expected pairs of a point name and the reason why it stays float")
        for name in ("enable_layers", "disable_layers"):
            _check_pattern(name, getattr(self, name))

    def as_json(self) -> dict[str, Any]:
        """Plain JSON value; `spec_from_mapping` reads it back to an equal spec."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def _check_pattern(name: str, pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ConfigError(f"{name}: '{pattern}' is not a regular expression ({error})") from error


def named_spec(placement: str, **overrides: Any) -> QuantSpec:
    """The spec of a named placement. Raises ConfigError naming the nearest name when it is unknown."""
    choice(placement, PLACEMENTS, "placement")
    return replace(QuantSpec(placement=placement, **PLACEMENTS[placement]), **overrides)


def spec_from_mapping(values: Mapping[str, Any], where: str = "quant spec") -> QuantSpec:
    """Strictly build a spec from a mapping; keys that are absent come from the named placement, then the defaults."""
    placement = values.get("placement", QuantSpec.placement)
    if not isinstance(placement, str):
        raise ConfigError(f"{where}: placement: expected a name, found {placement!r}")
    choice(placement, PLACEMENTS, f"{where}: placement")
    try:
        return from_mapping(QuantSpec, {**PLACEMENTS[placement], **values}, where)
    except ConfigError as error:
        message = str(error)  # QuantSpec's own checks do not know where the value was written
        raise ConfigError(message if message.startswith(where) else f"{where}: {message}") from error


def load_spec(path: Path) -> QuantSpec:
    """Read a spec from a JSON or YAML file. Raises ConfigError naming the file and the key."""
    return spec_from_mapping(load_mapping(path), str(path))
