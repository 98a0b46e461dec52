"""Stage 2, inject: a loaded encoder in, the same encoder with TensorQuantizers and its placement out."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from qdq.errors import ModelError
from qdq.inject.attention import IMPLEMENTATION, register
from qdq.inject.blocks import replace_gelus
from qdq.inject.defaults import overruled
from qdq.inject.embedding import QuantEmbedding
from qdq.inject.families import Family, family_of, skip_readers
from qdq.inject.placement import Candidate, Placement, Zone, decide
from qdq.inject.quantizer import Layout, QuantLinear, TensorQuantizer
from qdq.inject.spec import QuantSpec

logger = logging.getLogger(__name__)

__all__ = ["Placement", "QuantSpec", "candidates", "decided", "inject", "quantizers", "remove"]

NO_READER = "shared_skip: no quantized linear reads the same tensor, so it would need a QuantizeLinear of its own"
MATMUL_LAYOUTS: dict[str, Layout] = {"q": "heads", "k": "heads", "a": "scores", "v": "heads"}


def inject(model: PreTrainedModel, spec: QuantSpec) -> Placement:
    """Insert quantizers into `model` in place and return the decision for every candidate point.

    Until it is calibrated a quantizer takes its range from each tensor it sees, as in pytorch-quantization. With
    quantizers disabled the outputs are the original ones, apart from float32 rounding. Raises ModelError for an
    unsupported family, for cross-attention, and for a model that is already injected.
    """
    family = family_of(model.config.model_type)
    if model.config._attn_implementation == IMPLEMENTATION:
        raise ModelError("this model already carries quantizers; load the checkpoint again before injecting")
    if getattr(model.config, "add_cross_attention", False):
        raise ModelError("cross-attention is not supported; use an encoder checkpoint (add_cross_attention: false)")
    if line := overruled(spec):
        logger.warning(line)
    register()
    _own_config(model)
    model.config._attn_implementation = IMPLEMENTATION
    model.config.use_cache = False
    replace_gelus(model)
    _replace_blocks(model, family)
    _fold_attention_scale(model, family)
    placement = decided(model, spec)
    placed = {point.name for point in placement.placed}
    _place(model, [candidate for candidate in candidates(model, family) if candidate.name in placed], spec)
    return placement


def quantizers(model: nn.Module) -> dict[str, TensorQuantizer]:
    """Every placed quantizer by point name, in model order; a shared one appears once."""
    found = (module for module in model.modules() if isinstance(module, TensorQuantizer))
    return {module.point: module for module in found}


def candidates(model: PreTrainedModel, family: Family) -> Iterator[Candidate]:
    """Every place a quantizer could stand, in model order. Works on a model whose blocks are replaced."""
    for path, module in model.named_modules():
        zone = _zone(model, family, path)
        if isinstance(module, nn.Linear):
            yield Candidate(path, "_input_quantizer", "linear_input", zone)
            yield Candidate(path, "_weight_quantizer", "linear_weight", zone)
        if isinstance(module, nn.Embedding) and "embeddings" in path:  # not MPNet's table of position biases
            yield Candidate(path, "_weight_quantizer", "embedding", zone)
        if zone == "encoder" and type(module).__name__ in family.attention:
            for operand in MATMUL_LAYOUTS:
                yield Candidate(path, f"matmul_{operand}_input_quantizer", "matmul", zone, operand)
        if zone == "encoder" and type(module).__name__ in family.residual:
            for operand in ("local", "residual"):
                yield Candidate(path, f"add_{operand}_input_quantizer", "residual", zone, operand)


def decided(model: PreTrainedModel, spec: QuantSpec) -> Placement:
    """The decision of `spec` on every candidate point of an injected model."""
    family = family_of(model.config.model_type)
    found = list(candidates(model, family))
    points = [decide(candidate, spec) for candidate in found]
    if not spec.shared_skip:
        return Placement(tuple(points))
    # A linear quantizes what it reads only together with its weight.
    placed = {point.name for point in points if point.placed}
    quantized = {c.module for c in found if {f"{c.module}.input_quantizer", f"{c.module}.weight_quantizer"} <= placed}
    for index, candidate in enumerate(found):
        is_skip = points[index].placed and (candidate.kind, candidate.operand) == ("residual", "residual")
        if is_skip and quantized.isdisjoint(skip_readers(family, candidate.module)):
            points[index] = replace(points[index], placed=False, reason=NO_READER)
    return Placement(tuple(points))


def remove(model: PreTrainedModel, names: Collection[str]) -> None:
    """Take the quantizers of the points `names` out of an injected model."""
    for candidate in list(candidates(model, family_of(model.config.model_type))):
        if candidate.name in names:
            setattr(model.get_submodule(candidate.module), candidate.attribute, None)


def base_path(model: PreTrainedModel) -> str:
    """Dotted prefix of the bare encoder inside a task model, "" when the model is the encoder itself."""
    prefix: str = model.base_model_prefix
    return f"{prefix}." if hasattr(model, prefix) else ""


def _zone(model: PreTrainedModel, family: Family, path: str) -> Zone:
    base = base_path(model)
    if path.startswith(f"{base}{family.layers}."):
        return "encoder"
    if path.startswith(f"{base}pooler"):
        return "pooler"
    return "embeddings" if base == "" or path.startswith(base) else "head"


def _own_config(model: PreTrainedModel) -> None:
    """Give the model a configuration of its own: another model built from the same object must not change with it."""
    shared = model.config
    own = copy.deepcopy(shared)
    for module in model.modules():
        if vars(module).get("config") is shared:
            module.config = own  # type: ignore[assignment]  # torch types attributes as parameters or modules


def _replace_blocks(model: PreTrainedModel, family: Family) -> None:
    """Swap the residual-adding modules, innermost first, so that a replaced parent adopts replaced children."""
    paths = [path for path, module in model.named_modules() if type(module).__name__ in family.replacements]
    for path in sorted(paths, key=lambda path: -path.count(".")):
        if _zone(model, family, path) == "encoder":
            source = model.get_submodule(path)
            model.set_submodule(path, family.replacements[type(source).__name__](source))


def _fold_attention_scale(model: PreTrainedModel, family: Family) -> None:
    """Move 1/sqrt(d) from the scores to the query projection; exact in real arithmetic, what fused attention wants."""
    for module in list(model.modules()):
        if type(module).__name__ not in family.attention:
            continue
        query = getattr(module, family.query)
        setattr(module, family.query, QuantLinear(query, output_scale=float(module.scaling)))  # type: ignore[arg-type]
        module.scaling = 1.0  # type: ignore[assignment]
        for operand in MATMUL_LAYOUTS:
            setattr(module, f"matmul_{operand}_input_quantizer", None)


def _place(model: PreTrainedModel, placed: list[Candidate], spec: QuantSpec) -> None:
    linears: dict[str, dict[str, TensorQuantizer]] = {}
    for candidate in placed:
        quantizer = _quantizer(candidate, spec)
        if candidate.kind in ("linear_input", "linear_weight"):
            linears.setdefault(candidate.module, {})[candidate.kind] = quantizer
        elif candidate.kind == "embedding":
            table = model.get_submodule(candidate.module)
            assert isinstance(table, nn.Embedding)  # the candidate was found on it
            model.set_submodule(candidate.module, QuantEmbedding(table, quantizer))
        else:
            setattr(model.get_submodule(candidate.module), candidate.attribute, quantizer)
    for path, pair in linears.items():
        linear = model.get_submodule(path)
        assert isinstance(linear, nn.Linear)  # a linear candidate was found on it
        scale = linear.output_scale if isinstance(linear, QuantLinear) else 1.0
        model.set_submodule(path, QuantLinear(linear, pair.get("linear_input"), pair.get("linear_weight"), scale))


def _quantizer(candidate: Candidate, spec: QuantSpec) -> TensorQuantizer:
    if candidate.kind == "linear_weight":
        axis = 0 if spec.per_channel_weights else None
        return TensorQuantizer(candidate.name, spec.weight_bits, axis, "weight")
    if candidate.kind == "embedding":
        return TensorQuantizer(candidate.name, 8, 0, "weight")
    layout: Layout = MATMUL_LAYOUTS[candidate.operand] if candidate.kind == "matmul" else "tokens"
    if candidate.zone in ("pooler", "head"):
        layout = "pooled"
    return TensorQuantizer(candidate.name, spec.activation_bits, None, layout)
