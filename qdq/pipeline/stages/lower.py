"""Stage 5, lower: the graph for the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from engines.interface import graph_files
from engines.targets import CPU_TARGETS, TARGETS
from qdq.base.screen import Stage
from qdq.errors import ConfigError, Unavailable
from qdq.loading.kinds import CHOICES
from qdq.pipeline.run import CANONICAL, Run
from qdq.pipeline.stages.forms import write_packing

if TYPE_CHECKING:
    from export.passes import LowerOptions
    from export.products import Product

T = TypeVar("T")


def lower(run: Run, stage: Stage) -> Sequence[Path]:
    """Stage 5: the graph for the target."""
    from export.passes import lower as lower_graph

    options = cpu_lowering(run)
    if TARGETS[run.options.target].gpu:
        canonical, body = run.work.path / CANONICAL, run.options.body
        wanted = run.options.product_codes
        found = products(run, stage, canonical) if wanted != "none" else None
        measured = ranges(run, stage, canonical, body)
        form = run.options.batch_form
        lowering = replace(options, body=body, ranges=measured, form=form)  # type: ignore[arg-type]  # validated
        options = replace(lowering, products=found, feed_forward=wanted == "all")
    report = lower_graph(run.work.path / CANONICAL, run.options.target, run.target, options=options)
    changes = [f"{step['pass']}: {len(step['changed'])} nodes" for step in report["passes"]]
    stage.say(", ".join(changes))
    return *graph_files(run.lowered), run.target / "passes.json", *write_packing(run, report)


def cpu_lowering(run: Run) -> LowerOptions:
    """Options of the passes for a CPU target. Raises ConfigError for run-time scales on a target without them."""
    from export.passes import LowerOptions

    dynamic, packing = is_dynamic(run), run.options.packing
    # A scale that a tensor gets at run time is of real tokens only when it is packed: other values, if better ones.
    pack = packing == "on" or (packing == "auto" and not dynamic)
    return LowerOptions(dynamic=dynamic, narrow=run.options.input_dtype == "int32", pack=pack)


def is_dynamic(run: Run) -> bool:
    """True when the checkpoint leaves linear inputs to be quantized at run time.

    Raises ConfigError for a target that cannot do that.
    """
    from qdq.calibrate.checkpoint import read_spec

    dynamic = read_spec(run.checkpoint)[0].dynamic
    if dynamic and not TARGETS[run.options.target].dynamic:
        raise ConfigError(
            f"--placement dynamic: {run.options.target} has no run-time scales; choose {' or '.join(CPU_TARGETS)}, or "
            "calibrate"
        )
    return dynamic


def short_float(run: Run) -> Literal["fp16", "bf16"]:
    """The 16-bit float type that a run's INT8 graph for a GPU is compared with: that of its own body, else FP16."""
    return "bf16" if run.options.body == "bf16" else "fp16"


def ranges(run: Run, stage: Stage, graph: Path, body: str) -> Mapping[str, float] | None:
    """Largest |x| of every float tensor of `graph` on a quarter of the calibration text; None when not measured."""
    from export.ranges import measure_ranges

    return None if body == "fp32" else _measured(run, stage, "ranges", partial(measure_ranges, graph))


def products(run: Run, stage: Stage, graph: Path) -> Mapping[str, Product] | None:
    """Distribution of every product of an INT8 linear on the same text; None when not measured."""
    from export.products import measure_products

    return _measured(run, stage, "products", partial(measure_products, graph))


def _measured(run: Run, stage: Stage, what: str, measure: Callable[..., T]) -> T | None:
    """Call `measure` with a quarter of the calibration text and the stage's progress; None without ONNX Runtime."""
    from qdq.calibrate.rebatch import MICRO_BATCH
    from qdq.text.encode import calibration_batches

    loaded = run.reference
    choices = CHOICES if loaded.task.choices else None
    records = run.calibration.records
    feeds = list(
        calibration_batches(
            loaded.tokenizer, records, loaded.inputs, run.options.sequence, micro_batch=MICRO_BATCH, choices=choices
        )
    )[::-4]  # sorted by length, so this starts with the longest
    try:
        return measure(feeds, lambda done: stage.progress(done, len(feeds)))
    except Unavailable:
        run.screen.warn(f"{what} not measured: ONNX Runtime is not installed (pip install '.[cpu]')")
        return None
