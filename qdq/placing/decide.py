"""The decision of `--placement auto` as a spec and a placement with a reason for every point left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qdq.base.types import Progress
from qdq.calibrate.treatments.scale_residuals import drop_unused_scales
from qdq.inject import Placement, decided, remove
from qdq.inject.spec import QuantSpec
from qdq.placing.search import Decision, Search, affordable_checks, choose, search
from qdq.placing.sensitivity.probe import Probe
from qdq.placing.units import Unit, layer_of, source_of_costs, units
from qdq.tasks.loading import EvaluationSettings, evaluation_of
from qdq.text.data import Record

if TYPE_CHECKING:
    from qdq.loading.model import LoadedModel

# Calibration texts that the divergence is measured on, evenly spaced. A clipped residual damages few texts very much,
# and a handful of texts may hold none of them.
TEXTS = 64
BATCH = 16
RANKING = 4  # every fourth of them ranks the units where the budget does not reach for more


@dataclass(frozen=True)
class SearchRequest:
    """Limits of a `--search`: `max_drop` in points, for a kind of target and a sequence length."""

    target_kind: str
    sequence: int
    max_drop: float


def decide_placement(
    loaded: LoadedModel,
    spec: QuantSpec,
    records: Sequence[Record],
    target_kind: str,
    sequence: int,
    progress: Progress | None = None,
) -> tuple[QuantSpec, Placement, Decision]:
    """Leave out what `choose` says of an injected and calibrated model, in place.

    Returns the spec that places the same points again, the placement, and how it was decided. Deterministic.
    """
    texts = records[:: -(-len(records) // TEXTS)]
    probe = probe_of(loaded, texts, sequence, "calibration texts")
    found = encoder_units(probe.names, target_kind)
    parameters = sum(p.numel() for n, p in loaded.model.named_parameters() if layer_of(n) is not None)
    checks = affordable_checks(parameters, probe.tokens)
    decision = choose(
        probe, found, checks, progress, lambda: probe_of(loaded, texts[::RANKING], sequence, "calibration texts")
    )
    return *_apply(loaded, spec, found, decision), decision


def search_placement(
    loaded: LoadedModel, spec: QuantSpec, records: Sequence[Record], request: SearchRequest, progress: Progress
) -> tuple[QuantSpec, Placement, Decision, Search]:
    """As `decide_placement`, from the whole curve over `records`, which are training rows that did not calibrate.

    Without labels the divergence is bounded instead of the drop. The model is left as it was when nothing is within
    the limit (`Search.best` is None).
    """
    probe = probe_of(loaded, records, request.sequence, "search rows")
    found = encoder_units(probe.names, request.target_kind)
    curve, decision = search(probe, found, request.max_drop if probe.labelled else None, progress)
    curve = replace(curve, target_kind=request.target_kind, about=source_of_costs(request.target_kind))
    if curve.best is None:
        return spec, decided(loaded.model, spec), decision, curve
    return *_apply(loaded, spec, found, decision), decision, curve


def probe_of(loaded: LoadedModel, records: Sequence[Record], sequence: int, source: str) -> Probe:
    """A probe of the model on `records`, each of which gives one window."""
    settings = EvaluationSettings(sequence, BATCH, overlap=-1)
    return Probe(loaded.module(), evaluation_of(records, loaded, settings, source))


def encoder_units(points: Iterable[str], target_kind: str) -> tuple[Unit, ...]:
    """Units that are decided about: those inside encoder layers."""
    return units([name for name in points if layer_of(name) is not None], target_kind)


def _apply(
    loaded: LoadedModel, spec: QuantSpec, found: Sequence[Unit], decision: Decision
) -> tuple[QuantSpec, Placement]:
    members = {unit.name: unit.points for unit in found}
    declined = tuple((point, reason) for name, reason in decision.dropped.items() for point in members[name])
    final = replace(spec, declined=(*spec.declined, *declined))
    placement = decided(loaded.model, final)
    remove(loaded.model, {point.name for point in placement.points if not point.placed})
    drop_unused_scales(loaded.model)
    return final, placement
