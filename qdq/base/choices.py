"""Values of options, spelled once for the command line and for the code that acts on them; no heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BODIES = ("fp16", "bf16", "fp32")  # float type outside the INT8 islands of a TensorRT graph
BATCH_FORMS = ("padded", "rows", "gather")  # of a TensorRT graph's batch
PRODUCT_CODES = ("attention", "all", "none")  # linears of a TensorRT graph that write INT8
# Folders of a target: Triton's repository, of texts where the model can take them, and one of token ids beside it
REPOSITORY, RAW_REPOSITORY = "model_repository", "raw_repository"
INPUT_TYPES = ("int64", "int32")  # of a CPU engine's token ids
PACKINGS = ("auto", "on", "off")  # of a CPU graph: work on the real tokens of a batch only
PRECISION_HINTS = ("f32", "bf16", "f16")  # OpenVINO's, for layers that are not INT8
CAPABILITIES = (75, 80, 86, 89, 120, 121)  # compute capabilities x 10 of NVIDIA's compiler, Turing to Blackwell
HARDWARE = ("none", "ampere_plus", "same_compute_capability")  # TensorRT's hardware compatibility levels

# Named placement -> the fields of QuantSpec it sets; everything else keeps QuantSpec's default.
# The ft and trt rows are FasterTransformer's and demoBERT's --quant_mode presets on QDQBERT's twenty points. Their
# extra switches (layernorm_input, softmax_input, aftergemm, final_input) name tensors that are not among the twenty,
# so ft3, which only adds softmax_input and layernorm_input to ft2, quantizes the same points as ft2 here.
PLACEMENTS: Mapping[str, Mapping[str, Any]] = {
    "auto": {},  # every point but those listed in `declined`
    "linear": {"matmul": (), "residual": ()},
    "linear+qk": {"matmul": ("q", "k"), "residual": ()},
    "fused": {"residual": ("residual",), "shared_skip": True},  # what TensorRT's compiler reads as INT8
    "qdqbert": {},
    "dynamic": {"matmul": (), "residual": (), "dynamic": True},
    "ft1": {"residual": ()},
    "ft2": {"residual": ("residual",), "per_channel_weights": False, "fuse_qkv": True},
    "ft3": {"residual": ("residual",), "per_channel_weights": False, "fuse_qkv": True},
    "trt": {"per_channel_weights": False, "fuse_qkv": True},
}

# Readings of a text classifier's logits other than one class per text. Outputs do not tell them, so they have names of
# their own wherever a task does: any number of classes at once, and numbers.
MULTI_LABEL, REGRESSION = "multi-label-classification", "regression"
INFORMATION_EXTRACTION = "information-extraction"  # the task of UIE: start and end probabilities of every token
MULTI_LABEL_TYPE = "multi_label_classification"  # config.json's problem_type
THRESHOLD_KEYS = ("threshold", "thresholds")  # of config.json: above which probability its classes count
