"""Settings of a TensorRT build: shape ranges of its profiles, memory, effort, timing cache, and portability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engines.packing import Packing
from engines.types import TensorInfo
from qdq.base.choices import HARDWARE
from qdq.base.config import choice
from qdq.errors import BuildError, ConfigError

Range = tuple[int, int, int]  # min, opt, max of one axis
AXES = ("batch", "choices", "sequence")
NAMED_AXES = ("rows", "texts", "length", "tokens")  # of a batch without padding, called so in the graph

AMPERE = 8.0  # compute capability from which AMPERE_PLUS builds and loads; a T4 has 7.5
SAME_CAPABILITY_SINCE = (10, 9)  # first TensorRT with SAME_COMPUTE_CAPABILITY


@dataclass(frozen=True)
class TensorRTSettings:
    """Settings of a build; `validate` refuses impossible ones, `check_weights` those that do not suit the graph.

    TensorRT tunes kernels for `opt` and accepts anything from `min` to `max`. opt = max = 40 x 128 is the workload the
    project measures. The minimum is 1 x 1, because a server also sends single short texts, and a low minimum costs
    nothing at `opt`. `choices` is the middle axis of multiple-choice inputs [batch, choices, sequence], from 1 to this.

    buckets: lengths that get an optimization profile of their own behind the one of all shapes: exactly this sequence,
        and any batch. Kernels are tuned for each, and a fixed length is what CUDA graphs need.
    timing_cache: kernel timings, read when the file exists and written after the build: the next build with the same
        TensorRT on the same GPU model does not measure them again.
    version_compatible: the plan also loads in later TensorRT versions; it grows by the lean runtime it carries, may be
        slower, and whoever loads it must allow it to run host code.
    hardware_compatibility: none: the plan runs on this GPU model only. same_compute_capability: on all GPUs of this
        one's compute capability (Turing and later, TensorRT 10.9 and later). ampere_plus: on Ampere and every later
        GPU, so neither built nor loaded on a T4; at most 48 KiB shared memory, some fusions are lost. Both give up
        cuBLAS and cuDNN kernels and may be slower.
    """

    batch_min: int = 1
    batch_opt: int = 40
    batch_max: int = 40
    sequence_min: int = 1
    sequence_opt: int = 128
    sequence_max: int = 128
    choices: int = 4
    buckets: tuple[int, ...] = ()
    workspace_gib: float = 4.0  # limit of scratch memory a kernel may ask for; encoders need far less
    timing_cache: Path | None = None
    optimization_level: int = 3  # 0..5, TensorRT's own default is 3; higher tries more kernels
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    refit: bool = False  # the weights of the plan can be replaced; not with Q/DQ, see `check_weights`
    strip_weights: bool = False  # the plan carries no weights and must be refitted before it runs; not with Q/DQ
    packing: Packing | None = None  # the form of the graph's batch, None for a padded one

    def validate(self) -> None:
        """Raise ConfigError naming the first impossible value."""
        for axis, (low, best, high) in self.ranges().items():
            if not 1 <= low <= best <= high:
                raise ConfigError(
                    f"TensorRT profile, {axis}: expected 1 <= min <= opt <= max, found {low}, {best}, {high}"
                )
        self._check_buckets()
        if self.workspace_gib <= 0:
            raise ConfigError(f"TensorRT workspace_gib: expected more than 0 GiB, found {self.workspace_gib}")
        if not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"TensorRT optimization_level: expected 0 to 5, found {self.optimization_level}")
        choice(self.hardware_compatibility, HARDWARE, "TensorRT hardware_compatibility")

    def _check_buckets(self) -> None:
        if self.buckets and self.packing:
            raise ConfigError("TensorRT buckets: a batch without padding has no lengths to pad to; leave them out")
        fitting = all(self.sequence_min <= length <= self.sequence_max for length in self.buckets)
        if list(self.buckets) != sorted(set(self.buckets)) or not fitting:
            raise ConfigError(
                f"TensorRT buckets: expected increasing lengths from {self.sequence_min} to {self.sequence_max}, found "
                f"{', '.join(map(str, self.buckets))}"
            )

    def profiles(self) -> tuple[TensorRTSettings, ...]:
        """The settings of each optimization profile: of all shapes first, then of each bucket."""
        fixed = [
            replace(self, buckets=(), sequence_min=length, sequence_opt=length, sequence_max=length)
            for length in self.buckets
        ]
        return (replace(self, buckets=()), *fixed)

    def ranges(self) -> dict[str, Range]:
        """(min, opt, max) of every named axis."""
        return {
            "batch": (self.batch_min, self.batch_opt, self.batch_max),
            "choices": (1, self.choices, self.choices),
            "sequence": (self.sequence_min, self.sequence_opt, self.sequence_max),
            **(self.packing.ranges() if self.packing else {}),
        }

    def as_json(self) -> dict[str, Any]:
        """The settings as recorded in build.json; of the timing cache only the file name, paths differ by machine."""
        cache = self.timing_cache.name if self.timing_cache else None
        plain = {name: value for name, value in asdict(self).items() if value or name not in ("packing", "buckets")}
        return {**plain, "timing_cache": cache}


def check_weights(settings: TensorRTSettings, model: Path) -> None:
    """Raise ConfigError for `refit` or `strip_weights` on a graph with Q/DQ.

    A refittable engine must stay right for any weights, so TensorRT leaves out the rewrites that rely on equal scales
    (its documentation on Q/DQ propagation), which are what makes INT8 fast. A stripped plan is refittable by nature.
    """
    asked = [name for name in ("refit", "strip_weights") if getattr(settings, name)]
    if not asked:
        return
    import onnx

    operators = {node.op_type for node in onnx.load(model, load_external_data=False).graph.node}
    if operators & {"QuantizeLinear", "DequantizeLinear"}:
        raise ConfigError(
            f"TensorRT {asked[0]}: {model} holds Q/DQ nodes, and a refittable engine gives up the rewrites that make "
            f"INT8 fast; build without {asked[0]}, or build the floating-point graph"
        )


def check_machine(settings: TensorRTSettings, capability: float | None, release: tuple[int, ...]) -> None:
    """Raise ConfigError for a hardware compatibility that this GPU or this TensorRT does not have.

    `capability` is the GPU's compute capability (7.5), None when unknown; `release` is TensorRT's (10, 9).
    """
    level = settings.hardware_compatibility
    if level == "ampere_plus" and capability is not None and capability < AMPERE:
        raise ConfigError(
            f"TensorRT hardware_compatibility: ampere_plus needs compute capability {AMPERE} (Ampere) or more to build "
            f"and to load, this GPU has {capability}; use same_compute_capability or none"
        )
    if level == "same_compute_capability" and release < SAME_CAPABILITY_SINCE:
        raise ConfigError(
            "TensorRT hardware_compatibility: same_compute_capability needs TensorRT 10.9 or later, this is "
            f"{'.'.join(map(str, release))}; install a later one, or use none"
        )


def axes_of(tensor: TensorInfo) -> tuple[int | str, ...]:
    """Every dimension of an input as a fixed size or one of AXES or NAMED_AXES.

    By position, because exporters choose their own symbol names: the first dynamic dimension counts as batch when it
    leads, as sequence when it is last, as choices in between. An input that has one of NAMED_AXES names all of its.
    Raises BuildError for another input of other rank than 2 or 3.
    """
    rank = len(tensor.shape)
    if not set(NAMED_AXES).isdisjoint(tensor.shape):
        return tuple(size if isinstance(size, int) else str(size) for size in tensor.shape)
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
    """(min, opt, max) shape of every input, for the first optimization profile. Raises BuildError as `axes_of` does."""
    ranges = settings.ranges()

    def shape(tensor: TensorInfo, which: int) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else ranges[axis][which] for axis in axes_of(tensor))

    return {tensor.name: (shape(tensor, 0), shape(tensor, 1), shape(tensor, 2)) for tensor in inputs}
