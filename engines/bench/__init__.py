"""Latency of an INT8 engine and its FP32 rivals, measured interleaved in one run.

Read in this order: `workload` (what is fed), `interleave` (what is timed when), `report` (benchmark.json),
`table` (the screen), `machine` (what it ran on; call it as ``engines.bench.machine.machine()``).
"""

from engines.bench.interleave import CROPPED, BenchSettings, Contestant, both_forms
from engines.bench.report import bench, best_form, best_speedup, is_base
from engines.bench.streams import InFlight
from engines.bench.table import render_table

__all__ = [
    "CROPPED",
    "BenchSettings",
    "Contestant",
    "InFlight",
    "bench",
    "best_form",
    "best_speedup",
    "both_forms",
    "is_base",
    "render_table",
]
