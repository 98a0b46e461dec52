"""Profile of a CPU engine: per-layer times from the engine's own counters, grouped and related to peak.

Read in this order: `layers` (what is counted), `openvino` and `onnxruntime` (where it comes from), `peak` (what this
machine could do), `report` (profile.json), `table` and `picture` (what a user looks at).
"""
