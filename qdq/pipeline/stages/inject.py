"""Stage 2, inject: quantizers into the loaded model, and placement.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engines.targets import TARGETS
from qdq.base.artifacts import write_json
from qdq.base.screen import Stage
from qdq.pipeline.run import Run

if TYPE_CHECKING:
    from qdq.inject import Placement
    from qdq.inject.spec import QuantSpec
    from qdq.loading.model import LoadedModel
    from qdq.placing.search import Decision


def requested_spec(run: Run) -> QuantSpec:
    """The QuantSpec the options ask for, or the checkpoint's own. Raises ConfigError for a bad spec file."""
    from qdq.calibrate.checkpoint import read_spec
    from qdq.inject.spec import load_spec
    from qdq.placing import base_spec

    if run.options.spec is not None:
        spec = load_spec(Path(run.options.spec))
    elif run.options.placement is not None:
        spec = base_spec(run.options.placement, TARGETS[run.options.target].placement)
    else:  # options.resolve names a placement for everything but a checkpoint of ours
        spec = read_spec(run.folder)[0]
    if run.options.weight_quantize_type is not None:
        spec = replace(spec, per_channel_weights=run.options.weight_quantize_type == "channel_wise_abs_max")
    return replace(spec, embedding_tables=True) if run.options.embedding_tables else spec


def inject(run: Run, stage: Stage, loaded: LoadedModel) -> tuple[LoadedModel, Placement]:
    """Stage 2: quantizers into the loaded model, in place. `write_placement` writes what was decided."""
    from qdq.inject import decided, remove
    from qdq.inject import inject as inject_points

    placement = inject_points(loaded.model, requested_spec(run))
    spec, limits = fitting_spec(run, loaded)
    for limit in limits:
        run.screen.warn(limit)
    if spec.declined:
        placement = decided(loaded.model, spec)
        remove(loaded.model, {point.name for point in placement.points if not point.placed})
    stage.say(f"{len(placement.placed)} of {len(placement.points)} points placed ({spec.placement})")
    return loaded, placement


def fitting_spec(run: Run, loaded: LoadedModel) -> tuple[QuantSpec, list[str]]:
    """The spec the options ask for, less the attention points that cannot run in INT8 on the target; and why not.

    `loaded` is injected. A limit of the target is a sentence with the way out; points that were asked for by name stay.
    """
    from export.lint.limits import int8_attention_limits
    from qdq.placing.attention import fitting

    spec, options = requested_spec(run), run.options
    if not TARGETS[options.target].gpu:
        return spec, []
    limits = partial(int8_attention_limits, longest=options.sequence, sm=options.sm, body=options.body)
    return fitting(loaded.model, spec, limits)


def write_placement(run: Run, placement: Placement, limits: Sequence[str] = (), auto: Decision | None = None) -> Path:
    """placement.json: every candidate with its reason, limits of the target, and how `--placement auto` decided."""
    decision = {} if auto is None else {"auto": auto.as_json()}
    limited = {"limits": list(limits)} if limits else {}
    return write_json(run.work.path / "placement.json", {**placement.as_json(), **limited, **decision})
