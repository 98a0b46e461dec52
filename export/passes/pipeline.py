"""The passes of every target in their order, each with the reason it is there: lowering on one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from export.passes.base import Pass
from export.passes.compact_weights import compact_weights
from export.passes.dynamic_inputs import dynamic_inputs
from export.passes.element_types import Body, check_strong_types
from export.passes.fold_types import fold_types
from export.passes.gather_codes import float_tables, gather_codes
from export.passes.gather_tokens import gather_tokens
from export.passes.half_body import half_body
from export.passes.merge_projections import merge_projections
from export.passes.narrow_inputs import narrow_inputs
from export.passes.needed_rows import needed_rows
from export.passes.pack_tokens import pack_tokens
from export.passes.quantized_products import quantized_products
from export.passes.recode_unsigned import recode_unsigned
from export.passes.share_factors import share_factors
from export.passes.share_quantizers import share_quantizers
from export.passes.texts_in_rows import texts_in_rows
from export.passes.weight_ratios import weight_ratios
from export.products import Product
from qdq.base.config import choice

FACTORS = Pass(
    "share_factors",
    "linears that share a smoothed input each multiply it by the same factor; once is enough. Before share_quantizers, "
    "which then sees one tensor",
    share_factors,
)

SHARE = Pass(
    "share_quantizers",
    "one QuantizeLinear per tensor and scale: quantizing the same values twice costs a pass over memory each time, "
    "and TensorRT wants q, k and v to read one Q",
    share_quantizers,
)

CODES = Pass(
    "gather_codes",
    "INT8 embedding tables: dequantizing the vocabulary before each look-up would cost ONNX Runtime a pass over the "
    "whole table; behind it, only the rows of the batch are touched",
    gather_codes,
)

COMPACT = Pass(
    "compact_weights",
    "embedding tables are half of a small encoder's bytes and stay float in the canonical graph; a code per value and "
    "a scale per row hold them in a quarter of the file and of the memory. Before gather_codes, which keeps it so at "
    "run time. Not for ONNX Runtime, whose kernels have no float product with INT8 weights",
    compact_weights,
)

TABLES = Pass(
    "float_tables",
    "TensorRT dequantizes constants for multiplications only; a table it would expand at run time is stored as the "
    "float values it stands for. Before half_body, which makes them FP16",
    float_tables,
)

DYNAMIC = Pass(
    "dynamic_inputs",
    "dynamic quantization: weights are INT8 and inputs get a scale from each tensor at run time, which needs no "
    "calibration. OpenVINO does this itself, from the same graph",
    dynamic_inputs,
)

TYPES = Pass(
    "fold_types",
    "the two token-type rows: the first is added to the position table once instead of to every token, and a second "
    "one is its difference times the id, which OpenVINO fuses into the sum; a look-up would write [B, S, H] first. "
    "Before compact_weights, which then has one table less to round",
    fold_types,
)

ROWS = Pass(
    "needed_rows",
    "a pooler reads one row of the last block, whose other rows need keys and values only: that saves five sixths of "
    "one block's multiplications. After share_quantizers, so that the row gets one quantizer too",
    needed_rows,
)

BLOCK_ROWS = Pass(
    "needed_rows",
    "a pooler reads one row of the last block: behind its attention the others need not be computed. In front of it "
    "they are, because a batch without padding has no row per text there",
    partial(needed_rows, attention=False),
)

TEXTS_IN_ROWS = Pass(
    "texts_in_rows",
    "several texts share a row, so that linears and attention work on real tokens. It adds no kernel: the compiler "
    "compares the texts' numbers inside its fused attention. After all that looks for patterns; before narrow_inputs, "
    "which sees its inputs",
    texts_in_rows,
)

GATHER_TOKENS = Pass(
    "gather_tokens",
    "linears work on real tokens, one behind the other, and attention on [batch, sequence] as before, for callers "
    "whose batch must stay so. In the place of texts_in_rows",
    gather_tokens,
)

PACK = Pass(
    "pack_tokens",
    "texts fill a part of their batch: everything but attention then works on its real tokens alone. After all that "
    "looks for tables, positions and rows, which it changes the indices of, and before the coding of activations",
    pack_tokens,
)

LINEARS_UNSIGNED = Pass(
    "recode_linears_unsigned",
    "x86's INT8 instruction multiplies u8 by s8; with s8 activations OpenVINO's kernels shift every operand first, "
    "which costs a tenth of a linear. Attention operands stay s8: with u8 ones its fused attention falls back to float",
    partial(recode_unsigned, linears_only=True),
)

RECODE = Pass(
    "recode_unsigned",
    "ONNX Runtime on x86 fuses MatMul only with unsigned activations (u8 with zero-point 128 codes exactly the same "
    "values as s8 with 0); with s8 it leaves linears whose Q feeds several DQs in float. Last, so that the passes "
    "before it see the canonical coding",
    recode_unsigned,
)

NARROW = Pass(
    "narrow_inputs",
    "TensorRT takes INT32 token ids and would copy twice the bytes for INT64 ones; a CPU engine takes them when its "
    "callers have such. After half_body, which thereby sees the canonical graph, whose tensors were measured",
    narrow_inputs,
)

MERGE = Pass(
    "merge_projections",
    "query, key and value in one product: the compiler merges the three itself, but then splits their result into "
    "heads in three kernels, and [0,0,3,heads,d] in one. After half_body, whose ranges are of the canonical tensors, "
    "and after needed_rows, which leaves the last block's query a row of its own",
    merge_projections,
)

RATIOS = Pass(
    "weight_ratios",
    "with a scale per channel TensorRT's INT8 products write their raw sums, some of which FP16 cannot hold; with one "
    "scale per tensor it is an FP32 number of the product itself. After merge_projections, so that what was merged has "
    "one scale, and half_body, whose types the ratios take",
    weight_ratios,
)

PROVE = Pass(
    "strong_types",
    "proves, changing nothing, that no operator mixes types: TensorRT would refuse the graph. Last, because it is "
    "about the result",
    check_strong_types,
)


Form = Literal["padded", "rows", "gather"]
FORMS: Mapping[Form, tuple[Pass, ...]] = {"padded": (), "rows": (TEXTS_IN_ROWS,), "gather": (GATHER_TOKENS,)}


@dataclass(frozen=True)
class LowerOptions:
    """Properties of a lowered graph beyond its target; on CPU targets the engine's settings decide the float type."""

    body: Body = "fp16"  # type of everything that is not quantized
    # Largest |x| per tensor on real data, from `export.ranges.measure_ranges`; None proves no tensor to fit.
    ranges: Mapping[str, float] | None = None
    # The linears' products on real data, from `export.products.measure_products`; None leaves products float.
    products: Mapping[str, Product] | None = None
    feed_forward: bool = False  # codes for the products of the feed-forward part, too, and not only for attention's
    dynamic: bool = False  # quantize the inputs of linears with INT8 weights at run time (ONNX Runtime)
    narrow: bool = False  # INT32 inputs for a CPU target, too
    form: Form = "padded"  # of the batch in TensorRT's graph
    pack: bool = True  # a CPU target works on the real tokens of a batch only


