"""Latency of a lowered graph on a GPU that is not there: an analytical model fitted on published rows.

Read in this order: `devices` (datasheets), `workload` and `kernels` (what runs), `model` (how long a kernel takes),
`published` and `fit` (coefficients), `validate` (errors on rows never fitted), `report` and `text` (what a user sees).
"""

from engines.estimate.devices import DEVICES, Device, find_device
from engines.estimate.report import EstimateReport, estimate
from engines.estimate.text import render_estimate
from engines.estimate.workload import ENCODERS, Encoder, Layer, LayerRecord, encoder_layers

__all__ = [
    "DEVICES",
    "ENCODERS",
    "Device",
    "Encoder",
    "EstimateReport",
    "Layer",
    "LayerRecord",
    "encoder_layers",
    "estimate",
    "find_device",
    "render_estimate",
]
