"""Part of stage 3: `--placement auto` and `--search` leave out the points that cost the answers too much."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.targets import TARGETS
from qdq.base.artifacts import write_json
from qdq.base.screen import Stage
from qdq.errors import BuildError, CalibrationError, PassError
from qdq.pipeline.run import Run
from qdq.pipeline.stages.export import export_example

if TYPE_CHECKING:
    from qdq.inject import Placement
    from qdq.inject.spec import QuantSpec
    from qdq.loading.model import LoadedModel
    from qdq.placing.latency import Timing
    from qdq.placing.search import Decision, Search
    from qdq.placing.units import Unit

SEARCH_REPORT, SEARCH_PLOT = "search.json", "search.png"


def decided(run: Run, loaded: LoadedModel, spec: QuantSpec, stage: Stage) -> tuple[QuantSpec, Placement, Decision]:
    """`--placement auto`: leave out, in place, what costs the answers too much on the calibration texts.

    Returns the spec and the placement of what is left, and how that was decided.
    """
    from qdq.placing.decide import decide_placement

    options = run.options
    if options.search:
        return _searched(run, loaded, spec, stage)
    target_kind = TARGETS[options.target].placement
    return decide_placement(loaded, spec, run.calibration.records, target_kind, options.sequence, stage.progress)


def left_out(placement: Placement, spec: QuantSpec, auto: Decision) -> str:
    """The decision of `--placement auto` for the screen."""
    quantized = len(placement.placed)
    return (
        f"auto leaves {len(spec.declined)} of {quantized + len(spec.declined)} points float, "
        f"divergence {auto.before:.4f} to {auto.after:.4f} in {auto.checks} checks"
    )


def _searched(run: Run, loaded: LoadedModel, spec: QuantSpec, stage: Stage) -> tuple[QuantSpec, Placement, Decision]:
    """`--search`: the curve over training rows, with engines of some placements, to search.json and search.png.

    On a CPU target engines are timed; for TensorRT the compiler says their kernels and bytes, where it is installed.

    Raises CalibrationError when no placement on it is within the allowed drop; the curve is written all the same.
    """
    from qdq.inject import quantizers
    from qdq.pipeline.texts import search_records
    from qdq.placing.decide import SearchRequest, encoder_units, search_placement
    from qdq.placing.latency import exported

    options = run.options
    records = search_records(options, run.calibration)
    target_kind = TARGETS[options.target].placement
    request = SearchRequest(target_kind, options.sequence, options.max_drop)
    with exported(loaded, export_example(loaded)) as graph:  # with every point
        points = encoder_units(quantizers(loaded.model), target_kind)
        spec, placement, choice, found = search_placement(loaded, spec, records, request, stage.progress)
        path = _write_search(run, found)  # before engines are built: the search took minutes
        if found.best is not None:
            try:
                _write_search(run, _with_engines(run, loaded, found, points, graph))
            except (BuildError, PassError) as error:
                done = "compiled" if TARGETS[options.target].gpu else "timed"
                run.screen.warn(f"no engine of the search was {done}: {error}")
    if found.best is None:
        run.work.keep()  # the curve, even of a first run, which ends here
        closest = found.curve[found.closest]
        loss = closest.divergence if closest.drop_points is None else closest.drop_points
        raise CalibrationError(
            f"no placement of {len(found.curve)} tried is within {found.limit:g} ({found.by}); the closest leaves "
            f"{closest.dropped} units float and still loses {loss:.3g}: see {path}, allow a larger --max-drop, or "
            "treat the outliers first"
        )
    return spec, placement, choice


def _with_engines(run: Run, loaded: LoadedModel, found: Search, units: Sequence[Unit], graph: Path) -> Search:
    """`found` with what engines of some placements cost. Raises BuildError, PassError."""
    from export.passes import LowerOptions
    from export.products import measure_products
    from export.ranges import measure_ranges
    from qdq.placing.compiled import Setting, with_compiled
    from qdq.placing.latency import with_latency

    options, timing = run.options, _timing(run, loaded)
    if not TARGETS[options.target].gpu:
        return with_latency(found, units, graph, timing)
    lowering = LowerOptions(
        body=options.body,  # type: ignore[arg-type]  # validated
        ranges=None if options.body == "fp32" else measure_ranges(graph, timing.feeds),
        products=measure_products(graph, timing.feeds) if options.product_codes != "none" else None,
        feed_forward=options.product_codes == "all",
    )
    choices = timing.shape[1] if len(timing.shape) == 3 else 2
    return with_compiled(found, units, graph, Setting(options.sm, options.batch, options.sequence, lowering, choices))


def _write_search(run: Run, found: Search) -> Path:
    from qdq.placing.curve import plot_curve

    path = write_json(run.work.path / SEARCH_REPORT, found.as_json())
    plot_curve(found, run.work.path / SEARCH_PLOT)
    return path


def _timing(run: Run, loaded: LoadedModel) -> Timing:
    from qdq.placing.latency import Timing
    from qdq.text.workload import workload_of_shape

    options = run.options
    shape = loaded.task.shape(options.batch, options.sequence)
    feeds = workload_of_shape(loaded.tokenizer, run.calibration.records, loaded.inputs, shape, 2)
    return Timing(options.target, options.threads, feeds)
