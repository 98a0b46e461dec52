"""Latency of a lowered graph on a GPU that is not there: an analytical model fitted on published rows.

Read in this order: `devices` (datasheets), `workload` and `kernels` (what runs), `model` (how long a kernel takes),
`published` (the rows it is fitted on and those it is judged by; qdq/studies does both), `report` and `text` (what a
user sees).
"""

from engines.estimate.devices import find_device
from engines.estimate.report import estimate
from engines.estimate.text import render_estimate

__all__ = ["estimate", "find_device", "render_estimate"]
