"""Documents that the rules come from. Every rule names one of these; none is from hearsay."""

from __future__ import annotations

from export.lint.findings import Source

_DOCS = "https://docs.nvidia.com/deeplearning/tensorrt/latest"
_REPOSITORY = "https://github.com/NVIDIA/TensorRT"
_ISSUE = f"{_REPOSITORY}/issues"
_PARSER = "https://github.com/onnx/onnx-tensorrt"

HEADER = Source("TensorRT 11.1 include/NvInfer.h, IQuantizeLayer and IDequantizeLayer")
CONSTANT_SCALE = Source(
    "TensorRT 10.0 to 10.12 include/NvInfer.h, IQuantizeLayer: the scale is a build-time constant (no longer in 11.x)",
    f"{_REPOSITORY}/blob/release/10.12/include/NvInfer.h",
)
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
SUPPORT = Source(
    "TensorRT documentation, Support Matrix, hardware and precision", f"{_DOCS}/getting-started/support-matrix.html"
)
COMPILED = Source(
    "TensorRT for RTX 1.7.1: its parser and graph compiler, run on a machine without a GPU (make prove)",
    "https://pypi.org/project/tensorrt-rtx-cu12-bindings/1.7.1.116/",
)
