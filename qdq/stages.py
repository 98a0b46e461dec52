"""The stages of a compile run, each from the previous stage's files to its own; `pipeline` calls them in order.

Only this module, `qdq/pipeline.py` and `qdq/cli.py` import `export` and `engines`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError, DeployError
from qdq.inject.spec import QuantSpec, load_spec, named_spec
from qdq.options import CompileOptions
from qdq.screen import Screen, Stage
from qdq.workdir import WorkDirectory

if TYPE_CHECKING:
    from engines.types import BuiltEngine, MatmulNames
    from qdq.model import LoadedModel

CANONICAL = "model.qdq.onnx"
FLOAT = "model.fp32.onnx"
WORKLOAD_BATCHES = 5  # different batches the benchmark rotates through
CHOICES = 2  # answers per multiple-choice sample that we build from plain text
CALIBRATION_MICRO_BATCH = 8


@dataclass
class Run:
    """What the stages of one run share. `options` are resolved."""

    options: CompileOptions
    work: WorkDirectory
    screen: Screen

    @property
    def target(self) -> Path:
        """Folder of the target's files."""
        return self.work.path / self.options.target

    @property
    def checkpoint(self) -> Path:
        """The calibrated checkpoint."""
        return self.work.path / "checkpoint"

    @cached_property
    def reference(self) -> LoadedModel:
        """The floating-point model, from the checkpoint's original parameters."""
        from qdq.checkpoint import read_spec
        from qdq.model import load_model

        task = read_spec(self.checkpoint)[1].get("task")
        return load_model(str(self.checkpoint), task=task)

    def texts_of(self, kind: str) -> Any:
        """The calibration or evaluation texts of this run."""
        from qdq.texts import calibration_texts, evaluation_texts

        read = calibration_texts if kind == "calibration" else evaluation_texts
        return read(self.options, self.reference.task.name)


def requested_spec(options: CompileOptions) -> QuantSpec:
    """The QuantSpec the options ask for. Raises ConfigError for a bad spec file."""
    if options.spec is not None:
        return load_spec(Path(options.spec))
    assert options.placement is not None  # resolve() names one whenever there is no spec file
    return named_spec(options.placement)


def load(options: CompileOptions) -> LoadedModel:
    """Stage 1. Also refuses a sequence or batch this model or machine cannot take, before any work is done."""
    from qdq.model import load_model

    loaded = load_model(options.model, options.task, options.allow_pickle)
    check_shape(loaded, options.batch, options.sequence)
    return loaded


def check_shape(loaded: LoadedModel, batch: int, sequence: int) -> None:
    """Raise ConfigError for a sequence beyond the position embeddings or a batch beyond this machine's memory."""
    from engines.bench.machine import machine

    if sequence > loaded.max_sequence:
        raise ConfigError(
            f"--sequence (SEQ=): {sequence} is beyond the {loaded.max_sequence} positions of {loaded.name}; "
            f"give at most {loaded.max_sequence}"
        )
    config = loaded.model.config
    hidden, heads = config.hidden_size, config.num_attention_heads
    per_token = 8 * hidden + (config.vocab_size if loaded.outputs == ("logits",) and not loaded.labels else 0)
    floats = batch * sequence * (per_token + heads * sequence) * (CHOICES if loaded.task.choices else 1)
    needed, memory = floats * 4 / 2**30, machine()["memory_gib"]
    if memory and needed > memory / 2:
        raise ConfigError(
            f"--batch (BATCH=): {batch} x {sequence} needs about {needed:.0f} GiB for activations and this machine has "
            f"{memory:.0f} GiB; give a smaller batch or sequence"
        )


def inject(run: Run, loaded: LoadedModel, spec: QuantSpec, stage: Stage) -> None:
    """Stage 2: quantizers into `loaded.model`, placement.json out."""
    from qdq.artifacts import write_json
    from qdq.inject import inject as inject_points

    placement = inject_points(loaded.model, spec)
    write_json(run.work.path / "placement.json", placement.as_json())
    stage.say(f"{len(placement.placed)} of {len(placement.points)} points placed ({spec.placement})")


def calibrate(run: Run, loaded: LoadedModel, spec: QuantSpec, stage: Stage) -> None:
    """Stage 3: calibration text through the injected model; calibration.json and checkpoint/ out."""
    import torch

    from qdq.artifacts import write_json
    from qdq.calibrate.calibrate import CalibrationSettings, default_percentile
    from qdq.calibrate.calibrate import calibrate as calibrate_points
    from qdq.checkpoint import write_checkpoint
    from qdq.encode import calibration_batches, check_language
    from qdq.texts import calibration_texts

    texts = calibration_texts(run.options, loaded.task.name)
    if run.options.calibration is None and (warning := check_language(loaded.tokenizer, texts.records)):
        run.screen.warn(warning)
    feeds = calibration_batches(
        loaded.tokenizer,
        texts.records,
        loaded.inputs,
        run.options.sequence,
        CALIBRATION_MICRO_BATCH,
        CHOICES if loaded.task.choices else None,
    )
    batches = [{name: torch.from_numpy(array) for name, array in feed.items()} for feed in feeds]
    settings = CalibrationSettings(run.options.calibrator, run.options.percentile or default_percentile(spec))
    table = calibrate_points(loaded.module(), batches, spec, settings, stage.progress)
    write_json(run.work.path / "calibration.json", {**table.as_json(), "source": texts.source})
    write_checkpoint(loaded, spec, table, run.checkpoint)
    how = f"percentile {table.percentile}" if table.percentile else table.algorithm
    stage.say(f"{how} over {table.tokens} tokens of {texts.source}")
    if table.zero_channels:
        run.screen.warn(f"{sum(table.zero_channels.values())} all-zero weight channels got the floor scale 2**-14")


