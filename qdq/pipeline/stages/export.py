"""Stage 4, export: the canonical QDQ graph, and the same model in FP32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.screen import Stage
from qdq.pipeline.run import CANONICAL, CHOICES, FLOAT, Run, prepare_torch
from qdq.pipeline.workdir import graph_files

if TYPE_CHECKING:
    from qdq.load.model import LoadedModel


def export(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 4: the canonical QDQ graph, and the same model in FP32 for comparison."""
    from export.check import check_file
    from export.to_onnx import FloatGraph, export_onnx
    from qdq.calibrate.checkpoint import load_checkpoint
    from qdq.inject import inject as inject_points
    from qdq.inject.quantizer import folded
    from qdq.inject.spec import QuantSpec
    from qdq.pipeline.stages.parity import write_parity

    prepare_torch(run.options.threads)
    loaded, _, placement = load_checkpoint(run.checkpoint)
    example = export_example(loaded)
    # The FP32 graph is the same one with nothing placed, so the comparison differs in quantization only.
    floating = run.reference
    del run.reference  # it carries our attention from here on; whoever needs the plain model loads it again
    inject_points(floating.model, QuantSpec(placement="linear", linear=False, matmul=(), residual=()))
    stage.progress(0, 2)
    with folded(loaded.model), folded(floating.model):
        parameters = {name: tensor.numpy() for name, tensor in floating.module().state_dict().items()}
        plain = FloatGraph(run.work.path / FLOAT, parameters)
        export_onnx(loaded.module(), example, loaded.outputs, run.work.path / CANONICAL, floating=plain)
    stage.progress(1, 2)
    report = check_file(run.work.path / CANONICAL, [point.name for point in placement.placed])
    parity = write_parity(run, loaded)
    stage.say(f"{report.quantize} QuantizeLinear, {report.weights} INT8 weights, structure and parity checked")
    return *graph_files(run.work.path / CANONICAL), *graph_files(run.work.path / FLOAT), parity


def export_example(loaded: LoadedModel) -> dict[str, Any]:
    """Two short rows of token ids: enough for torch to trace every dimension as dynamic."""
    import torch

    shape = (2, CHOICES + 1, 8) if loaded.task.choices else (2, 8)
    special = loaded.tokenizer.pad_token_id or 0
    ids = (torch.arange(8) + special + 1).remainder(loaded.model.config.vocab_size).expand(shape).contiguous()
    example = {"input_ids": ids, "attention_mask": torch.ones(shape, dtype=torch.int64)}
    return example | ({"token_type_ids": torch.zeros_like(ids)} if "token_type_ids" in loaded.inputs else {})
