"""Part of stage 3: `--placement auto` and `--search` leave out the points that cost the answers too much."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from engines.targets import TARGETS
from qdq.base.artifacts import write_json
from qdq.base.screen import Stage
from qdq.errors import BuildError, CalibrationError
from qdq.pipeline.run import Run
from qdq.pipeline.stages.export import export_example

if TYPE_CHECKING:
    from qdq.inject import Placement
    from qdq.inject.spec import QuantSpec
    from qdq.load.model import LoadedModel
    from qdq.placing.latency import Timing
    from qdq.placing.search import Decision, Search

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
    """`--search`: the curve over training rows, on a CPU target with measured latencies, to search.json and search.png.

    Raises CalibrationError when no placement on it is within the allowed drop; the curve is written all the same.
    """
    from qdq.inject import quantizers
    from qdq.pipeline.texts import search_records
    from qdq.placing.decide import SearchRequest, encoder_units, search_placement
    from qdq.placing.latency import exported, with_latency

    options = run.options
    records = search_records(options, run.calibration)
    target_kind = TARGETS[options.target].placement
    request = SearchRequest(target_kind, options.sequence, options.max_drop)
    # The graph with every point, for a target whose engines this machine builds in seconds.
    timed: AbstractContextManager[Path | None] = (
        nullcontext() if TARGETS[options.target].gpu else exported(loaded, export_example(loaded))
    )
    with timed as graph:
        points = encoder_units(quantizers(loaded.model), target_kind)
        spec, placement, choice, found = search_placement(loaded, spec, records, request, stage.progress)
        path = _write_search(run, found)  # before engines are timed: the search took minutes
        if graph is not None and found.best is not None:
            try:
                _write_search(run, with_latency(found, points, graph, _timing(run, loaded)))
            except BuildError as error:
                run.screen.warn(f"no engine of the search was timed: {error}")
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


def _write_search(run: Run, found: Search) -> Path:
    from qdq.placing.search import plot_curve

    path = write_json(run.work.path / SEARCH_REPORT, found.as_json())
    plot_curve(found, run.work.path / SEARCH_PLOT)
    return path


def _timing(run: Run, loaded: LoadedModel) -> Timing:
    from qdq.placing.latency import Timing
    from qdq.text.encode import workload_of_shape

    options = run.options
    shape = loaded.task.shape(options.batch, options.sequence)
    feeds = workload_of_shape(loaded.tokenizer, run.calibration.records, loaded.inputs, shape, 2)
    return Timing(options.target, options.threads, feeds)
