"""A configured run on an ONNX file, which can be quantized but not trained."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qdq.auto.config import Configuration, QuantPost
from qdq.auto.config.quantization import OPERATORS
from qdq.auto.inputs.data import Rows
from qdq.auto.inputs.models import Source
from qdq.auto.output import copy_texts
from qdq.auto.session import Materials, arguments, check_origin
from qdq.auto.steps import SEARCHED, draw, ptq_arguments
from qdq.auto.strategy import REPORT, Result
from qdq.auto.training.finished import Finished, inputs_of
from qdq.base.artifacts import atomic_path, sha256_file, sweep_partials, write_json
from qdq.base.lock import hold
from qdq.base.screen import Screen
from qdq.compress import CompressionTrainer
from qdq.compress.evaluators import CustomEvaluate, Score, evaluator_on
from qdq.compress.onnx_file import OnnxModule, builtin_evaluator, read_graph
from qdq.errors import ConfigError

# Keys of QuantPost that quantize_graph has nothing for
MODULE_ONLY = ("weight_bits", "is_full_quantize", "skip_tensor_list", "recon_level")


@dataclass(frozen=True)
class File:
    """An ONNX file with its data, as `qdq.auto.session.Materials` has a model."""

    source: Source
    tokenizer: Any
    rows: Rows
    save_dir: Path
    evaluate: CustomEvaluate | None = None


def run_graph(configuration: Configuration, file: File, screen: Screen) -> Result:
    """Quantize the file as QuantPost says, or as the best setting of a search; written under the file's name.

    Raises ConfigError for steps that train and keys that need a module, before anything is evaluated.
    """
    section = _checked(configuration, file.source)
    with hold(file.save_dir, "another qdq auto"):
        sweep_partials(file.save_dir)
        return _run(configuration, section, file, screen)


def _run(configuration: Configuration, section: QuantPost, file: File, screen: Screen) -> Result:
    module = OnnxModule(read_graph(Path(file.source.name)))
    materials = Materials(module, file.tokenizer, file.rows, file.save_dir)  # type: ignore[arg-type]  # only called
    with screen.stage("evaluate") as stage:
        baseline = float(score_file(file, module))
        stage.say(f"{baseline:.4f} before compression")
    check_origin(configuration, baseline)
    inputs = inputs_of(configuration, file.rows, sha256_file(Path(file.source.name)), baseline)
    finished = Finished(file.save_dir, inputs)
    # Every setting, and the best of them
    search = configuration.search
    settings = [section] if search is None else list(draw(section, search, 42))
    rows, best = [], (-float("inf"), Path())
    for number, drawn in enumerate(settings):
        name = f"trial-{number}"
        known = finished.part(name)
        if known is None or not (file.save_dir / known["file"]).is_file():
            metric, made = _quantized(configuration, materials, drawn, file, file.save_dir / "training" / name)
            known = {"metric": metric, "file": made.relative_to(file.save_dir).as_posix()}
            finished.keep(name, known)
        rows.append({"metric": known["metric"], **{name: getattr(drawn, name) for name in SEARCHED}})
        found = known["metric"], file.save_dir / known["file"]
        best = max(best, found, key=lambda one: one[0])  # of equals the one drawn first
    # The result under its input's name
    with atomic_path(file.save_dir / Path(file.source.name).name) as partial:
        shutil.copyfile(best[1], partial)
    if file.source.files is not None:
        copy_texts(file.source.files, file.save_dir)
    steps = ({"step": "ptq", "metric": best[0], "notes": {"search": rows}},)
    result = Result(baseline, best[0], file.save_dir, steps, OnnxModule(read_graph(best[1])))
    write_json(file.save_dir / REPORT, result.as_json())
    screen.row("result", f"{result.metric:.4f}, {result.baseline:.4f} before: {result.folder}")
    return result


def score_file(file: File, module: OnnxModule | None = None) -> float:
    """Metric of the file as it is; `module` is the file, where it is open already."""
    graph = module or OnnxModule(read_graph(Path(file.source.name)))
    dev = file.rows.batches("dev", _cpu())
    assert dev is not None  # every way of giving data has evaluation rows
    built_in = file.rows.metric or (lambda: builtin_evaluator(graph, dev.dataset[0], file.tokenizer))
    evaluate = evaluator_on(dev, file.evaluate, built_in if callable(built_in) else lambda: built_in)
    return evaluate(graph)


def _quantized(
    configuration: Configuration, materials: Materials, section: QuantPost, file: File, folder: Path
) -> tuple[float, Path]:
    """Metric and place of the file quantized by one setting."""
    placement = "ft1" if "product" in {OPERATORS[name] for name in section.quantize_op_types} else "linear"
    args = arguments(
        configuration,
        materials,
        output_dir=str(folder),
        input_infer_model_path=file.source.name,
        placement=placement,
        **ptq_arguments(section),
    )
    rows = file.rows
    options = {"eval_dataset": rows.dev, "data_collator": rows.collate, "tokenizer": file.tokenizer}
    trainer = CompressionTrainer(None, args, **options)
    trainer.labels = rows.labels

    def decided(module: Any, loader: Any) -> float:
        if file.evaluate is not None:
            return float(file.evaluate(module, loader))
        assert rows.metric is not None  # else compress() has its own evaluator
        batches = rows.batches("dev", _cpu())
        assert batches is not None
        return Score.of(rows.metric[1](module, batches), rows.metric[0])

    result = trainer.compress(decided if file.evaluate or rows.metric else None)
    return float(result.best.metric or 0.0), result.folders[result.best.name] / "model.onnx"


def _checked(configuration: Configuration, source: Source) -> QuantPost:
    """QuantPost. Raises ConfigError for what an ONNX file cannot have."""
    where = configuration.where
    if configuration.strategies != ("ptq",):
        found = " and ".join(configuration.strategies) or "no strategy"
        raise ConfigError(
            f"{where}: {source.name} is an ONNX file, which can be quantized (QuantPost) but not trained, and there is "
            f"{found}; name a checkpoint folder by model_dir"
        )
    section = configuration.quant_post or QuantPost()
    for name in MODULE_ONLY:
        if getattr(section, name) not in (getattr(QuantPost, name), ()):
            raise ConfigError(
                f"{where}: QuantPost: {name}: needs a checkpoint folder, and {source.name} is an ONNX file"
            )
    if not any(OPERATORS[name] == "linear" for name in section.quantize_op_types):
        raise ConfigError(f"{where}: QuantPost: quantize_op_types: of an ONNX file the linears are quantized; add mul")
    return replace(section)


def _cpu() -> Any:
    import torch

    return torch.device("cpu")
