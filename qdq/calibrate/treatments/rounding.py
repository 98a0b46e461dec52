"""Rounding of weights by the error of the linear's output instead of each weight's own: GPTQ and AdaRound.

Both minimize ``|X W' - X W|**2`` over the codes of W', where X are sampled input rows as the linear will see them
(quantized). The scales stay those of rounding to nearest. The codes are stored beside the original weight.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from qdq.base.types import Progress
from qdq.calibrate.treatments.arithmetic import column_means, fake_quantize, spread
from qdq.calibrate.treatments.observe import Group, Observed
from qdq.inject.quantizer import QuantLinear, weight_amax
from qdq.inject.scale import scale_of

ROUNDED = 0.49  # steps a weight may lie from its code, so that rounding to nearest gives the code again
DAMPING = 0.01  # of the mean diagonal, as in GPTQ: rows are fewer than a Hessian needs to be well conditioned
LARGEST_CODE = 127  # of INT8
SYMMETRIC_BLOCK = 384  # columns of a symmetric product that are multiplied at once
BLOCK = 64  # columns between two updates of all later ones
ADAROUND_STEPS, ADAROUND_ROWS, ADAROUND_RATE = 200, 256, 0.03
ROWS_KEPT = 1024  # of the sampled rows AdaRound draws its batches from
ZETA, GAMMA = 1.1, -0.1  # AdaRound's stretch of the sigmoid
REGULARIZER, BETAS, WARM_UP = 0.01, (20.0, 2.0), 0.2  # AdaRound's pull towards 0 or 1 and its annealing


def round_weights(
    observed: Observed,
    round_type: str,
    seed: int,
    progress: Progress | None = None,
    training: tuple[int, float] | None = None,
) -> list[dict[str, Any]]:
    """Give every observed linear its codes; returns rows for calibration.json.

    `seed` and `training`, its steps and learning rate, are AdaRound's.
    """
    rows: list[dict[str, Any]] = []
    for done, group in enumerate(observed.groups, start=1):
        # Linears that read one tensor are rounded as one tall weight: they share the Hessian
        hessian = second_moment(group)
        parts = [weight_and_scale(linear) for linear in group.linears.values()]
        weight, scale = (torch.cat(tensors) for tensors in ([w for w, _, _ in parts], [s for _, s, _ in parts]))
        high = parts[0][2]
        if round_type == "gptq":
            codes = gptq(weight, scale, inverse_factor(hessian), high)
        else:
            codes = adaround(weight, scale, spread(quantized_inputs(group), ROWS_KEPT), high, seed, training)
        nearest = torch.round(weight / scale).clamp(-high - 1, high)
        before, after = (output_errors(c * scale - weight, hessian) for c in (nearest, codes))
        # Each linear takes its rows of the codes
        start = 0
        for name, linear in group.linears.items():
            part = slice(start, start := start + linear.out_features)
            linear.treat("_codes", codes[part].to(torch.int8))
            errors = {"before": float(before[part].mean()), "after": float(after[part].mean())}
            rows.append({"point": f"{name}.weight_quantizer", **errors})
        if progress:
            progress(done, len(observed.groups))
    return rows


def quantized_inputs(group: Group) -> Tensor:
    """Return the sampled rows as the linears see them: rounded by their input quantizer."""
    point = next(iter(group.linears.values()))._input_quantizer
    assert point is not None and point.amax is not None  # ranges are frozen before weights are rounded
    return fake_quantize(group.seen.rows, point.amax, point._num_bits)


def second_moment(group: Group) -> Tensor:
    """Mean of ``x' x`` over the rows as the linears see them, [in, in]; of INT8 codes where those are exact."""
    rows, point = group.seen.rows, next(iter(group.linears.values()))._input_quantizer
    assert point is not None and point.amax is not None  # ranges are frozen before weights are rounded
    scale, high = scale_of(point.amax, point._num_bits), 2 ** (point._num_bits - 1) - 1
    codes = (rows / scale).round_().clamp_(-high - 1, high)
    if integer_products_pay() and high <= LARGEST_CODE:
        short = codes.to(torch.int8)
        product = torch._int_mm(short.T.contiguous(), short).float()
    else:
        product = symmetric_product(codes)
    return product.mul_(scale * scale / len(rows))


