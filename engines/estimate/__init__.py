"""Latency of a lowered graph on a GPU that is not there: an analytical model fitted on published rows.

Read in this order: `devices` (datasheets), `workload`, `compiled` and `kernels` (what runs: as the compiler builds it,
or predicted), `model` (how long kernels take), `published` (the rows it is fitted on and those it is judged by;
qdq/studies/estimate does both), `report` and `text` (what a user sees).
"""

from engines.estimate.compiled import compiled_kernels
from engines.estimate.devices import find_device
from engines.estimate.report import estimate
from engines.estimate.text import render_estimate

__all__ = ["compiled_kernels", "estimate", "find_device", "render_estimate"]
