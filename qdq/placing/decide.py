"""The decision of `--placement auto` as a spec and a placement with a reason for every point left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qdq.calibrate.treatments.scale_residuals import drop_unused_scales
from qdq.inject import Placement, decided, remove
from qdq.inject.spec import QuantSpec
from qdq.placing.auto import Choice, affordable_checks, choose
from qdq.placing.costs import load_costs
from qdq.placing.search import Search, search
from qdq.placing.sensitivity.groups import layer_of
from qdq.placing.sensitivity.probe import Probe
from qdq.placing.units import Unit, units
from qdq.tasks.loading import EvaluationSettings, evaluation_of
from qdq.text.data import Record

if TYPE_CHECKING:
    from qdq.load.model import LoadedModel
    from qdq.tasks.evaluation import Evaluation

# Calibration texts that the divergence is measured on, evenly spaced. A clipped residual damages few texts very much,
# and a handful of texts may hold none of them.
TEXTS = 64
BATCH = 16
RANKING = 4  # every fourth of them ranks the units where the budget does not reach for more


@dataclass(frozen=True)
class SearchRequest:
    """What `--search` is asked for: `max_drop` in points, for a target and a sequence length."""

    target: str
    sequence: int
    max_drop: float


def decide_placement(
    loaded: LoadedModel,
    spec: QuantSpec,
    records: Sequence[Record],
    target: str,
    sequence: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[QuantSpec, Placement, Choice]:
    """Leave out what `choose` says of an injected and calibrated model, in place.

    Returns the spec that places the same points again, the placement, and how it was decided. Deterministic.
    """
    texts = records[:: -(-len(records) // TEXTS)]

    def answers(some: Sequence[Record]) -> Evaluation:
        return evaluation_of(some, loaded, EvaluationSettings(sequence, BATCH, overlap=-1), "calibration texts")

    evaluation = answers(texts)
    probe = Probe(loaded.module(), evaluation)
    found = encoder_units(probe.names, target)
    tokens = sum(int(feed["attention_mask"].sum()) for feed in evaluation.feeds)
    parameters = sum(p.numel() for n, p in loaded.model.named_parameters() if layer_of(n) is not None)
    choice = choose(
        *(probe, found, load_costs(target), affordable_checks(parameters, tokens), progress),
        fewer=lambda: Probe(loaded.module(), answers(texts[::RANKING])),
    )
    return *_apply(loaded, spec, found, choice), choice


def search_placement(
    loaded: LoadedModel,
    spec: QuantSpec,
    records: Sequence[Record],
    request: SearchRequest,
    progress: Callable[[int, int], None],
) -> tuple[QuantSpec, Placement, Choice, Search]:
    """As `decide_placement`, from the whole curve over `records`, which are training rows that did not calibrate.

    Without labels the divergence is bounded instead of the drop. The model is left as it was when nothing is within
    the limit (`Search.best` is None).
    """
    settings = EvaluationSettings(request.sequence, BATCH, overlap=-1)
    evaluation = evaluation_of(records, loaded, settings, "search rows")
    probe = Probe(loaded.module(), evaluation)
    found = encoder_units(probe.names, request.target)
    limit = request.max_drop if evaluation.labelled else None
    curve, choice = search(probe, found, load_costs(request.target), limit, progress)
    if curve.best is None:
        return spec, decided(loaded.model, spec), choice, curve
    return *_apply(loaded, spec, found, choice), choice, curve


def encoder_units(points: Iterable[str], target: str) -> tuple[Unit, ...]:
    """What is decided about: the units inside encoder layers."""
    return units([name for name in points if layer_of(name) is not None], target)


def _apply(loaded: LoadedModel, spec: QuantSpec, found: Sequence[Unit], choice: Choice) -> tuple[QuantSpec, Placement]:
    members = {unit.name: unit.points for unit in found}
    declined = tuple((point, reason) for name, reason in choice.dropped.items() for point in members[name])
    final = replace(spec, declined=(*spec.declined, *declined))
    remove(loaded.model, [point for point, _ in declined])
    drop_unused_scales(loaded.model)
    return final, decided(loaded.model, final)
