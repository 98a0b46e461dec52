"""What a TensorRT build is told: the shape ranges of its one optimization profile, memory, timing cache, effort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.types import TensorInfo
from qdq.errors import BuildError, ConfigError

Range = tuple[int, int, int]  # min, opt, max of one axis
AXES = ("batch", "choices", "sequence")


@dataclass(frozen=True)
class TensorRTSettings:
    """Settings of a build; `validate` refuses impossible ones.

    TensorRT tunes kernels for `opt` and accepts anything from `min` to `max`. opt = max = 40 x 128 is the workload the
    project measures. The minimum is 1 x 1, because a server also sends single short texts, and a low minimum costs
    nothing at `opt`. `choices` is the middle axis of multiple-choice inputs [batch, choices, sequence], from 1 to this.
    """

    batch_min: int = 1
    batch_opt: int = 40
    batch_max: int = 40
    sequence_min: int = 1
    sequence_opt: int = 128
    sequence_max: int = 128
    choices: int = 4
    workspace_gib: float = 4.0  # limit of scratch memory a kernel may ask for, GiB; encoders need far less
    timing_cache: Path | None = None  # read when it exists, written after the build; repeated builds take seconds
    optimization_level: int = 3  # 0..5, TensorRT's own default is 3; higher searches longer

    def validate(self) -> None:
        """Raise ConfigError naming the first impossible value."""
        for axis, (low, best, high) in self.ranges().items():
            if not 1 <= low <= best <= high:
                raise ConfigError(
                    f"TensorRT profile, {axis}: expected 1 <= min <= opt <= max, found {low}, {best}, {high}"
                )
        if self.workspace_gib <= 0:
            raise ConfigError(f"TensorRT workspace_gib: expected more than 0 GiB, found {self.workspace_gib}")
        if not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"TensorRT optimization_level: expected 0 to 5, found {self.optimization_level}")

    def ranges(self) -> dict[str, Range]:
        """(min, opt, max) of every named axis."""
        return {
            "batch": (self.batch_min, self.batch_opt, self.batch_max),
            "choices": (1, self.choices, self.choices),
            "sequence": (self.sequence_min, self.sequence_opt, self.sequence_max),
        }

    @property
    def workspace_bytes(self) -> int:
        """The workspace limit in bytes."""
        return int(self.workspace_gib * 2**30)

    def as_json(self) -> dict[str, Any]:
        """The settings as recorded in build.json; of the timing cache only the file name, paths differ by machine."""
        return {**asdict(self), "timing_cache": self.timing_cache.name if self.timing_cache else None}


def axes_of(tensor: TensorInfo) -> tuple[int | str, ...]:
    """Every dimension of an input as a fixed size or one of AXES.

    By position, because exporters choose their own symbol names: the first dynamic dimension counts as batch when it
    leads, as sequence when it is last, as choices in between. Raises BuildError for an input of other rank than 2 or 3.
    """
    rank = len(tensor.shape)
    if rank not in (2, 3):
        raise BuildError(
            f"input '{tensor.name}' has rank {rank}; an encoder input is [batch, sequence] or [batch, choices, "
            "sequence]"
        )
    names = ("batch", "sequence") if rank == 2 else AXES
    return tuple(size if isinstance(size, int) else name for size, name in zip(tensor.shape, names, strict=True))


def profile_shapes(
    inputs: Sequence[TensorInfo], settings: TensorRTSettings
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """(min, opt, max) shape of every input, for the one optimization profile. Raises BuildError as `axes_of` does."""
    ranges = settings.ranges()

    def shape(tensor: TensorInfo, which: int) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else ranges[axis][which] for axis in axes_of(tensor))

    return {tensor.name: (shape(tensor, 0), shape(tensor, 1), shape(tensor, 2)) for tensor in inputs}
