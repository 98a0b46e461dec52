"""The one table of targets: how an engine of each is built and opened, and what it can do.

To add a target, write ``engines/<name>/`` with its build and its runner, and one entry of TARGETS here. Its passes are
an entry of ``export/passes/pipeline.py``. Nobody else compares a target's name; whoever needs to know asks the table.
Runtimes are imported inside the functions, so that reading the table costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.onnxruntime import OnnxRuntimeSettings
    from engines.openvino import OpenVINOSettings
    from engines.tensorrt import Probe, TensorRTSettings
    from engines.types import BuiltEngine, MatmulNames, Runner


@dataclass(frozen=True)
class EngineOptions:
    """What a caller asks of an engine; each target takes what means something to it.

    Attributes:
        threads: of one request; 0 is every core.
        precision_hint: what a CPU engine computes its floating-point part in, where it has the choice.
        shape: of every input, when the engine is opened for one shape; None is any.
        streams: requests that callers run at once, each on `threads` threads; 0 is one at a time.
        nodes: CPUs by NUMA node; with several, the threads of a request stay on one. Empty leaves that to the kernel.
        group: inputs of a linear that share a run-time scale, one of `Target.groups`; 0 is none.
        defaults: everything else as the runtime has it by default, for a fair rival.
        plan: settings of a TensorRT build; None is their defaults.
    """

    threads: int = 0
    precision_hint: str = "f32"
    shape: tuple[int, ...] | None = None
    streams: int = 0
    nodes: tuple[tuple[int, ...], ...] = ()
    group: int = 0
    defaults: bool = False
    plan: TensorRTSettings | None = None


@dataclass(frozen=True)
class Target:
    """One runtime.

    Attributes:
        name: also the folder of its files in a work directory.
        files: of a built engine in that folder; the first one is opened, and its suffix is this target's alone.
        build: (lowered graph, folder, options, multiplications to report or None for a floating-point engine).
            Raises BuildError, Unavailable.
        open: a runner of an engine file. Raises BuildError, Unavailable.
        backends: Triton backends that can serve its files, the default first.
        platform: of the Triton backend of its name, as Triton's own table has it.
        batches: whether that backend forms batches of requests.
        placement: what `--placement auto` decides for: targets of one kind get the same placement.
        gpu: an NVIDIA GPU runs it. The types in the graph then decide what its floating-point part computes in, a
            profile bounds its shapes, and a build takes minutes.
        probe: looks for what it needs beside a Python package of its name; None for a target that needs no more.
        dynamic: whether it can compute scales at run time.
        groups: numbers of inputs that can share such a scale, the fastest first; empty when the graph computes them.
        static: whether it runs one shape faster when it is opened for it.
    """

    name: str
    files: tuple[str, ...]
    build: Callable[[Path, Path, EngineOptions, MatmulNames | None], BuiltEngine]
    open: Callable[[Path, EngineOptions], Runner]
    backends: tuple[str, ...]
    platform: str = ""
    batches: bool = True
    placement: str = "cpu"
    gpu: bool = False
    probe: Callable[[], Probe] | None = None
    dynamic: bool = True
    groups: tuple[int, ...] = ()
    static: bool = False

    @property
    def engine(self) -> str:
        """Name of the file that is opened."""
        return self.files[0]

    @property
    def suffix(self) -> str:
        """Suffix of that file, by which `target_of` knows it."""
        return Path(self.engine).suffix


def _openvino_settings(options: EngineOptions) -> OpenVINOSettings:
    from engines.openvino import OpenVINOSettings

    return OpenVINOSettings(
        options.threads,
        options.precision_hint,
        options.group,
        options.shape,
        options.streams,
        pinned=len(options.nodes) > 1,
    )


def _build_openvino(lowered: Path, folder: Path, options: EngineOptions, names: MatmulNames | None) -> BuiltEngine:
    from engines.openvino import build

    return build(lowered, folder, _openvino_settings(options), names)


def _open_openvino(model: Path, options: EngineOptions) -> Runner:
    from engines.openvino import OpenVINORunner

    return OpenVINORunner(model, _openvino_settings(options))


def _onnxruntime_settings(options: EngineOptions) -> OnnxRuntimeSettings:
    from engines.onnxruntime import OnnxRuntimeSettings

    return OnnxRuntimeSettings(options.threads, options.defaults, options.streams, options.nodes)


def _build_onnxruntime(lowered: Path, folder: Path, options: EngineOptions, names: MatmulNames | None) -> BuiltEngine:
    from engines.onnxruntime import build

    return build(lowered, folder, _onnxruntime_settings(options), names)


def _open_onnxruntime(model: Path, options: EngineOptions) -> Runner:
    from engines.onnxruntime import OnnxRuntimeRunner

    return OnnxRuntimeRunner(model, _onnxruntime_settings(options))


def _build_tensorrt(lowered: Path, folder: Path, options: EngineOptions, names: MatmulNames | None) -> BuiltEngine:
    from engines.tensorrt import TensorRTSettings, build

    return build(lowered, folder, options.plan or TensorRTSettings(), names)


def _open_tensorrt(model: Path, _: EngineOptions) -> Runner:
    from engines.tensorrt import TensorRTRunner

    return TensorRTRunner(model)


def _probe_tensorrt() -> Probe:
    from engines.tensorrt import probe

    return probe()


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            "openvino",
            ("model.xml", "model.bin"),
            _build_openvino,
            _open_openvino,
            backends=("onnxruntime", "openvino"),
            batches=False,  # its batches are the client's (docs/triton.md says why)
            groups=(128, 64, 32),  # 128 was fastest on a BERT-base shape
            static=True,
        ),
        Target(
            "onnxruntime",
            ("engine.onnx",),
            _build_onnxruntime,
            _open_onnxruntime,
            backends=("onnxruntime", "openvino"),
            platform="onnxruntime_onnx",
        ),
        Target(
            "tensorrt",
            ("model.plan",),
            _build_tensorrt,
            _open_tensorrt,
            backends=("tensorrt",),
            platform="tensorrt_plan",
            placement="tensorrt",
            gpu=True,
            probe=_probe_tensorrt,
            dynamic=False,
        ),
    )
}
CPU_TARGETS = tuple(name for name, target in TARGETS.items() if not target.gpu)
BASELINE = "onnxruntime"  # the runtime whose FP32 engine every benchmark times, too


def target_of(file: Path) -> Target | None:
    """The target whose engines have the suffix of `file`, None for a file of another kind."""
    return next((target for target in TARGETS.values() if target.suffix == file.suffix), None)
