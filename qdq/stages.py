"""Stages 1 to 5: load, inject, calibrate, export, lower. Each returns the files it wrote; `steps` puts them in order.

Only the stage modules (this one, `engine` and `measure`), `qdq/pipeline/compile.py` and `qdq/cli/main.py` import `export` and
`engines`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import write_json
from qdq.base.screen import Stage
from qdq.errors import BuildError, CalibrationError, ConfigError, Unavailable
from qdq.pipeline.run import CANONICAL, CHOICES, FLOAT, Run, prepare_torch
from qdq.pipeline.stages.ranges import Calibrated, measured

if TYPE_CHECKING:
    from export.passes import LowerOptions
    from qdq.calibrate.table import CalibrationTable
    from qdq.inject.spec import QuantSpec
    from qdq.load.model import LoadedModel
    from qdq.placing.latency import Timing
    from qdq.placing.search import Search

MICRO_BATCH = 8  # of calibration; the result does not depend on it, the time does (8 is fastest on two cores)
SEARCH_REPORT, SEARCH_PLOT = "search.json", "search.png"
VOCABULARY_TASKS = ("fill-mask", "language-modeling")  # tasks whose output has a row over the vocabulary per token


def load(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 1. Also refuses, before anything is written, a shape or labels this model cannot take."""
    from qdq.measure import evaluation_for

    prepare_torch(run.options.threads)
    from qdq.load.model import load_model

    loaded = load_model(run.options.model, run.task, run.options.allow_pickle)
    check_shape(loaded, run.options.batch, run.options.sequence)
    evaluation_for(run, loaded)
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    stage.say(f"{loaded.model.config.model_type}, {loaded.task.name}, {parameters / 1e6:.1f} M parameters")
    run.loaded = loaded
    return ()


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
    per_token = 8 * hidden + heads * sequence + (config.vocab_size if loaded.task.name in VOCABULARY_TASKS else 0)
    floats = batch * sequence * per_token * (CHOICES if loaded.task.choices else 1)
    needed, memory = floats * 4 / 2**30, machine()["memory_gib"]
    if memory and needed > memory / 2:
        raise ConfigError(
            f"--batch (BATCH=): {batch} x {sequence} needs about {needed:.0f} GiB for activations and this machine has "
            f"{memory:.0f} GiB; give a smaller batch or sequence"
        )


def requested_spec(run: Run) -> QuantSpec:
    """The QuantSpec the options ask for, or the checkpoint's own. Raises ConfigError for a bad spec file."""
    from qdq.calibrate.checkpoint import read_spec
    from qdq.inject.spec import load_spec
    from qdq.placing import base_spec

    if run.options.spec is not None:
        spec = load_spec(Path(run.options.spec))
    elif run.options.placement is not None:
        spec = base_spec(run.options.placement, run.options.target)
    else:
        assert run.source is not None  # options.resolve names a placement for everything but a checkpoint of ours
        spec = read_spec(run.source)[0]
    if run.options.weight_quantize_type is not None:
        spec = replace(spec, per_channel_weights=run.options.weight_quantize_type == "channel_wise_abs_max")
    return replace(spec, embedding_tables=True) if run.options.embedding_tables else spec


