"""PTQ of an ONNX file inside `compress()`: input_infer_model_path in, quantized graphs out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch
from google.protobuf.message import DecodeError
from onnx import helper
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from export.names import IR_VERSION
from export.passes.narrow_inputs import narrow_inputs
from export.quantize_file import FileLinear, find_linears, quantize_linears, weight_of
from export.to_onnx import save_proto
from export.unoptimized import open_unoptimized, run
from qdq.calibrate.algorithms import Algorithm
from qdq.calibrate.calibrators import HistogramCalibrator, amax_of
from qdq.compress.arguments import CompressionArguments
from qdq.compress.datasets import Batches
from qdq.compress.evaluators import EVALUATORS, CustomEvaluate, Evaluator, answer_evaluator, evaluator_on
from qdq.compress.method import CompressedModel
from qdq.compress.ptq import algorithms, treatments
from qdq.errors import ConfigError, DataError, QdqError
from qdq.inject.quantizer import weight_amax
from qdq.inject.scale import scale_of


class OnnxModule(nn.Module):
    """An ONNX graph as a module, so that evaluators can call it; computed in FP32 without graph optimization."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.inputs = tuple(value.name for value in model.graph.input)
        self.outputs = tuple(value.name for value in model.graph.output)
        element_types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
        self._types = {name: helper.tensor_dtype_to_np_dtype(kind) for name, kind in element_types.items()}
        self._session = open_unoptimized(model.SerializeToString(), Path())

    def forward(self, **inputs: Tensor) -> ModelOutput:
        """The graph's inputs by name, other keys are ignored; its outputs by name, as items and attributes."""
        feeds = {name: array.astype(self._types[name]) for name, array in feeds_of(inputs, self.inputs).items()}
        results = run(self._session, feeds, list(self.outputs))
        tensors = (torch.from_numpy(np.array(value)) for value in results)
        return ModelOutput(zip(self.outputs, tensors, strict=True))  # type: ignore[no-untyped-call]


def feeds_of(batch: Mapping[str, Tensor], inputs: Iterable[str]) -> dict[str, Any]:
    """The graph's inputs out of a batch. Raises DataError naming one the data lacks."""
    missing = [name for name in inputs if name not in batch]
    if missing:
        raise DataError(
            f"eval_dataset: has no column '{missing[0]}', which the graph needs (it has {', '.join(batch)})"
        )
    return {name: batch[name].numpy() for name in inputs}


def read_graph(path: Path) -> onnx.ModelProto:
    """The ONNX file. Raises ConfigError when it is none."""
    try:
        return onnx.load(path)
    except (OSError, DecodeError) as error:
        raise ConfigError(f"input_infer_model_path: {path} cannot be read as ONNX ({error}); check the path") from error


def with_int32_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with INT32 graph inputs where they were INT64."""
    graph = gs.import_onnx(model)
    narrow_inputs(graph)
    made: onnx.ModelProto = gs.export_onnx(graph.cleanup().toposort())
    made.ir_version = min(model.ir_version, IR_VERSION)
    return made


def builtin_evaluator(graph: OnnxModule, sample: Mapping[str, Any], tokenizer: Any) -> tuple[str, Evaluator]:
    """(metric name, evaluator) that fits the graph's outputs and the data. Raises ConfigError when none does."""
    if {"start_logits", "end_logits"} <= set(graph.outputs):
        return "SQuAD F1", answer_evaluator(tokenizer)
    if graph.outputs == ("logits",) and "labels" in sample:  # a graph has no config: its labels tell the task
        labels = np.asarray(sample["labels"])
        if labels.ndim == 0:
            return EVALUATORS["scores" if labels.dtype.kind == "f" else "classes"]
        if labels.ndim == 1 and labels.dtype.kind == "f":
            return EVALUATORS["multi-label"]
    raise ConfigError(
        f"input_infer_model_path: no built-in evaluator fits outputs {', '.join(graph.outputs)} and this data; pass "
        "custom_evaluate to compress()"
    )