def import_calibration(run: Run, loaded: LoadedModel, spec: QuantSpec, stage: Stage) -> None:
    """Stage 3 for a checkpoint that brings its amax: nothing is measured, everything is taken over."""
    from qdq.artifacts import write_json
    from qdq.calibrate.calibrate import summarise
    from qdq.checkpoint import load_amax, read_amax, write_checkpoint

    load_amax(loaded.model, read_amax(loaded.folder))
    table = summarise(loaded.model, "imported", None, 0, 0)
    write_json(run.work.path / "calibration.json", {**table.as_json(), "source": "the checkpoint's own amax"})
    write_checkpoint(loaded, spec, table, run.checkpoint)
    stage.say("amax taken from the checkpoint")


def export(run: Run, stage: Stage) -> None:
    """Stage 4: the canonical QDQ graph, and the same model in FP32 for comparison."""
    from export.check import check_file
    from export.to_onnx import export_onnx
    from qdq.checkpoint import load_checkpoint
    from qdq.inject import inject as inject_points
    from qdq.inject.quantizer import folded

    loaded, _, placement = load_checkpoint(run.checkpoint)
    example = export_example(loaded)
    stage.progress(0, 3)
    with folded(loaded.model):
        export_onnx(loaded.module(), example, loaded.outputs, run.work.path / CANONICAL)
    stage.progress(1, 3)
    report = check_file(run.work.path / CANONICAL, [point.name for point in placement.placed])
    # The FP32 graph takes the same path with nothing placed, so the comparison differs in quantization only.
    nothing = QuantSpec(placement="linear", linear=False, matmul=(), residual=())
    inject_points(run.reference.model, nothing)
    with folded(run.reference.model):
        export_onnx(run.reference.module(), example, loaded.outputs, run.work.path / FLOAT)
    del run.reference  # it carries our attention now; whoever needs the plain model loads it again
    stage.say(f"{report.quantize} QuantizeLinear, {report.weights} INT8 weights, structure checked")


def export_example(loaded: LoadedModel) -> dict[str, Any]:
    """Two short rows of token ids: enough for torch to trace every dimension as dynamic."""
    import torch

    shape = (2, CHOICES + 1, 8) if loaded.task.choices else (2, 8)
    special = loaded.tokenizer.pad_token_id or 0
    ids = (torch.arange(8) + special + 1).remainder(loaded.model.config.vocab_size).expand(shape).contiguous()
    example = {"input_ids": ids, "attention_mask": torch.ones(shape, dtype=torch.int64)}
    return example | ({"token_type_ids": torch.zeros_like(ids)} if "token_type_ids" in loaded.inputs else {})


def lower(run: Run, stage: Stage) -> None:
    """Stage 5: the graph for the target."""
    from export.passes import lower as lower_graph

    report = lower_graph(run.work.path / CANONICAL, run.options.target, run.target)
    steps = [f"{step['pass']} {len(step['changed'])}" for step in report["passes"]]
    stage.say(", ".join(steps))


def build(run: Run, stage: Stage) -> BuiltEngine:
    """Stage 6: the engine, and what of it really runs in INT8. Raises Unavailable for TensorRT without a GPU."""
    from engines.precision import summary
    from qdq.artifacts import write_json

    engine = build_engine(run, multiplications(run.target / "model.onnx"))
    if engine.int8 is None:
        raise DeployError(f"{run.target}: the engine reported no precisions; build it again")
    files = [file.relative_to(run.target).as_posix() for file in engine.files]
    report = {"target": engine.target, "engine_files": files, "int8": engine.int8.as_json()}
    write_json(run.target / "build.json", {**report, "settings": dict(engine.settings)})
    stage.say(summary(engine.int8))
    return engine


def build_engine(run: Run, names: MatmulNames) -> BuiltEngine:
    """Build the lowered graph for the run's target."""
    lowered = run.target / "model.onnx"
    options = run.options
    if options.target == "openvino":
        from engines import openvino

        return openvino.build(
            lowered, run.target, openvino.OpenVINOSettings(options.threads, options.precision_hint), names
        )
    if options.target == "onnxruntime":
        from engines import onnxruntime

        return onnxruntime.build(lowered, run.target, onnxruntime.OnnxRuntimeSettings(options.threads), names)
    from engines import tensorrt

    return tensorrt.build(lowered, run.target, tensorrt_settings(run), names)


def tensorrt_settings(run: Run) -> Any:
    """Profile around the benchmark shape; the timing cache is kept in the work directory across builds."""
    from engines.tensorrt import TensorRTSettings

    options = run.options
    return TensorRTSettings(
        batch_opt=options.batch,
        batch_max=options.batch,
        sequence_opt=options.sequence,
        sequence_max=options.sequence,
        timing_cache=run.target / "timing.cache",
        choices=CHOICES,
    )


def multiplications(model: Path) -> MatmulNames:
    """The matrix multiplications of a graph, by what the INT8 report counts them as."""
    import onnx

    from engines.types import MatmulNames, NotInt8
    from export.inventory import inventory

    found = inventory(onnx.load(model, load_external_data=False))
    unquantized = [
        NotInt8(name, _float_operands(found.quantized[name]))
        for name in (*found.encoder_linear, *found.attention_matmul)
        if len(found.quantized[name]) < 2
    ]
    return MatmulNames(
        linears=found.encoder_linear,
        matmuls=found.attention_matmul,
        floats=tuple(NotInt8(item.name, item.reason) for item in found.other),
        unquantized=tuple(unquantized),
    )


def _float_operands(quantized: tuple[int, ...]) -> str:
    if not quantized:
        return "the placement quantizes neither operand"
    return f"the placement leaves its {'second' if quantized == (0,) else 'first'} operand float"
