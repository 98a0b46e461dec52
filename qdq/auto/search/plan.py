"""The plan: the next candidate, how long it is trained, and why others are not tried, by recorded numbers. No torch.

A candidate's worth is its expected gain, the logarithm of how much faster it is expected to be than the fastest engine
so far within the drop, times the chance that it stays within it, divided by its expected seconds. Everything that
enters is on disk, so a search that was killed decides as it would have decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from qdq.auto.search.candidates import (
    BASE,
    FLOAT_TIME,
    PTQ,
    QAT,
    WHOLE,
    Candidate,
    Tried,
    chance,
    expected_drop,
    expected_time,
)

FIRST_SHARE = 0.6  # of the time left goes to one training: long enough to be good, and another one still fits
FEWEST_STEPS = 60
MOST_EPOCHS = 8.0
CHECKPOINTS = 5  # of a training; each is scored, and the best is kept
EVALUATIONS = (
    CHECKPOINTS + 3
)  # beside them the model that is given, the student before its first step, and the best one
HOPELESS = 0.02  # chance of staying within the drop below which nothing is trained
WORTH_REGAINING = 0.1  # points lost by quantization below which another way of quantizing has nothing to win
START_SECONDS = 8.0  # of a process: imports


@dataclass(frozen=True)
class Costs:
    """Measured seconds that plans are made with.

    Attributes:
        step: of one training step of a student of full width, its teacher included.
        teacher: of them, the teacher's.
        evaluation: of one scoring of the rows that choose, in torch.
        engine: from a checkpoint to a scored engine.
        rows: training texts.
        batch: texts of a step.
        qat: of a step with quantizers over one without.
    """

    step: float
    teacher: float
    evaluation: float
    engine: float
    rows: int
    batch: int
    qat: float = 2.0

    def step_of(self, candidate: Candidate) -> float:
        """Seconds of one step of the candidate's training."""
        own = (self.step - self.teacher) * float(candidate.width)
        return self.teacher + own * (self.qat if candidate.quantization == QAT else 1.0)

    @property
    def finish(self) -> float:
        """Seconds that verifying, timing and deploying the chosen engine and the race take."""
        return 1.5 * self.engine


@dataclass(frozen=True)
class Planned:
    """The next candidate, its training steps (0: nothing is to be trained), and the seconds it is expected to take."""

    candidate: Candidate
    steps: int
    seconds: float
    why: str
    start: Fraction = WHOLE  # width of the student it is cut from


@dataclass(frozen=True)
class Situation:
    """Everything a decision depends on: what was tried, the allowed drop, the costs, and the seconds left."""

    tried: Sequence[Tried]
    max_drop: float
    costs: Costs
    left: float

    @property
    def done(self) -> set[Candidate]:
        """Candidates that were tried."""
        return {one.candidate for one in self.tried}

    @property
    def fastest(self) -> tuple[float, str]:
        """Expected time and name of the fastest candidate within the drop so far; FP32's where there is none."""
        within = [one.candidate for one in self.tried if one.drop <= self.max_drop]
        found = min(within, key=expected_time, default=None)
        return (FLOAT_TIME, "FP32") if found is None else (expected_time(found), found.name)

    def trained(self, candidate: Candidate) -> bool:
        """True when the floating-point model it quantizes is there already."""
        return candidate.width == WHOLE or any(one.candidate.width == candidate.width for one in self.tried)

    def start(self, candidate: Candidate) -> Fraction:
        """Width of the narrowest trained student that the candidate can be cut from; 1 is the given model.

        One that was trained already has less far to go, and learns from the same teacher.
        """
        wider = (one.candidate.width for one in self.tried if one.candidate.width > candidate.width)
        return min(wider, default=WHOLE)


def next_candidate(candidates: Sequence[Candidate], now: Situation, share: float = FIRST_SHARE) -> Planned | None:
    """The candidate that promises most for its seconds; None when nothing promises anything or fits."""
    if BASE not in now.done:
        return Planned(BASE, 0, now.costs.engine, "every other engine is measured by it")
    planned = [found for one in candidates if isinstance(found := plan(one, now, share), Planned)]
    return max(planned, key=lambda one: _worth(one, now), default=None)