def passes_for(target: str, options: LowerOptions | None = None) -> tuple[Pass, ...]:
    """The ordered passes of a target. Raises ConfigError naming the nearest target."""
    options = options or LowerOptions()
    dynamic = (DYNAMIC,) if options.dynamic else ()
    narrow = (NARROW,) if options.narrow else ()
    pack = (PACK,) if options.pack else ()
    pipelines: Mapping[str, tuple[Pass, ...]] = {
        "openvino": (FACTORS, SHARE, ROWS, TYPES, COMPACT, CODES, *pack, LINEARS_UNSIGNED, *narrow),
        "onnxruntime": (FACTORS, SHARE, ROWS, CODES, *pack, *dynamic, RECODE, *narrow),
        "tensorrt": (
            *(FACTORS, SHARE, ROWS if options.form == "padded" else BLOCK_ROWS, TABLES, _half(options), MERGE, RATIOS),
            *(_products(options), *FORMS[options.form], NARROW, PROVE),
        ),
    }
    pipelines = {**pipelines, "tensorrt-rtx": pipelines["tensorrt"]}  # the same parser and graph compiler
    return pipelines[choice(target, pipelines, "target")]


def float_passes(options: LowerOptions) -> tuple[Pass, ...]:
    """The passes from FP32 to a graph whose types alone decide what runs: TensorRT 11 has no precision flags.

    They are all that the unquantized graph needs which TensorRT's INT8 one is compared with.
    """
    return ROWS, _half(options), NARROW, PROVE


def _half(options: LowerOptions) -> Pass:
    return Pass(
        "half_body",
        "a strongly typed engine runs in FP32 what is written in FP32, and does not fuse a matmul with a DQ of another "
        "type. After share_quantizers, so that a quantizer is typed once",
        partial(half_body, body=options.body, ranges=options.ranges),
    )


def _products(options: LowerOptions) -> Pass:
    return Pass(
        "quantized_products",
        "a product that is quantized at once leaves its kernel as INT8, and what follows reads that: half the bytes of "
        "query, key, value and context. After weight_ratios, which gives it one scale",
        partial(quantized_products, products=options.products, feed_forward=options.feed_forward),
    )
