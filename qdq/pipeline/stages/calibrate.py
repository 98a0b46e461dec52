"""Stage 3, calibrate: an amax for every point, and the calibrated checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qdq.base.artifacts import write_json
from qdq.base.screen import Stage
from qdq.errors import CalibrationError
from qdq.pipeline.run import Run
from qdq.pipeline.stages.inject import requested_spec, write_placement
from qdq.pipeline.stages.place import SEARCH_PLOT, SEARCH_REPORT, decided
from qdq.pipeline.stages.ranges import Calibrated, measured

if TYPE_CHECKING:
    from qdq.calibrate.table import CalibrationTable
    from qdq.load.model import LoadedModel


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
        spec, table = decided(run, run.loaded, spec, table, stage)
    if table.zero_channels:
        run.screen.warn(f"{sum(table.zero_channels.values())} all-zero weight channels got the floor scale 2**-14")
    write_checkpoint(run.loaded, spec, table, run.checkpoint)  # first: the one that may not fit on the disk
    content = {**table.as_json(), "source": result.source, "treatments": result.treatments}
    calibration = write_json(run.work.path / "calibration.json", content)
    swept = [write_json(run.work.path / "sweep.json", result.sweep)] if result.sweep else []
    searched = [run.work.path / name for name in (SEARCH_REPORT, SEARCH_PLOT)] if run.options.search else []
    return run.checkpoint, calibration, write_placement(run), *swept, *searched


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
