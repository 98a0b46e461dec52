"""TensorQuantizer as this project needs it: the only module that touches pytorch-quantization.

pytorch-quantization 2.1.3 supplies the classes and their calibration protocol; what differs here, and why:

- values are ``clamp(round(x / scale)) * scale``, exactly ONNX's definition (theirs multiply by the reciprocal);
- the scale is rounded to an FP16-representable value, so a TensorRT graph with FP16 scales computes the same codes;
- in an ONNX export the pair is written as real QuantizeLinear/DequantizeLinear nodes;
- calibrators are our own, statistics can skip padded positions, and nothing calls ``.cuda()``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from pytorch_quantization.nn import QuantLinear as _QuantLinear
from pytorch_quantization.nn import TensorQuantizer as _TensorQuantizer
from pytorch_quantization.tensor_quant import (
    QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW,
    QUANT_DESC_8BIT_PER_TENSOR,
    QuantDescriptor,
)
from torch import Tensor, nn

from qdq.errors import CalibrationError, ExportError
from qdq.inject.pair import FakeQuantize, aside, quantize_pair, refuse_trace
from qdq.inject.scale import scale_of
from qdq.inject.statistics import Calibrator, MaxCalibrator

Layout = Literal["tokens", "heads", "scores", "pooled", "weight"]
DEFAULT_DESCRIPTORS = {"input": QUANT_DESC_8BIT_PER_TENSOR, "weight": QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW}


def default_descriptor(role: str) -> tuple[QuantDescriptor, bool]:
    """The default QuantDescriptor of QuantLinear's "input" or "weight", and True when somebody has set it."""
    found = getattr(_QuantLinear, f"default_quant_desc_{role}")
    return found, found is not DEFAULT_DESCRIPTORS[role]