def observe(
    model: onnx.ModelProto, tensors: list[str], wanted: Mapping[str, Algorithm], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, dict[str, float]]:
    """Algorithm -> tensor -> amax, from one pass over `batches`; padded positions do not count."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    inputs = [value.name for value in probe.graph.input]
    present = {value.name for value in probe.graph.output} | set(inputs)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in present)
    session = open_unoptimized(probe.SerializeToString(), Path())
    found = {tensor: HistogramCalibrator(Algorithm("avg")) for tensor in tensors}  # keeps what every algorithm needs
    for batch in batches:
        mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
        for tensor, value in zip(tensors, run(session, feeds_of(batch, inputs), tensors), strict=True):
            x = torch.from_numpy(np.array(value))
            counts = mask[:, :, None] if mask is not None and x.dim() == 3 and x.shape[:2] == mask.shape else None
            found[tensor].update(x, counts)
    return {name: amax_of(found, algorithm) for name, algorithm in wanted.items()}


def quantized_graph(
    model: onnx.ModelProto, linears: list[FileLinear], amax: Mapping[str, float], per_channel: bool
) -> onnx.ModelProto:
    """`model` with its linears quantized for these activation ranges."""
    scales = {tensor: float(scale_of(torch.tensor(value), 8)) for tensor, value in amax.items()}
    weights = {}
    for linear in linears:
        weight = torch.from_numpy(weight_of(model, linear).copy())
        weights[linear.weight] = scale_of(weight_amax(weight, linear.axis if per_channel else None), 8).numpy()
    return quantize_linears(model, linears, scales, weights)


def compress_file(
    args: CompressionArguments, batches: Batches, custom: CustomEvaluate | None, tokenizer: Any = None
) -> tuple[float, list[CompressedModel]]:
    """Quantize the file with every combination of the PTQ lists and write each as ``<output_dir>/<name>/model.onnx``.

    `tokenizer` reads the answers of question answering. Returns the metric of the file as it is, and the quantized
    graphs as modules. Raises ConfigError when the strategy is not ptq or the file cannot be used.
    """
    # Check what is asked for, and the file.
    if args.chosen_strategy.name != "ptq":
        raise ConfigError(
            f"input_infer_model_path: an ONNX file can be quantized, not trained or pruned; strategy is "
            f"{args.strategy}, give ptq"
        )
    if asked := treatments(args).asked:
        raise ConfigError(f"{asked[0]}: needs a module, not input_infer_model_path; leave it out, or give model")
    path = Path(str(args.input_infer_model_path))
    model = read_graph(path)
    try:
        linears = find_linears(model)
    except QdqError as error:
        raise ConfigError(f"input_infer_model_path: {path}: {error}") from error
    # Score the file as it is.
    module = OnnxModule(model)
    evaluate = evaluator_on(batches, custom, lambda: builtin_evaluator(module, batches.dataset[0], tokenizer))
    baseline = evaluate(module)
    tensors = list(dict.fromkeys(linear.activation for linear in linears))
    # One quantized graph per combination; a pass over the data serves all algorithms.
    models = []
    for size, count in itertools.product(args.batch_size_list, args.batch_counts):
        data = itertools.islice(batches.of_size(size), count)
        for algorithm, amax in observe(model, tensors, algorithms(args), data).items():
            made = quantized_graph(model, linears, amax, args.weight_quantize_type == "channel_wise_abs_max")
            name = f"{algorithm}-{size}x{'all' if count is None else count}"
            if args.input_dtype == "int32":
                made = with_int32_inputs(made)
            save_proto(made, Path(str(args.output_dir)) / name / "model.onnx")
            quantized = OnnxModule(made)
            notes = {"algorithm": algorithm, "batch_size": size, "batch_num": count, "linears": len(linears)}
            models.append(CompressedModel(name, quantized, notes=notes, metric=evaluate(quantized)))
    return baseline, models
