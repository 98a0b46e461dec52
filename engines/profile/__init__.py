"""Where the time of a CPU engine goes: per-layer times from the engine's own counters, grouped and related to peak.

Read in this order: `layers` (what is counted), `openvino` and `onnxruntime` (where it comes from), `peak` (what this
machine could do), `report` (profile.json), `table` and `picture` (what a user looks at).
"""

from engines.profile.layers import GROUPS, Layer, Profiled, Profiler
from engines.profile.onnxruntime import OnnxRuntimeProfiler
from engines.profile.openvino import OpenVINOProfiler
from engines.profile.peak import Peak, measure_peak
from engines.profile.report import layer_report, profile_report
from engines.profile.table import render_profile

__all__ = [
    "GROUPS",
    "Layer",
    "OnnxRuntimeProfiler",
    "OpenVINOProfiler",
    "Peak",
    "Profiled",
    "Profiler",
    "layer_report",
    "measure_peak",
    "profile_report",
    "render_profile",
]
