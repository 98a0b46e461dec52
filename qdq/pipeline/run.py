"""The context that the stages of one run share: resolved options, the work directory, the screen, texts, versions.

What one stage makes for the next is a file in the work directory, or is handed over as an argument.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from qdq.base.screen import Screen
from qdq.base.versions import versions
from qdq.loading.source import is_checkpoint
from qdq.pipeline.options import CompileOptions
from qdq.pipeline.texts import Texts, calibration_texts, evaluation_texts
from qdq.pipeline.workdir import SEED, WorkDirectory

if TYPE_CHECKING:
    from qdq.loading.model import LoadedModel

CANONICAL = "model.qdq.onnx"
FLOAT = "model.fp32.onnx"
# mallopt(3): M_MMAP_THRESHOLD (its largest), M_TRIM_THRESHOLD and M_TOP_PAD, in bytes
MALLOC = ((-3, 32 * 1024**2), (-1, 512 * 1024**2), (-2, 64 * 1024**2))
# Stages that run once per target; the others run once per work directory.
TARGET_STAGES = ("lower", "variants", "build", "verify", "bench", "deploy")


@dataclass(frozen=True)
class Run:
    """One run in one work directory.

    `versions` are of everything installed that shapes a file, our own sources included; every stage depends on them.
    """

    options: CompileOptions  # resolved
    work: WorkDirectory
    screen: Screen
    name: str  # short name of the model; Triton serves it under this name
    source: Path | None = None  # the model's folder; None in a run that starts from the calibrated checkpoint
    versions: Mapping[str, str] = field(default_factory=versions)
    rivals: tuple[str, ...] = ()  # for `--target auto` on a CPU: the targets it may become; () when one was named

    def aimed_at(self, target: str, rivals: tuple[str, ...] | None = None) -> Run:
        """The same run for `target`, and with these `rivals`; what has been read or loaded is shared."""
        other = replace(
            self,
            options=replace(self.options, target=target),
            rivals=self.rivals if rivals is None else rivals,
        )
        shared = vars(self).keys() & {"calibration", "evaluation", "reference"}
        vars(other).update({name: vars(self)[name] for name in shared})
        return other

    @property
    def target(self) -> Path:
        """Folder of the target's files."""
        return self.work.path / self.options.target

    @property
    def checkpoint(self) -> Path:
        """The calibrated checkpoint."""
        return self.work.path / "checkpoint"

    @property
    def folder(self) -> Path:
        """Folder of the model this run starts from."""
        return self.source or self.checkpoint

    @property
    def lowered(self) -> Path:
        """The target's graph."""
        return self.target / "model.onnx"

    @property
    def keeps_spec(self) -> bool:
        """True when the model is a checkpoint of ours and nobody asked for another placement."""
        return is_checkpoint(self.folder) and self.options.placement is None and self.options.spec is None

    def note(self) -> None:
        """Put into the manifest what this run is about. Only when something is done: a failed run is not recalled."""
        options = {key: value for key, value in self.options.as_json().items() if key != "out"}
        if self.rivals:  # a stage's own command goes on with the winner, and with the other engine beside it
            options["target"] = "auto"
        self.work.manifest |= {"versions": dict(self.versions), "options": options, "model": {"name": self.name}}

    def record(self, stage: str) -> str:
        """Key of a stage in the manifest."""
        return f"{self.options.target}/{stage}" if stage in TARGET_STAGES else stage

    @cached_property
    def calibration(self) -> Texts:
        """The texts of stage 3. Raises DataError, ConfigError."""
        return calibration_texts(self.options, self.options.task)

    @cached_property
    def evaluation(self) -> Texts:
        """The texts of stages 7 to 9, none of which was calibrated on. Raises DataError, ConfigError."""
        return evaluation_texts(self.options, self.options.task, self.calibration)

    @cached_property
    def reference(self) -> LoadedModel:
        """The floating-point model that engines are compared with, loaded once for stages 5 to 9. Raises ModelError."""
        return load_float(self)


def load_float(run: Run) -> LoadedModel:
    """The floating-point model, from the checkpoint's original parameters. Raises ModelError."""
    from qdq.calibrate.checkpoint import read_spec
    from qdq.loading.model import load_model

    prepare_torch(run.options.threads)
    task = read_spec(run.checkpoint)[1]["task"]
    return load_model(str(run.checkpoint), task=task, model_class=run.options.model_class)


def prepare_torch(threads: int) -> None:
    """Seed, threads and memory; whoever loads a model calls this first, so that a run without any needs no torch."""
    import torch

    torch.manual_seed(SEED)
    torch.set_num_threads(threads)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let glibc's allocator reuse large blocks instead of returning them to the kernel, which clears every page anew.

    A quarter of a compile's seconds were page faults: every forward frees and asks for the same tensors.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in MALLOC:
            mallopt(parameter, value)
