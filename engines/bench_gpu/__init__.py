"""Latency on an NVIDIA GPU: TensorRT plans side by side, in the schema of benchmark.json.

Read in this order: `settings` and `timing` (what is timed when; runs on any machine), `device` (CUDA behind
one interface), `plan` and `plans` (TensorRT), `nvml` (clocks, power, temperature, throttling), `report`, `text` (the
screen), `trtexec` (the same measurement by NVIDIA's own tool).
"""

from engines.bench_gpu.plans import bench_plans, require_gpu
from engines.bench_gpu.settings import GpuBenchSettings
from engines.bench_gpu.text import render_gpu_table

__all__ = ["GpuBenchSettings", "bench_plans", "render_gpu_table", "require_gpu"]
