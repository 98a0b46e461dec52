"""A GPU benchmark on screen: plain text, one line per contestant, at most 80 columns but for the trtexec commands."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from engines.bench.table import MISSING, NAME_WIDTH
from qdq.base.screen import WIDTH

COLUMNS = ("p50", "p90", "p95", "p99", "mean")


def render_gpu_table(report: Mapping[str, Any]) -> str:
    """A report of `bench_plans` as text: latencies in ms, sequences per second, speedups.

    ``x FP32`` and ``x FP16`` are medians of per-round ratios over those contestants (> 1: faster). Below: what the GPU
    did meanwhile, and the trtexec commands.
    """
    lines = [_row("contestant (ms)", [*COLUMNS, "seq/s", "x FP32", "x FP16"])]
    lines += [_line(name, entry) for name, entry in report["contestants"].items()]
    lines += [textwrap.fill(note, WIDTH) for note in _notes(report)]
    for name, commands in report["gpu"]["trtexec"].items():
        lines += [f"{name}, TensorRT {major}.x: {line}" for major, line in commands.items()]
    return "\n".join(lines) + "\n"


def _line(name: str, entry: Mapping[str, Any]) -> str:
    cells = [_number(entry["latency_ms"][column]) for column in COLUMNS] + [f"{entry['sequences_per_s']:.0f}"]
    for suffix in ("-fp32", "-fp16"):
        ratio = next((value for base, value in entry["speedup"].items() if base.endswith(suffix)), None)
        cells.append(MISSING if ratio is None else f"{ratio:.2f}")
    return _row(name, cells)


def _row(name: str, cells: list[str]) -> str:
    return f"{name[:NAME_WIDTH]:<{NAME_WIDTH}}" + "".join(f"{cell:>{7 if i else 8}}" for i, cell in enumerate(cells))


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.{3 if value < 10 else 2 if value < 100 else 1}f}"


def _notes(report: Mapping[str, Any]) -> Iterator[str]:
    work, gpu = report["workload"], report["gpu"]
    shape = f"batch {report['batch']} x sequence {report['sequence']}, {work['padding_share']:.0%} padding"
    options = gpu["settings"]
    yield (
        f"{shape}; {gpu['device']}, {gpu['clock']}, CUDA graph {_on(options['cuda_graph'])}, spin wait "
        f"{_on(options['spin_wait'])}, transfers {_on(options['transfers'])}, {options['streams']} stream(s), "
        f"{options['in_flight']} launch(es) in flight"
    )
    yield from _nvml_notes(gpu["nvml"])


def _nvml_notes(nvml: Mapping[str, Any]) -> Iterator[str]:
    if nvml["reason"]:
        yield f"no clocks, power or temperature: {nvml['reason']}"
        return
    limits = nvml["limits"]
    for name, seen in nvml["during"].items():
        held = f"; held back by {', '.join(seen['reasons'])}" if seen["reasons"] else ""
        yield (
            f"{name}: SM clock {_span(seen['sm_clock_mhz'])} of {_known(limits['max_sm_clock_mhz'])} MHz, power "
            f"{_span(seen['power_w'])} of {_known(limits['power_limit_w'])} W, "
            f"{_span(seen['temperature_c'])} °C{held}"
        )
    if nvml["throttled"]:
        yield f"THROTTLED ({', '.join(nvml['throttled'])}): compare only with runs of the same clocks"


def _span(values: Mapping[str, float] | None) -> str:
    return "?" if values is None else f"{values['min']:.0f} to {values['max']:.0f}"


def _known(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"


def _on(value: bool) -> str:
    return "on" if value else "off"
