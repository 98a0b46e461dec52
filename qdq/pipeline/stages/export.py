"""Stage 4, export: the canonical QDQ graph, and the same model in FP32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.interface import graph_files
from qdq.base.screen import Stage
from qdq.load.kinds import CHOICES
from qdq.pipeline.run import CANONICAL, FLOAT, Run, load_float, prepare_torch

if TYPE_CHECKING:
    from qdq.load.model import LoadedModel


def export(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 4: the canonical QDQ graph, and the same model in FP32 for comparison."""
    from export.check import check_file
    from qdq.calibrate.checkpoint import load_checkpoint
    from qdq.pipeline.stages.parity import write_parity

    prepare_torch(run.options.threads)
    loaded, _, placement = load_checkpoint(run.checkpoint)
    stage.progress(0, 2)
    canonical, floating = _write_graphs(run, loaded)
    stage.progress(1, 2)
    report = check_file(canonical, [point.name for point in placement.placed])
    parity = write_parity(run, loaded)
    stage.say(f"{report.quantize} QuantizeLinear, {report.weights} INT8 weights, structure and parity checked")
    return *graph_files(canonical), *graph_files(floating), parity


def _write_graphs(run: Run, loaded: LoadedModel) -> tuple[Path, Path]:
    """Both graphs from one trace. The floating-point model lives in here only: two models are in memory, not three."""
    from export.to_onnx import FloatGraph, export_onnx
    from qdq.inject import inject as inject_points
    from qdq.inject.quantizer import folded
    from qdq.inject.spec import QuantSpec

    canonical, path = run.work.path / CANONICAL, run.work.path / FLOAT
    # The FP32 graph is the same one with nothing placed, so the comparison differs in quantization only.
    floating = load_float(run)
    inject_points(floating.model, QuantSpec(placement="linear", linear=False, matmul=(), residual=()))
    with folded(loaded.model), folded(floating.model):
        parameters = {name: tensor.numpy() for name, tensor in floating.module().state_dict().items()}
        plain = FloatGraph(path, parameters)
        export_onnx(loaded.module(), export_example(loaded), loaded.outputs, canonical, floating=plain)
    return canonical, path


def export_example(loaded: LoadedModel) -> dict[str, Any]:
    """Two short rows of token ids: enough for torch to trace every dimension as dynamic."""
    import torch

    shape = (2, CHOICES + 1, 8) if loaded.task.choices else (2, 8)
    special = loaded.tokenizer.pad_token_id or 0
    ids = (torch.arange(8) + special + 1).remainder(loaded.model.config.vocab_size).expand(shape).contiguous()
    example = {"input_ids": ids, "attention_mask": torch.ones(shape, dtype=torch.int64)}
    return example | ({"token_type_ids": torch.zeros_like(ids)} if "token_type_ids" in loaded.inputs else {})