@cache
def integer_products_pay() -> bool:
    """True where torch multiplies INT8 with VNNI: fast and exact. Its scalar loop takes ten times as long as FP32."""
    try:
        return bool(torch.cpu._is_vnni_supported()) and hasattr(torch, "_int_mm")
    except AttributeError:  # a build of torch without either
        return False


def symmetric_product(rows: Tensor) -> Tensor:
    """``rows' rows``, [in, in], of which only the lower half is multiplied out."""
    product = torch.empty(rows.shape[1], rows.shape[1])
    for start in range(0, rows.shape[1], SYMMETRIC_BLOCK):
        stop = min(start + SYMMETRIC_BLOCK, rows.shape[1])
        product[start:stop, :stop] = rows[:, start:stop].T @ rows[:, :stop]
        product[:start, start:stop] = product[start:stop, :start].T
    return product


def weight_and_scale(linear: QuantLinear) -> tuple[Tensor, Tensor, int]:
    """The weight [out, in], its scale per output [out, 1] and the largest code."""
    point = linear._weight_quantizer
    assert point is not None and point.amax is not None
    scale = scale_of(point.amax, point._num_bits)
    weight = linear.effective_weight.detach()
    return weight, scale.expand(len(weight), 1) if scale.dim() == 0 else scale, int(2 ** (point._num_bits - 1) - 1)


def output_errors(difference: Tensor, hessian: Tensor) -> Tensor:
    """Mean squared error [out] of each output for a weight difference [out, in] and second moment [in, in]."""
    return ((difference @ hessian) * difference).sum(1)


