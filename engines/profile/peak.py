"""Peak of this machine's cores: a short benchmark of one large matrix product in INT8 and in FP32.

The product runs in OpenVINO with the engine's own thread count, as u8 x s8 with INT32 sums (the coding for which x86
has an instruction) and as FP32; the best of a few calls counts. It is the practical peak: what the best kernel at hand
reaches on a shape that suits it, not the product of clock and width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engines.openvino.build import OpenVINOSettings, open_core

ROWS, INNER, COLUMNS = 2048, 2048, 1024
CALLS = 12


def measure_peak(threads: int) -> dict[str, float]:
    """Measure the peak with `threads` (0: all cores) in about two seconds: ``int8`` and ``fp32``.

    Billions of operations a second; a multiply-add counts as two. Raises Unavailable without OpenVINO.
    """
    core = open_core()
    return {name: _best(core, threads, quantized=name == "int8") for name in ("int8", "fp32")}


def _best(core: Any, threads: int, quantized: bool) -> float:
    settings = {**OpenVINOSettings(threads, "f32").properties(), "PERF_COUNT": True}
    request = core.compile_model(_product(quantized), "CPU", settings).create_infer_request()
    rows = np.random.default_rng(0).random((ROWS, INNER), np.float32)
    seconds: list[float] = []
    for _ in range(CALLS):
        request.infer([rows])
        counted = (entry for entry in request.profiling_info if entry.node_type.startswith("FullyConnected"))
        seconds.append(sum(entry.real_time.total_seconds() for entry in counted))
    return float(2e-9 * ROWS * INNER * COLUMNS / min(seconds[1:]))


def _product(quantized: bool) -> Any:
    """x [ROWS, INNER] times a constant; quantized to u8 and s8 with exact scales when asked for."""
    import openvino
    from openvino import opset13 as operators

    codes = np.random.default_rng(1).integers(-127, 128, (COLUMNS, INNER)).astype(np.int8)
    x = operators.parameter([ROWS, INNER], np.float32)
    if quantized:
        low, high = np.float32(0), np.float32(255)
        scale = np.full((COLUMNS, 1), 2.0**-7, np.float32)
        left = operators.fake_quantize(x, low, high, low, high, 256)
        right = operators.multiply(operators.convert(operators.constant(codes), np.float32), operators.constant(scale))
    else:
        left, right = x, operators.constant(codes.astype(np.float32))
    return openvino.Model([operators.matmul(left, right, False, True)], [x], "peak")
