"""Stage 2, inject: quantizers into the loaded model, and placement.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qdq.base.artifacts import write_json
from qdq.base.screen import Stage
from qdq.pipeline.run import Run

if TYPE_CHECKING:
    from qdq.inject.spec import QuantSpec


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
