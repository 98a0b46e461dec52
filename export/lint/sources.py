"""Documents that the rules come from. Every rule names one of these; none is from hearsay."""

from __future__ import annotations

from export.lint.findings import Source

_DOCS = "https://docs.nvidia.com/deeplearning/tensorrt/latest"
_ISSUE = "https://github.com/NVIDIA/TensorRT/issues"
_PARSER = "https://github.com/onnx/onnx-tensorrt"

HEADER = Source("TensorRT 11.1 include/NvInfer.h, IQuantizeLayer and IDequantizeLayer")
PARSER = Source("onnx-tensorrt 10.1 onnxOpImporters.cpp, QuantDequantLinearHelper", _PARSER)
OPERATORS = Source("onnx-tensorrt docs/operators.md, operator support matrix", _PARSER)
CODES_ONLY = Source("onnx-tensorrt 10.1 docs/operators.md: INT8 exists only between a Q and its DQ", _PARSER)
OPSETS = Source(
    "TensorRT 11 documentation, ONNX Opset Guide; onnx-tensorrt docs/operators.md of 10.0 and 10.15 for 10.x",
    f"{_DOCS}/reference/onnx-opset-guide.html",
)
CODES = Source(
    "onnx-tensorrt 10.1 QuantDequantLinearHelper (UINT8); onnx-tensorrt issue 850 (INT32 bias)", f"{_PARSER}/issues/850"
)
AXIS = Source("NVIDIA/TensorRT issue 1604: axis of a weight's Q/DQ pair in front of a MatMul", f"{_ISSUE}/1604")
PLACEMENT = Source("TensorRT developer guide, Q/DQ Layer-Placement Recommendations, item 1", _DOCS)
PROPAGATION = Source("TensorRT developer guide, Q/DQ propagation: Q moves backward, DQ forward, to fuse", _DOCS)
REFIT = Source("TensorRT developer guide, explicit quantization: refit disables rewrites that need equal scales", _DOCS)
TYPED = Source("TensorRT developer guide, strongly typed networks: every float op runs in its ONNX type", _DOCS)
FUSIONS = Source("TensorRT developer guide, Layer Fusion Catalog (LayerNormalization and GELU patterns)", _DOCS)
ATTENTION = Source(
    "TensorRT developer guide, multi-head attention fusion, as quoted in NVIDIA/TensorRT issues 2981 and 4167",
    f"{_ISSUE}/4167",
)
SCALE_FIRST = Source(
    "TensorRT 11 documentation, Fused Attention", f"{_DOCS}/inference-library/transformers-fused-attention.html"
)
RESIDUAL = Source(
    "TensorRT developer guide, Q/DQ Layer-Placement Recommendations, item 4; NVIDIA/TensorRT issue 3243",
    f"{_ISSUE}/3243",
)
MODELOPT_CASTS = Source(
    "NVIDIA Model Optimizer, ONNX export: a Cast between Q/DQ and MatMul blocks the fusion",
    "https://github.com/NVIDIA/Model-Optimizer",
)
MODELOPT_SIZE = Source(
    "NVIDIA Model Optimizer, ONNX quantization: MatMul and Gemm with K or N below 16 are excluded",
    "https://github.com/NVIDIA/Model-Optimizer",
)