def inverse_factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse, [in, in].

    With its rows and columns reversed the Hessian is ``L L'``; reversed again, L is an upper triangular R with
    ``H = R R'``, so that ``inverse(H) = inverse(R)' inverse(R)``: the factor without the inverse itself.
    """
    damping = DAMPING * hessian.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    for dtype in (torch.float32, torch.float64):  # double only where single precision is not positive definite
        damped = hessian.flip(0, 1).to(dtype)
        damped.diagonal().add_(damping)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper = lower.flip(0, 1)
            factor: Tensor = torch.linalg.solve_triangular(upper, torch.eye(len(upper), dtype=dtype), upper=True)
            if bool(torch.isfinite(factor).all()):
                return factor.float()
    # Inputs without any spread in most directions: their diagonal is what can be trusted.
    return torch.diag(1 / (hessian.diagonal() + damping).sqrt())


def gptq(weight: Tensor, scale: Tensor, inverse: Tensor, high: int) -> Tensor:
    """Codes [out, in] of `weight` under `scale` [out, 1]; the rounding error of a column is compensated in later ones.

    Source: Frantar et al., "GPTQ" (arXiv 2210.17323), after Optimal Brain Compression (arXiv 2208.11580): with U the
    upper Cholesky factor of the inverse Hessian, rounding column j by e changes the later columns by
    ``-e / U[j, j] * U[j, j+1:]``. Columns go by their order; blocks bound the size of the updates.
    """
    remaining = weight.T.contiguous()  # [in, out]: a column of the weight is then contiguous
    codes, steps = torch.empty_like(remaining), scale[:, 0].contiguous()
    for start in range(0, len(remaining), BLOCK):
        stop = min(start + BLOCK, len(remaining))
        block, factor = remaining[start:stop], inverse[start:stop, start:stop]
        diagonal, errors = factor.diagonal().tolist(), torch.empty_like(block)
        for column in range(stop - start):
            code = torch.div(block[column], steps, out=codes[start + column]).round_().clamp_(-high - 1, high)
            error = torch.addcmul(block[column], code, steps, value=-1, out=errors[column]).div_(diagonal[column])
            block[column + 1 :].addr_(factor[column, column + 1 :], error, alpha=-1)
        remaining[stop:].addmm_(inverse[start:stop, stop:].T, errors, alpha=-1)
    return codes.T.contiguous()


def adaround(
    weight: Tensor, scale: Tensor, inputs: Tensor, high: int, seed: int, training: tuple[int, float] | None = None
) -> Tensor:
    """Codes [out, in] of `weight` under `scale` [out, 1], each rounded up or down.

    `training` is the number of steps and their learning rate.

    Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv 2004.10568): a soft
    rounding h(V) in [0, 1] per weight is trained by Adam on the linear's output error over batches of `inputs`, with a
    regularizer that pushes it to 0 or 1; it starts at the fraction, that is, at the floating-point weight.
    """
    # Start at the floating-point weight: h(variable) == fraction
    generator = torch.Generator().manual_seed(seed)
    floor = torch.floor(weight / scale)
    fraction = (weight / scale - floor).clamp(0.001, 0.999)
    variable = torch.log((fraction - GAMMA) / (ZETA - fraction)).requires_grad_()
    steps, rate = training or (ADAROUND_STEPS, ADAROUND_RATE)
    optimizer = torch.optim.Adam([variable], lr=rate)
    power = (inputs @ weight.T).square().mean().clamp(min=torch.finfo(torch.float32).tiny)
    # Train the output error first, then pull h towards 0 or 1
    with torch.enable_grad():
        for step in range(steps):
            rows = inputs[torch.randint(len(inputs), (min(ADAROUND_ROWS, len(inputs)),), generator=generator)]
            soft = _soft(variable)
            change = ((floor + soft).clamp(-high - 1, high) * scale - weight) @ rows.T
            loss = change.square().mean() / power
            progress = (step / steps - WARM_UP) / (1 - WARM_UP)
            if progress > 0:
                beta = BETAS[1] + (BETAS[0] - BETAS[1]) * (1 + torch.cos(torch.tensor(progress * torch.pi))) / 2
                loss = loss + REGULARIZER * (1 - (2 * soft - 1).abs().pow(beta)).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return (floor + (variable.detach() >= 0)).clamp(-high - 1, high)


@torch.no_grad()
def fold_rounding(module: nn.Module) -> None:
    """Put codes and bias shifts into the parameters themselves, for weights that are trained from here on.

    A weight moves only as far as it must for its nearest code to be the chosen one, so the model computes what it did
    and no weight is far from its next code. Those that set the scale of their row stay.
    """
    for part in module.modules():
        if not isinstance(part, QuantLinear):
            continue
        if part._codes is not None:
            weight, scale, _ = weight_and_scale(part)
            codes = part._codes.to(weight.dtype)
            limit = weight_amax(weight, part._weight_quantizer.axis)  # type: ignore[union-attr]  # it made the codes
            moved = torch.clamp(weight / scale, codes - ROUNDED, codes + ROUNDED) * scale
            moved = torch.clamp(moved, -limit, limit) / part.weight_factor
            stays = (torch.round(weight / scale) == codes) | (weight.abs() >= limit)
            part.weight.copy_(torch.where(stays, part.weight, moved))
        if part._bias_shift is not None and part.bias is not None:
            part.bias.add_(part._bias_shift / part._row_factor(torch.ones_like(part.bias)))
        part.treat("_codes", None)
        part.treat("_bias_shift", None)


def _soft(variable: Tensor) -> Tensor:
    """AdaRound's rectified sigmoid: [0, 1], and exactly 0 and 1 where it saturates."""
    return (torch.sigmoid(variable) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def correct_biases(observed: Observed) -> list[dict[str, Any]]:
    """Absorb the mean output error of every observed linear in its bias; returns rows for calibration.json.

    Called once ranges are settled, with the weights' quantizers enabled.

    Source: Banner et al., "Post-training 4-bit quantization" (arXiv 1810.05723), and Nagel et al. (arXiv 1906.04721)
    with calibration data: rounding and clipping shift the mean of ``X W``; the shift on the sampled
    rows, ``E[X W - Q(X) Q(W)]``, is added to the bias.
    """
    rows = []
    for group in observed.groups:
        exact, quantized = column_means(group.seen.rows), column_means(quantized_inputs(group))
        for name, linear in group.linears.items():
            weight = linear.effective_weight.detach().double()
            rounded = linear.quantized_weight.detach().double()
            shift = (weight @ exact - rounded @ quantized).float()
            linear.treat("_bias_shift", shift)
            rows.append({"point": name, "largest_shift": float(shift.abs().amax())})
    return rows