def inject(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 2: quantizers into the loaded model. `write_placement` writes what was decided."""
    from qdq.inject import inject as inject_points

    assert run.loaded is not None
    spec = requested_spec(run)
    run.placement = inject_points(run.loaded.model, spec)
    stage.say(f"{len(run.placement.placed)} of {len(run.placement.points)} points placed ({spec.placement})")
    return ()


def write_placement(run: Run) -> Path:
    """placement.json: every candidate point with its reason."""
    assert run.placement is not None
    decision = {} if run.auto is None else {"auto": run.auto.as_json()}
    return write_json(run.work.path / "placement.json", {**run.placement.as_json(), **decision})


def calibrate(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 3: an amax for every point, measured on text or brought by the checkpoint. All files come last."""
    from qdq.calibrate.checkpoint import write_checkpoint

    assert run.loaded is not None
    spec = requested_spec(run)
    if _take_over(run, run.loaded) and run.options.calibration is None:
        result = Calibrated(_completed(run.loaded), "the checkpoint's own amax")
        stage.say("amax taken from the checkpoint")
    else:
        result = measured(run, run.loaded, spec, stage)
    table = result.table
    if run.options.placement == "auto":
        spec, table = _decided(run, run.loaded, spec, table, stage)
    if table.zero_channels:
        run.screen.warn(f"{sum(table.zero_channels.values())} all-zero weight channels got the floor scale 2**-14")
    write_checkpoint(run.loaded, spec, table, run.checkpoint)  # first: the one that may not fit on the disk
    content = {**table.as_json(), "source": result.source, "treatments": result.treatments}
    calibration = write_json(run.work.path / "calibration.json", content)
    swept = [write_json(run.work.path / "sweep.json", result.sweep)] if result.sweep else []
    searched = [run.work.path / name for name in (SEARCH_REPORT, SEARCH_PLOT)] if run.options.search else []
    return run.checkpoint, calibration, write_placement(run), *swept, *searched


def _decided(
    run: Run, loaded: LoadedModel, spec: QuantSpec, table: CalibrationTable, stage: Stage
) -> tuple[QuantSpec, CalibrationTable]:
    """`--placement auto`: leave out what costs the answers too much, on the calibration texts alone."""
    from qdq.calibrate.calibrate import summarise
    from qdq.inject import quantizers
    from qdq.placing.decide import decide_placement

    options = run.options
    if options.search:
        spec = _searched(run, loaded, spec, stage)
    else:
        spec, run.placement, run.auto = decide_placement(
            loaded, spec, run.calibration.records, options.target, options.sequence, stage.progress
        )
    assert run.auto is not None
    kept = quantizers(loaded.model)
    stage.say(
        f"{stage.result}; auto leaves {len(spec.declined)} of {len(kept) + len(spec.declined)} points float, "
        f"divergence {run.auto.before:.4f} to {run.auto.after:.4f} in {run.auto.checks} checks"
    )
    return spec, summarise(loaded.model, table.algorithm, table.percentile, table.samples, table.tokens)


def _searched(run: Run, loaded: LoadedModel, spec: QuantSpec, stage: Stage) -> QuantSpec:
    """`--search`: the curve over training rows, on a CPU target with measured latencies, to search.json and search.png.

    Raises CalibrationError when no placement on it is within the allowed drop; the curve is written all the same.
    """
    from qdq.inject import quantizers
    from qdq.pipeline.texts import search_records
    from qdq.placing.decide import SearchRequest, encoder_units, search_placement
    from qdq.placing.latency import with_latency

    options = run.options
    records = search_records(options, run.calibration)
    request = SearchRequest(options.target, options.sequence, options.max_drop)
    with _graph_to_time(run, loaded) as graph:
        points = encoder_units(quantizers(loaded.model), options.target)
        spec, run.placement, run.auto, found = search_placement(loaded, spec, records, request, stage.progress)
        path = _write_search(run, found)  # before engines are timed: the search took minutes
        if graph is not None and found.best is not None:
            try:
                _write_search(run, with_latency(found, points, graph, _timing(run, loaded)))
            except BuildError as error:
                run.screen.warn(f"no engine of the search was timed: {error}")
    if found.best is None:
        # Recorded, so that a first run that ends here leaves its curve behind.
        run.work.complete("search", {"limit": found.limit}, [path], [run.work.path / SEARCH_PLOT])
        closest = found.curve[found.closest]
        loss = closest.divergence if closest.drop_points is None else closest.drop_points
        raise CalibrationError(
            f"no placement of {len(found.curve)} tried is within {found.limit:g} ({found.by}); the closest leaves "
            f"{closest.dropped} units float and still loses {loss:.3g}: see {path}, allow a larger --max-drop, or "
            "treat the outliers first"
        )
    return spec


def _write_search(run: Run, found: Search) -> Path:
    from qdq.placing.search import plot_curve

    path = write_json(run.work.path / SEARCH_REPORT, found.as_json())
    plot_curve(found, run.work.path / SEARCH_PLOT)
    return path


@contextmanager
def _graph_to_time(run: Run, loaded: LoadedModel) -> Iterator[Path | None]:
    """The graph with every point, for a target whose engines this machine builds in seconds."""
    from qdq.placing.latency import exported

    if run.options.target == "tensorrt":
        yield None
    else:
        with exported(loaded, export_example(loaded)) as graph:
            yield graph


def _timing(run: Run, loaded: LoadedModel) -> Timing:
    from qdq.placing.latency import Timing
    from qdq.text.encode import workload_of_shape

    options, tokenizer, inputs = run.options, loaded.tokenizer, loaded.inputs
    shape = (options.batch, CHOICES, options.sequence) if loaded.task.choices else (options.batch, options.sequence)
    feeds = workload_of_shape(tokenizer, run.calibration.records, inputs, shape, 2)
    return Timing(options.target, options.threads, feeds)


def _take_over(run: Run, loaded: LoadedModel) -> bool:
    """Set the amax that a checkpoint of ours brings for its own spec, or QDQBERT's for any; returns whether it did."""
    from qdq.calibrate.checkpoint import import_qdqbert, load_amax, read_amax, table_amax
    from qdq.load.source import is_checkpoint

    ours = is_checkpoint(loaded.folder)
    if ours and not run.keeps_spec:
        return False
    amax = read_amax(loaded.folder, run.options.allow_pickle)
    if ours:
        load_amax(loaded.model, {**table_amax(loaded.model), **amax})  # a table the options add needs no data
        return True
    return bool(import_qdqbert(loaded.model, amax)[0])


def _completed(loaded: LoadedModel) -> CalibrationTable:
    """The table of brought amax. Weights can be completed from themselves, activations cannot: CalibrationError."""
    from qdq.calibrate.calibrate import freeze_weights, summarise
    from qdq.inject import quantizers

    freeze_weights(loaded.model, recalibrate=False)
    points = quantizers(loaded.model)
    bare = [name for name, point in points.items() if point.amax is None]
    if bare:
        raise CalibrationError(
            f"{loaded.name}: brings amax, but none for {len(bare)} of {len(points)} points ({bare[0]}, ...); choose "
            "another --placement (PLACEMENT=), or give --calibration (CALIB=) to measure all of them"
        )
    for point in points.values():
        point.enable_quant()
    return summarise(loaded.model, "imported", None, 0, 0)


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


def graph_files(graph: Path) -> tuple[Path, ...]:
    """An ONNX file, and its external data when it has some."""
    data = graph.with_name(graph.name + ".data")
    return (graph, data) if data.is_file() else (graph,)


def export_example(loaded: LoadedModel) -> dict[str, Any]:
    """Two short rows of token ids: enough for torch to trace every dimension as dynamic."""
    import torch

    shape = (2, CHOICES + 1, 8) if loaded.task.choices else (2, 8)
    special = loaded.tokenizer.pad_token_id or 0
    ids = (torch.arange(8) + special + 1).remainder(loaded.model.config.vocab_size).expand(shape).contiguous()
    example = {"input_ids": ids, "attention_mask": torch.ones(shape, dtype=torch.int64)}
    return example | ({"token_type_ids": torch.zeros_like(ids)} if "token_type_ids" in loaded.inputs else {})


def lower(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 5: the graph for the target."""
    from export.passes import lower as lower_graph

    options = cpu_lowering(run)
    if run.options.target == "tensorrt":
        measured = ranges(run, stage, run.work.path / CANONICAL, run.options.body)
        options = replace(options, body=run.options.body, ranges=measured)  # type: ignore[arg-type]  # validated
    report = lower_graph(run.work.path / CANONICAL, run.options.target, run.target, options=options)
    changes = [f"{step['pass']}: {len(step['changed'])} nodes" for step in report["passes"]]
    stage.say(", ".join(changes))
    return *graph_files(run.lowered), run.target / "passes.json"


def cpu_lowering(run: Run) -> LowerOptions:
    """What the run asks of a graph for a CPU target. Raises ConfigError for run-time scales on TensorRT."""
    from export.passes import LowerOptions

    return LowerOptions(dynamic=is_dynamic(run), narrow=run.options.input_dtype == "int32")


def is_dynamic(run: Run) -> bool:
    """Whether the checkpoint leaves linear inputs to be quantized at run time. Raises ConfigError for TensorRT."""
    from qdq.calibrate.checkpoint import read_spec

    dynamic = read_spec(run.checkpoint)[0].dynamic
    if dynamic and run.options.target == "tensorrt":
        raise ConfigError("--placement dynamic: TensorRT has no run-time scales; choose a CPU target, or calibrate")
    return dynamic


def ranges(run: Run, stage: Stage, graph: Path, body: str) -> Mapping[str, float] | None:
    """Largest |x| of every float tensor of `graph` on a quarter of the calibration text; None when not measured."""
    from export.ranges import measure_ranges
    from qdq.text.encode import calibration_batches

    if body == "fp32":
        return None
    loaded = run.reference
    choices = CHOICES if loaded.task.choices else None
    records = run.calibration.records
    feeds = list(
        calibration_batches(
            loaded.tokenizer, records, loaded.inputs, run.options.sequence, micro_batch=MICRO_BATCH, choices=choices
        )
    )[::-4]  # sorted by length, so this starts with the longest
    try:
        return measure_ranges(graph, feeds, lambda done: stage.progress(done, len(feeds)))
    except Unavailable:
        run.screen.warn("ranges not measured: ONNX Runtime is not installed (pip install '.[cpu]')")
        return None
