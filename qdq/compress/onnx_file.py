"""PTQ of an ONNX file inside `compress()`: input_infer_model_path in, quantized graphs out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch
from google.protobuf.message import DecodeError
from onnx import helper
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.utils.generic import ModelOutput

from export.names import IR_VERSION
from export.passes.narrow_inputs import narrow_inputs
from export.quantize_file import find_linears, find_products, name_nodes, quantize_graph
from export.to_onnx import save_proto
from export.unoptimized import open_unoptimized, run
from qdq.base.artifacts import atomic_path
from qdq.base.screen import Screen
from qdq.compress.arguments import CompressionArguments
from qdq.compress.datasets import IGNORED_LABEL, Batches
from qdq.compress.evaluators import EVALUATORS, SPANS, CustomEvaluate, Evaluator, answer_evaluator, evaluator_on
from qdq.compress.file_ranges import FilePoints, feeds_of, observe, quantization
from qdq.compress.method import CompressedModel, Evaluate
from qdq.compress.ptq import algorithms, treatments
from qdq.errors import ConfigError, QdqError
from qdq.inject.spec import named_spec

FLOATING, ROWS = "model.fp32.onnx", "evaluation.safetensors"  # what deployment compares, times and scores with
LABELLED = "label:"  # begins the names of label columns in ROWS
MOST_ROWS = 512
MODULE_ONLY = ("value_centering", "equalization", "smoothing", "residual_scaling")  # change layers together


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


def find_file(typed: str) -> Path:
    """The ONNX file of input_infer_model_path: its path, or as Paddle's documents have it ``directory/prefix``.

    Raises ConfigError when there is none, with the way from a Paddle model to one.
    """
    path = Path(typed).expanduser()
    for file in (path, path.with_name(f"{path.name}.onnx"), path / "model.onnx"):
        if file.is_file() and file.suffix != ".pdmodel":
            return file
    paddle = path.with_suffix("") if path.suffix == ".pdmodel" else path
    model = paddle.with_name(f"{paddle.name}.pdmodel")
    if model.is_file():
        raise ConfigError(f"input_infer_model_path: {conversion(model, f'{paddle.name}.pdiparams')}")
    raise ConfigError(f"input_infer_model_path: there is no {path} and no {path}.onnx; check the path")


def conversion(model: Path, weights: str) -> str:
    """A sentence that a Paddle model cannot be read, with the command that makes an ONNX file of it."""
    return (
        f"{model} is a Paddle model; convert it first: paddle2onnx --model_dir {model.parent} --model_filename "
        f"{model.name} --params_filename {weights} --save_file {model.with_suffix('.onnx')}"
    )


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
    if {"start_prob", "end_prob"} <= set(graph.outputs):
        return SPANS
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


def compress_file(
    args: CompressionArguments, batches: Batches, custom: CustomEvaluate | None, tokenizer: Any, screen: Screen
) -> tuple[float, list[CompressedModel], OnnxModule, Evaluate]:
    """Quantize the file with every combination of the PTQ lists and write each as ``<output_dir>/<name>/model.onnx``.

    Beside them lie the file itself and the evaluation rows, which deployment needs. `tokenizer` reads the answers of
    question answering. Returns the metric of the file as it is, the quantized graphs as modules, the file's own module,
    and the evaluator. Raises ConfigError for what cannot be done with a file.
    """
    # Check what is asked for, and the file.
    check_arguments(args, screen)
    path, output = find_file(str(args.input_infer_model_path)), Path(str(args.output_dir))
    model = read_graph(path)
    name_nodes(model)
    spec = named_spec(args.placement)
    try:
        points = FilePoints(find_linears(model), find_products(model), spec.matmul)
    except QdqError as error:
        raise ConfigError(f"input_infer_model_path: {path}: {error}") from error
    screen.row("file", f"{len(points.linears)} linears, {len(points.products)} attention products; {points.left_out}")
    # Score the file as it is, and keep what deployment compares with.
    module = OnnxModule(model)
    evaluate = evaluator_on(batches, custom, lambda: builtin_evaluator(module, batches.dataset[0], tokenizer))
    baseline = evaluate(module)
    save_proto(with_int32_inputs(model) if args.input_dtype == "int32" else model, output / FLOATING)
    _save_rows(batches, module.inputs, output / ROWS)
    # One quantized graph per combination; a pass over the data serves all algorithms.
    models = []
    found = algorithms(args, "ptq")
    treated = treatments(args, found)
    for size, count in itertools.product(args.batch_size_list, args.batch_counts):
        seen = observe(model, points, itertools.islice(batches.of_size(size), count), treated, args.moving_rate)
        for label, algorithm in found.items():
            made = quantize_graph(model, quantization(model, points, seen, algorithm, args))
            name = f"{label}-{size}x{'all' if count is None else count}"
            if args.input_dtype == "int32":
                made = with_int32_inputs(made)
            save_proto(made, output / name / "model.onnx")
            quantized = OnnxModule(made)
            notes = {"algorithm": label, "batch_size": size, "batch_num": count, "treatments": treated.asked}
            notes |= {"linears": len(points.linears), "multiplications": points.as_json()}
            models.append(CompressedModel(name, quantized, notes=notes, metric=evaluate(quantized)))
    return baseline, models, module, evaluate


def check_arguments(args: CompressionArguments, screen: Screen) -> None:
    """Raise ConfigError for what needs a module; say what of the strategy is left out."""
    chosen = args.chosen_strategy
    if "ptq" not in chosen:
        raise ConfigError(
            f"input_infer_model_path: an ONNX file can be quantized, not trained or pruned; strategy is "
            f"{args.strategy}, give ptq"
        )
    if chosen.name != "ptq":
        screen.line(f"strategy {chosen.name}: an ONNX file can be quantized only, so of it ptq is done")
    if named_spec(args.placement).dynamic:
        raise ConfigError("placement: dynamic ranges need a module, not input_infer_model_path; give another")
    if asked := [name for name in MODULE_ONLY if getattr(args, name)]:
        raise ConfigError(f"{asked[0]}: needs a module, not input_infer_model_path; leave it out, or give model")


def _save_rows(batches: Batches, inputs: tuple[str, ...], path: Path) -> None:
    """Write the first rows of the evaluation data, the graph's inputs and the labels, padded to one length."""
    rows: dict[str, list[Tensor]] = {}
    count = 0
    for batch in batches:
        labels = batches.labels.columns(batch)
        for name in (*inputs, *labels):
            rows.setdefault(LABELLED + name if name in labels else name, []).extend(batch[name].cpu())
        count += len(batch[inputs[0]])
        if count >= MOST_ROWS:
            break
    classes = [name for name in rows if name.startswith(LABELLED)]  # a pair is of starts and ends, not of classes
    ignored = IGNORED_LABEL if len(classes) == 1 else 0
    stored = {
        name: pad_sequence(parts[:MOST_ROWS], True, ignored if name in classes else 0)
        if parts[0].dim()
        else torch.stack(parts[:MOST_ROWS])
        for name, parts in rows.items()
    }
    with atomic_path(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in stored.items()}, str(partial))
