"""Stage 3, calibrate: an amax for every point, and the calibrated checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import write_json
from qdq.base.screen import Stage
from qdq.errors import CalibrationError
from qdq.pipeline.run import Run
from qdq.pipeline.stages.inject import fitting_spec, write_placement
from qdq.pipeline.stages.place import SEARCH_PLOT, SEARCH_REPORT, decided, left_out
from qdq.pipeline.stages.ranges import Calibrated, feeds_of, measured

if TYPE_CHECKING:
    from qdq.calibrate.table import CalibrationTable
    from qdq.inject import Placement
    from qdq.inject.spec import QuantSpec
    from qdq.loading.model import LoadedModel

HISTOGRAMS = "histograms.json"
SEEN = 16  # texts whose magnitudes are counted there: enough for a picture, a fraction of a second


def calibrate(run: Run, stage: Stage, loaded: LoadedModel, placement: Placement) -> Sequence[Path]:
    """Stage 3: an amax for every point, measured on text or brought by the checkpoint. All files come last."""
    from qdq.calibrate.calibrate import summarise
    from qdq.calibrate.checkpoint import write_checkpoint

    # Ranges.
    spec, limits = fitting_spec(run, loaded)
    on_text = not _take_over(run, loaded, spec) or run.options.calibration is not None
    if not on_text:
        found = Calibrated(_completed(loaded), "the checkpoint's own amax", "amax taken from the checkpoint")
    else:
        found = measured(run, loaded, spec, stage)
    table, said, auto = found.table, found.summary, None

    # Points that are better left floating point.
    if run.options.placement == "auto":
        spec, placement, auto = decided(run, loaded, spec, stage)
        table = summarise(loaded.model, table.algorithm, table.percentile, table.samples, table.tokens)
        said += f"; {left_out(placement, spec, auto)}"
    stage.say(said)
    if table.zero_channels:
        run.screen.warn(f"{sum(table.zero_channels.values())} all-zero weight channels got the floor scale 2**-14")

    # Files, first the one that may not fit on the disk.
    write_checkpoint(loaded, spec, table, run.checkpoint)
    content = {**table.as_json(), "source": found.source, "treatments": found.treatments}
    calibration = write_json(run.work.path / "calibration.json", content)
    seen = [write_json(run.work.path / HISTOGRAMS, _distributions(run, loaded))] if on_text else []
    swept = [write_json(run.work.path / "sweep.json", found.sweep)] if found.sweep else []
    searched = [run.work.path / name for name in (SEARCH_REPORT, SEARCH_PLOT)] if run.options.search else []
    return run.checkpoint, calibration, write_placement(run, placement, limits, auto), *seen, *swept, *searched


def _distributions(run: Run, loaded: LoadedModel) -> dict[str, Any]:
    """Magnitudes of every point on the first calibration texts, which the run's report draws."""
    import torch

    from qdq.calibrate.histograms import histograms

    records = run.calibration.records[:SEEN]
    feeds = feeds_of(run, loaded, records, len(records))
    return histograms(loaded.module(), [{name: torch.from_numpy(feed[name]) for name in feed} for feed in feeds])


def _take_over(run: Run, loaded: LoadedModel, spec: QuantSpec) -> bool:
    """Set the amax that a checkpoint of ours brings for its own spec, or QDQBERT's for any; True when it did."""
    from qdq.calibrate.checkpoint import import_qdqbert, load_amax, read_amax, table_amax
    from qdq.calibrate.treatments.share_skips import tie_skips
    from qdq.loading.source import is_checkpoint

    ours = is_checkpoint(loaded.folder)
    if ours and not run.keeps_spec:
        return False
    amax = read_amax(loaded.folder, run.options.allow_pickle)
    if ours:
        load_amax(loaded.model, {**table_amax(loaded.model), **amax})  # a table the options add needs no data
        return True
    imported = bool(import_qdqbert(loaded.model, amax)[0])
    if imported and spec.shared_skip:
        tie_skips(loaded.model)
    return imported


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
