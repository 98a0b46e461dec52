"""Peak of this machine's cores: a short benchmark of a few matrix products in INT8 and in FP32.

The products run in OpenVINO with the engine's own thread count, as u8 x s8 with INT32 sums (the coding for which x86
has an instruction) and as FP32; the best call of the best shape counts. It is the practical peak: what the best kernel
at hand reaches on a shape that suits it, not the product of clock and width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engines.openvino.build import OpenVINOSettings, open_core

# Rows, inner size and columns: which shape suits a kernel best differs by CPU
SHAPES = ((2048, 2048, 1024), (5120, 384, 384), (5120, 1536, 384), (5120, 768, 768))
CALLS = 12


def measure_peak(threads: int) -> dict[str, float]:
    """Measure the peak with `threads` (0: all cores) in a few seconds: ``int8`` and ``fp32``.

    Billions of operations a second; a multiply-add counts as two. Raises Unavailable without OpenVINO.
    """
    core = open_core()
    return {name: _best(core, threads, quantized=name == "int8") for name in ("int8", "fp32")}


def _best(core: Any, threads: int, quantized: bool) -> float:
    settings = {**OpenVINOSettings(threads, "f32").properties(), "PERF_COUNT": True}
    return max(_speed(core, settings, shape, quantized) for shape in SHAPES)


def _speed(core: Any, settings: dict[str, Any], shape: tuple[int, int, int], quantized: bool) -> float:
    """Billions of operations a second of one product."""
    request = core.compile_model(_product(shape, quantized), "CPU", settings).create_infer_request()
    rows = np.random.default_rng(0).random(shape[:2], np.float32)
    seconds: list[float] = []
    for _ in range(CALLS):
        request.infer([rows])
        counted = (entry for entry in request.profiling_info if entry.node_type.startswith("FullyConnected"))
        seconds.append(sum(entry.real_time.total_seconds() for entry in counted))
    return float(2e-9 * np.prod(shape) / min(seconds[1:]))


def _product(shape: tuple[int, int, int], quantized: bool) -> Any:
    """x [rows, inner] times a constant; quantized to u8 and s8 with exact scales, and to codes, when asked for."""
    import openvino
    from openvino import opset13 as operators

    rows, inner, columns = shape
    codes = np.random.default_rng(1).integers(-127, 128, (columns, inner)).astype(np.int8)
    x = operators.parameter([rows, inner], np.float32)
    if quantized:
        low, high = np.float32(0), np.float32(255)
        scale = np.full((columns, 1), 2.0**-7, np.float32)
        left = operators.fake_quantize(x, low, high, low, high, 256)
        right = operators.multiply(operators.convert(operators.constant(codes), np.float32), operators.constant(scale))
    else:
        left, right = x, operators.constant(codes.astype(np.float32))
    result = operators.matmul(left, right, False, True)
    if quantized:  # as for a next product, so that the kernel writes codes and no floats
        span = np.float32(2.0**12 * inner)
        result = operators.fake_quantize(result, -span, span, -span, span, 256)
    return openvino.Model([result], [x], "peak")