class TensorQuantizer(_TensorQuantizer):  # type: ignore[misc]  # untyped upstream
    """One quantization point.

    Args:
        point: the point's name, as in placement.json; it names errors and ONNX nodes.
        bits: code width.
        axis: channel axis of a per-channel weight, None for per-tensor.
        layout: which dimensions of the input are batch and sequence, so that padding can be left out of statistics.
    """

    def __init__(self, point: str, bits: int = 8, axis: int | None = None, layout: Layout = "tokens") -> None:
        super().__init__(QuantDescriptor(num_bits=bits, axis=axis, calib_method="max"))
        self.point = point
        self.layout: Layout = layout
        self.token_mask: Tensor | None = None  # [B, S], set around a calibration forward
        self._calibrator: Calibrator = MaxCalibrator()
        self._seen_weight: Tensor | None = None
        self.register_buffer("_constant_scale", None, persistent=False)  # [] or [C], only inside `folded`
        self.register_buffer("_constant_zero", None, persistent=False)

    @property
    def calibrator(self) -> Calibrator:
        """The statistics collector in use."""
        return self._calibrator

    @calibrator.setter
    def calibrator(self, calibrator: Calibrator) -> None:
        self._calibrator = calibrator

    def current_amax(self, inputs: Tensor) -> Tensor:
        """The calibrated amax, or the dynamic one of `inputs` while there is none. Shape [] or [C,1…]."""
        return self._amax if hasattr(self, "_amax") else weight_amax(inputs, self._axis)

    def set_amax(self, amax: Tensor) -> None:
        """Store an amax (scalar, or per channel shaped to broadcast). Raises CalibrationError unless finite."""
        if not bool(torch.isfinite(amax).all()) or bool((amax < 0).any()):
            raise CalibrationError(f"{self.point}: amax is not finite and non-negative; calibrate this point again")
        self.register_buffer("_amax", amax.detach().to(torch.float32).clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """Fake-quantize `inputs` (any shape, float32), collecting statistics first when calibration is enabled."""
        if self._disabled:
            return inputs
        if self._if_calib and self.layout == "weight":
            self._seen_weight = weight_amax(inputs, self._axis)
        elif self._if_calib:
            mask = broadcast_mask(self.token_mask, inputs, self.layout)
            self._calibrator.update(inputs, mask)
        if not self._if_quant:
            return inputs
        if self._constant_scale is not None or torch.compiler.is_exporting():
            return self._constant_pair(inputs)
        return self._fake_quantize(inputs, scale_of(self.current_amax(inputs), self._num_bits))

    def _fake_quantize(self, inputs: Tensor, scale: Tensor) -> Tensor:
        refuse_trace(self.point)
        high = 2 ** (self._num_bits - 1) - 1
        result: Tensor = FakeQuantize.apply(inputs, scale, -high - 1, high)  # type: ignore[no-untyped-call]
        return result

    @property
    def is_constant(self) -> bool:
        """True inside `folded`, where an export sees this point as a pair of nodes."""
        return self._constant_scale is not None

    def _constant_pair(self, inputs: Tensor) -> Tensor:
        """The same computation in a form that becomes two ONNX nodes; weights become INT8 initializers after export.

        Inside `folded` scales are constants; a plain torch.onnx.export traces how they follow from the amax.
        """
        if self._num_bits < 8 and self.layout != "weight":
            raise ExportError(f"{self.point}: {self._num_bits}-bit activations have no ONNX form; use 8 bits")
        scale, zero = self._constant_scale, self._constant_zero
        if scale is None or zero is None:
            if not hasattr(self, "_amax"):
                raise ExportError(f"{self.point}: no calibrated amax; run calibration before export")
            return self.traced_pair(inputs, scale_of(self._amax, self._num_bits))
        return quantize_pair(inputs, scale, zero, self._axis)

    def traced_pair(self, inputs: Tensor, scale: Tensor) -> Tensor:
        """The pair of nodes, its scale traced as well: an exporter's optimizer makes that a constant again."""
        if self._num_bits < 8:
            raise ExportError(f"{self.point}: codes of {self._num_bits} bits are exported by 'qdq export' only")
        flat = scale.reshape(()) if self._axis is None else scale.reshape(-1)
        return quantize_pair(inputs, flat, torch.zeros(flat.shape, dtype=torch.int8), self._axis)

    # The calibration protocol of pytorch-quantization, as QDQBERT's documentation spells it.
    def enable_calib(self) -> None:
        """Collect statistics in the following forwards."""
        self._if_calib = True

    def disable_calib(self) -> None:
        """Stop collecting."""
        self._if_calib = False

    def load_calib_amax(self, *args: Any, **kwargs: Any) -> None:
        """Freeze the amax from the collected statistics and stop collecting; a weight's is that of the weight it saw.

        Arguments name the algorithm of a calibrator that lets `load_calib_amax` choose one. Raises CalibrationError
        naming the point when it saw no data, NaN or infinity, or nothing but zeros.
        """
        if self.layout == "weight":
            if self._seen_weight is None:
                raise CalibrationError(f"{self.point}: saw no weight; run a batch with enable_calib")
            self.set_amax(self._seen_weight)
        else:
            choose = getattr(self._calibrator, "choose", None)
            if choose is not None and (args or kwargs):
                choose(*args, **kwargs)
            elif args or kwargs:
                raise CalibrationError(f"{self.point}: load_calib_amax takes no options; choose the calibrator instead")
            self.set_amax(torch.tensor(self._calibrator.amax(self.point)))
        self.disable_calib()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take `_amax` from a state dict as it is. Upstream calls `.cuda()` here, which a CPU machine cannot."""
        if f"{prefix}_amax" in state_dict:
            self.set_amax(state_dict[f"{prefix}_amax"])
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args, **kwargs)


class Treated(nn.Module):
    """Changes that treatments make; each is a buffer beside the parameters, None where there is none."""

    TREATMENTS: ClassVar[tuple[str, ...]] = ()

    def treat(self, name: str, value: Tensor | None) -> None:
        """Set one of the treatments, or remove it."""
        self.register_buffer(name, value)


def treated(module: nn.Module) -> Iterator[tuple[str, Treated]]:
    """Yield (path, module) of every part of `module` that can be treated."""
    return ((path, part) for path, part in module.named_modules() if isinstance(part, Treated))


class QuantLinear(_QuantLinear, Treated):  # type: ignore[misc]  # untyped upstream
    """Linear with an optional quantizer on its input and on its weight; shares the parameters of `linear`.

    The stored parameters stay the checkpoint's own. Their changes are buffers of their own, applied in every forward;
    `folded` bakes them in for an export. `output_scale` is the 1/sqrt(d) of attention on a query
    projection. The others are treatments of `qdq.calibrate.treatments`, None where there is none:

        _bias_offset [out]: added to the stored bias (value centering).
        _row_scale [out]: multiplies rows of the weight and the bias (equalization and residual scaling, the producing
            side).
        _column_scale [in]: multiplies columns of the weight (equalization, the consuming side).
        _smoothing [in]: multiplies the input and divides the columns; exact up to float rounding (SmoothQuant).
        _codes int8 [out, in]: the weight's codes where they are not the nearest ones (AdaRound, GPTQ).
        _bias_shift [out]: added to the bias (bias correction).

    Codes and shift belong to the quantized weight: with the weight's quantizer disabled neither is applied.
    """

    TREATMENTS = ("_bias_offset", "_row_scale", "_column_scale", "_smoothing", "_codes", "_bias_shift")
    _bias_offset: Tensor | None
    _row_scale: Tensor | None
    _column_scale: Tensor | None
    _smoothing: Tensor | None
    _codes: Tensor | None
    _bias_shift: Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        inputs: TensorQuantizer | None = None,
        weight: TensorQuantizer | None = None,
        output_scale: float = 1.0,
    ) -> None:
        nn.Linear.__init__(self, 1, 1, bias=False, device="meta")  # parameters come from `linear`
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._input_quantizer = inputs
        self._weight_quantizer = weight
        self.output_scale = output_scale
        self.baked = False  # inside `folded`: the parameters hold everything but the input's factor
        for name in self.TREATMENTS:
            self.treat(name, None)
        self.train(linear.training)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Take a parameter, and remember it for a trace, which puts placeholders in the parameters' place."""
        super().register_parameter(name, param)
        self._remember()

    def _remember(self) -> None:
        self._real = (self._parameters.get("weight"), self._parameters.get("bias"))

    def train(self, mode: bool = True) -> QuantLinear:
        """Set the mode, and remember the parameters again, which a loader may have put in by another way."""
        self._remember()
        super().train(mode)
        return self

    def _row_factor(self, values: Tensor) -> Tensor:
        """`values` [out, ...] with everything applied that scales an output."""
        values = values if self.output_scale == 1.0 else values * self.output_scale
        if self._row_scale is None:
            return values
        factors: Tensor = self._row_scale
        return values * factors.view(-1, *[1] * (values.dim() - 1))

    @property
    def effective_weight(self) -> Tensor:
        """The weight that is quantized and multiplied: [out, in]."""
        weight: Tensor = self.weight
        return weight if self.baked else self._scaled(weight)

    @property
    def weight_factor(self) -> Tensor:
        """The factor of every element of the stored weight in the effective one: [out, in]."""
        return self._scaled(torch.ones_like(self.weight))

    def _scaled(self, values: Tensor) -> Tensor:
        """`values` [out, in] with everything applied that scales a weight."""
        values = self._row_factor(values)
        if self._column_scale is not None:
            values = values * self._column_scale
        return values if self._smoothing is None else values / self._smoothing

    @property
    def effective_bias(self) -> Tensor | None:
        """The bias that is added: [out]."""
        bias: Tensor | None = self.bias
        if self._bias_offset is not None:
            bias = self._bias_offset if bias is None else bias + self._bias_offset
        bias = None if bias is None else self._row_factor(bias)
        if self._bias_shift is None or not self.weight_is_quantized:
            return bias
        shift: Tensor = self._bias_shift
        return shift if bias is None else bias + shift

    @property
    def weight_is_quantized(self) -> bool:
        """True when a forward quantizes the weight."""
        point = self._weight_quantizer
        return point is not None and not point._disabled and point._if_quant

    @property
    def quantized_weight(self) -> Tensor:
        """The weight a forward multiplies with: [out, in], by codes where there are any."""
        if self._codes is None or not self.weight_is_quantized:
            return quantize(self._weight_quantizer, self.effective_weight)
        point = self._weight_quantizer
        assert point is not None and point.amax is not None  # codes come with the amax they were rounded for
        weight: Tensor = self._codes.to(torch.float32) * scale_of(point.amax, point._num_bits)
        return weight

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        if torch.compiler.is_exporting() and not self.baked:
            return self._traced(input)
        if self._smoothing is not None:
            input = input * self._smoothing
        return nn.functional.linear(quantize(self._input_quantizer, input), self.quantized_weight, self.effective_bias)

    def _traced(self, input: Tensor) -> Tensor:
        """`forward` in a plain torch.onnx.export; what depends on parameters alone is computed beside the trace."""
        point, factor, (weight, bias) = self._weight_quantizer, self.output_scale, self._real
        treatments = [name for name in self.TREATMENTS if getattr(self, name) is not None]
        if treatments or weight is None:
            where = "a linear" if point is None else point.point
            raise ExportError(f"{where}: its treatments ({', '.join(treatments)}) are exported by 'qdq export' only")
        quantized = quantize(self._input_quantizer, input)
        seen: tuple[Tensor, Tensor | None] = (self.weight, self.bias)
        if factor != 1.0:
            seen = aside(lambda: (weight.detach() * factor, None if bias is None else bias.detach() * factor))
        if point is None or point.amax is not None or not self.weight_is_quantized:
            return nn.functional.linear(quantized, quantize(point, seen[0]), seen[1])
        bits, axis = point._num_bits, point._axis
        scale = aside(lambda: scale_of(weight_amax(weight.detach() * factor, axis), bits))
        return nn.functional.linear(quantized, point.traced_pair(seen[0], scale), seen[1])


def floating_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Parameters of the model that `module` was injected into, by name: the stored ones, 1/sqrt(d) in the query.

    Views where nothing changes.
    """
    found = {name: parameter.detach() for name, parameter in module.named_parameters(remove_duplicate=False)}
    for path, linear in module.named_modules():
        if isinstance(linear, QuantLinear) and linear.output_scale != 1.0:
            names = [name for name in (f"{path}.weight", f"{path}.bias") if name in found]
            found |= {name: found[name] * linear.output_scale for name in names}
    return found


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """Bake scales and everything that changes a parameter into constants for the duration: a trace sees only those.

    Quantizing a weight made of codes gives those codes again, so the graph holds them; likewise a weight on the grid of
    fewer than 8 bits, which QuantizeLinear could not clamp.
    """
    points = [module for module in model.modules() if isinstance(module, TensorQuantizer) and hasattr(module, "_amax")]
    linears = [module for module in model.modules() if isinstance(module, QuantLinear)]
    kept = [(m.weight, m.bias, m.output_scale, {name: getattr(m, name) for name in m.TREATMENTS}) for m in linears]
    try:
        for point in points:
            scale = scale_of(point._amax, point._num_bits)
            point._constant_scale = scale.reshape(()) if point._axis is None else scale.reshape(-1)
            point._constant_zero = torch.zeros_like(point._constant_scale, dtype=torch.int8)
        for module in linears:
            _fold(module)
        yield
    finally:
        for point in points:
            point._constant_scale = point._constant_zero = None
        for module, (weight, bias, factor, treatments) in zip(linears, kept, strict=True):
            module.weight, module.bias, module.output_scale, module.baked = weight, bias, factor, False
            for name, value in treatments.items():
                module.treat(name, value)


def _fold(module: QuantLinear) -> None:
    point = module._weight_quantizer
    narrow = point is not None and point._num_bits < 8
    coded = module.weight_is_quantized and (narrow or module._codes is not None)
    weight = (module.quantized_weight if coded else module.effective_weight).detach()
    bias = module.effective_bias
    module.weight = nn.Parameter(weight)
    module.bias = None if bias is None else nn.Parameter(bias.detach())  # type: ignore[assignment]
    module.output_scale, module.baked = 1.0, True
    for name in module.TREATMENTS:
        if name != "_smoothing":  # the input's factor is an operation of the graph
            module.treat(name, None)


def quantize(quantizer: nn.Module | None, x: Tensor) -> Tensor:
    """Apply a point that may not be placed."""
    return x if quantizer is None else quantizer(x)


def weight_amax(weight: Tensor, axis: int | None) -> Tensor:
    """Largest magnitude, scalar or per channel of `axis` with kept dimensions."""
    if axis is None:
        return weight.detach().abs().amax()
    others = [dimension for dimension in range(weight.dim()) if dimension != axis]
    return weight.detach().abs().amax(dim=others, keepdim=True)


def broadcast_mask(mask: Tensor | None, x: Tensor, layout: Layout) -> Tensor | None:
    """The [B, S] token mask shaped to broadcast against `x`, or None when every element counts."""
    if mask is None or layout == "weight" or (layout == "pooled" and x.dim() < 3):
        return None
    if layout in ("tokens", "pooled"):  # a head may see every token, or only the first one's pooled state
        return mask[:, :, None]
    if layout == "heads":
        return mask[:, None, :, None]
    return mask[:, None, :, None] & mask[:, None, None, :]