def _worth(planned: Planned, now: Situation) -> float:
    return _gain(planned.candidate, now) * _chance(planned.candidate, now) / planned.seconds


def _gain(candidate: Candidate, now: Situation) -> float:
    return math.log(now.fastest[0] / expected_time(candidate))


def _chance(candidate: Candidate, now: Situation) -> float:
    return chance(expected_drop(candidate, now.tried), now.max_drop)


def plan(candidate: Candidate, now: Situation, share: float = FIRST_SHARE) -> Planned | str:
    """The way the candidate would be made in the time left, or the reason why it is not worth it or cannot be."""
    if reason := _needless(candidate, now):
        return reason
    steps = _steps(candidate, now, share)
    if isinstance(steps, str):
        return steps
    seconds = START_SECONDS + now.costs.engine + _training(candidate, steps, now.costs)
    if seconds > now.left:
        return f"no time left: it takes about {seconds:.0f} s, {max(0.0, now.left):.0f} s are left"
    gain, expected = now.fastest[0] / expected_time(candidate), expected_drop(candidate, now.tried)
    why = f"expected {gain:.2f} x as fast as {now.fastest[1]}, {expected:+.2f} points lost, {seconds:.0f} s" + (
        f" with {steps} steps" if steps else ""
    )
    start = now.start(candidate) if steps and candidate.quantization != QAT else WHOLE
    why += f" on from width {start}" if start != WHOLE else ""
    return Planned(candidate, steps, seconds, why, start)


def _needless(candidate: Candidate, now: Situation) -> str:
    """The reason not to try it whatever the time, "" when there is none."""
    if candidate in now.done:
        return "tried"
    same = [one for one in now.tried if one.candidate.width == candidate.width and not one.candidate.embeddings]
    plain = next((one for one in same if one.candidate.quantization == PTQ), None)
    if candidate.embeddings:
        if plain is None or expected_time(plain.candidate) > now.fastest[0] or plain.drop > now.max_drop:
            return "a smaller file of the same speed: only of the engine that is kept"
    elif expected_time(candidate) >= now.fastest[0] - 1e-9:
        time = 1 / expected_time(candidate)
        return f"expected {time:.2f} x the whole INT8 engine's speed; {now.fastest[1]}, within the drop, is faster"
    if not candidate.embeddings and candidate.quantization != PTQ:
        if plain is None:
            return "only where ptq of the same model has lost too much"
        if plain.by_quantization < WORTH_REGAINING:
            return f"ptq of the same model loses {plain.by_quantization:+.2f} points itself: nothing to win back"
    expected = expected_drop(candidate, now.tried)
    if chance(expected, now.max_drop) < HOPELESS:
        return f"expected to lose {expected:.2f} points, by what others lost"
    return ""


def _steps(candidate: Candidate, now: Situation, share: float) -> int | str:
    """Training steps for the time left; 0 when nothing is left to train; the reason when too few fit."""
    needs = candidate.quantization == QAT or not now.trained(candidate)
    if not needs:
        return 0
    costs = now.costs
    room = share * (now.left - costs.engine - START_SECONDS) - EVALUATIONS * costs.evaluation
    most = int(MOST_EPOCHS * costs.rows / costs.batch)
    steps = min(int(room / costs.step_of(candidate)), most)
    fewest = min(FEWEST_STEPS, most)
    if steps < fewest:
        least = _training(candidate, fewest, costs) + costs.engine + START_SECONDS
        return f"no time left: {fewest} steps take about {least:.0f} s, {max(0.0, now.left):.0f} s are left"
    return steps


def _training(candidate: Candidate, steps: int, costs: Costs) -> float:
    return steps * costs.step_of(candidate) + (EVALUATIONS * costs.evaluation if steps else 0.0)
