"""Stage 4, export: the canonical QDQ graph, and the same model in FP32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.interface import graph_files
from qdq.base.screen import Stage
from qdq.loading.kinds import CHOICES
from qdq.pipeline.run import CANONICAL, FLOAT, Run, prepare_torch

if TYPE_CHECKING:
    from qdq.loading.model import LoadedModel


def export(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 4: the canonical QDQ graph, and the same model in FP32 for comparison."""
    from export.check import check_file
    from qdq.calibrate.checkpoint import load_checkpoint
    from qdq.pipeline.stages.parity import write_parity

    prepare_torch(run.options.threads)
    loaded, _, placement = load_checkpoint(run.checkpoint, run.options.model_class)
    stage.progress(0, 2)
    canonical, floating, why = _write_graphs(run, loaded)
    stage.progress(1, 2)
    report = check_file(canonical, [point.name for point in placement.placed])
    parity = write_parity(run, loaded)
    traced = f"; traced by torch, because {why}" if why else ""
    stage.say(f"{report.quantize} QuantizeLinear, {report.weights} INT8 weights, structure and parity checked{traced}")
    return *graph_files(canonical), *graph_files(floating), parity


def _write_graphs(run: Run, loaded: LoadedModel) -> tuple[Path, Path, str]:
    """Both graphs from one recording, and why the model was traced where it was not recorded.

    The FP32 graph is the same one with nothing placed, so the comparison differs in quantization only.
    """
    from export.to_onnx import FloatGraph, export_onnx
    from qdq.inject.quantizer import floating_parameters, folded

    canonical, path, module = run.work.path / CANONICAL, run.work.path / FLOAT, loaded.module()
    plain = FloatGraph(path, {name: tensor.numpy() for name, tensor in floating_parameters(module).items()})
    with folded(loaded.model):
        why = export_onnx(module, export_example(loaded), loaded.outputs, canonical, floating=plain)
    return canonical, path, why


def export_example(loaded: LoadedModel) -> dict[str, Any]:
    """Two short rows of token ids: enough for torch to trace every dimension as dynamic."""
    import torch

    shape = (2, CHOICES + 1, 8) if loaded.task.choices else (2, 8)
    special = loaded.tokenizer.pad_token_id or 0
    ids = (torch.arange(8) + special + 1).remainder(loaded.model.config.vocab_size).expand(shape).contiguous()
    example = {"input_ids": ids, "attention_mask": torch.ones(shape, dtype=torch.int64)}
    return example | ({"token_type_ids": torch.zeros_like(ids)} if "token_type_ids" in loaded.inputs else {})
