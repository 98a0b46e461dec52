"""Options of the race, as values every part of it reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from qdq.errors import ConfigError

if TYPE_CHECKING:
    pass

RANDOM = "random:bert-base"


LEAST_ROUNDS, MOST_ROUNDS = 3, 100


Shape = tuple[int, int]


@dataclass(frozen=True)
class PeerOptions:
    """What is compared.

    Attributes:
        model: sequence-classification checkpoint; calibration, eval_data: as in CompileOptions.
        work: where everything is built, and found again by a later run.
        only: names of contestants; all when empty.
        shapes: batch x sequence of the races; accuracy and memory are of the first.
        rounds: of the shape with the most tokens. Smaller ones get more, for about the same time, up to 100.
        precision_hint: what our OpenVINO engine and NNCF's compute in outside INT8.
    """

    model: str
    calibration: str | None = None
    eval_data: str | None = None
    work: Path = Path("build/peers")
    only: tuple[str, ...] = ()
    shapes: tuple[Shape, ...] = ((40, 128),)
    samples: int = 128
    eval_samples: int = 512
    rounds: int = 10
    threads: int = 0
    precision_hint: str = "f32"

    def __post_init__(self) -> None:
        if not self.shapes or len(set(self.shapes)) < len(self.shapes):
            raise ConfigError(f"shapes {self.shapes}: give at least one batch x sequence, and none twice")
        if self.rounds < LEAST_ROUNDS:
            raise ConfigError(
                f"--rounds: {self.rounds} is less than {LEAST_ROUNDS}, whose median one outlier cannot move"
            )

    @cached_property
    def folder(self) -> Path:
        """The checkpoint's folder. Raises ModelError."""
        from qdq.load.source import resolve

        return resolve(self.model)[0]

    def rounds_of(self, shape: Shape) -> int:
        """Rounds of the race at `shape`."""
        most = max(batch * sequence for batch, sequence in self.shapes)
        return max(self.rounds, min(MOST_ROUNDS, self.rounds * most // (shape[0] * shape[1])))
