"""The one table of targets: how an engine of each is built and opened, and what it can do.

To add a target, write ``engines/<name>/`` with its build and its runner, and one entry of TARGETS here. Its passes are
an entry of ``export/passes/pipeline.py``. Nobody else compares a target's name; whoever needs to know asks the table.
Runtimes are imported inside the functions, so that reading the table costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from qdq.base.packing import FULL

if TYPE_CHECKING:
    from engines.tensorrt import Probe, TensorRTSettings
    from engines.types import BuiltEngine, MatmulNames, Runner


@dataclass(frozen=True)
class EngineOptions:
    """Everything a caller can ask of an engine; each target takes what means something to it."""

    threads: int = 0  # of one request; 0 is every core
    precision_hint: str = "f32"  # what a CPU engine computes its floating-point part in, where it has the choice
    shape: tuple[int, ...] | None = None  # of every input, when the engine is opened for one shape
    streams: int = 0  # requests that callers run at once, each on `threads` threads; 0 is one at a time
    full: float = FULL  # share of real tokens from which a packed graph runs without its packing
    nodes: tuple[tuple[int, ...], ...] = ()  # CPUs by NUMA node; with several, the threads of a request stay on one
    group: int = 0  # inputs of a linear that share a run-time scale, one of `Target.groups`; 0 is none
    defaults: bool = False  # everything else as the runtime has it by default, for a fair rival
    plan: TensorRTSettings | None = None  # settings of a TensorRT build; None is their defaults
    capability: int = 75  # oldest compute capability that an engine for NVIDIA GPUs suits, 75 is 7.5


class Runtime(NamedTuple):
    """The functions of one target with their settings: build(lowered, folder, names=...), and open(file)."""

    build: Callable[..., BuiltEngine]
    open: Callable[[Path], Runner]


@dataclass(frozen=True)
class Target:
    """One runtime.

    `gpu`: an NVIDIA GPU runs it. The types in the graph then decide what its floating-point part computes in, a profile
    bounds its shapes, and a build takes minutes. `batches`: the Triton backend of its name forms batches of requests.
    Triton's openvino backend does not: it fixes the batch to ``max_batch_size`` and refuses (or zero-pads, into a
    buffer that a dynamic sequence leaves unsized) anything smaller, so the client's own batch dimension is passed
    through (github.com/triton-inference-server/openvino_backend, src/openvino.cc, ValidateInputs, SetInputTensors).
    """

    name: str  # also the folder of its files in a work directory
    files: tuple[str, ...]  # of a built engine in that folder; the first is opened, its suffix is this target's alone
    runtime: Callable[[EngineOptions], Runtime]  # its two functions, told the options; imports the runtime
    backends: tuple[str, ...]  # Triton backends that can serve its files, the default first
    platform: str = ""  # of the Triton backend of its name, as Triton's own table has it
    batches: bool = True
    placement: str = "cpu"  # what `--placement auto` decides for: targets of one kind get the same placement
    gpu: bool = False
    probe: Callable[[], Probe] | None = None  # looks for what it needs beside a Python package of its name
    portable: bool = False  # its engines are built on any machine, for a GPU of another
    since: Mapping[str, int] = field(default_factory=dict)  # compute capability from which it has a float type
    compiles: bool = False  # NVIDIA's compiler, which needs no GPU, says what becomes of its graphs
    dynamic: bool = True  # it can compute scales at run time
    groups: tuple[int, ...] = ()  # inputs that can share such a scale, fastest first; () when the graph computes them
    static: bool = False  # it runs one shape faster when it is opened for it

    def build(self, lowered: Path, folder: Path, options: EngineOptions, names: MatmulNames | None) -> BuiltEngine:
        """Build the graph `lowered` into `folder` and report `names`, None for a floating-point engine.

        Raises BuildError when the runtime refuses the graph, Unavailable when this machine lacks what it needs.
        """
        return self.runtime(options).build(lowered, folder, names=names)

    def open(self, engine: Path, options: EngineOptions) -> Runner:
        """A runner of an engine file. Raises BuildError when it cannot be loaded, Unavailable as `build`."""
        return self.runtime(options).open(engine)

    @property
    def engine(self) -> str:
        """Name of the file that is opened."""
        return self.files[0]

    @property
    def suffix(self) -> str:
        """Suffix of that file, by which `target_of` knows it."""
        return Path(self.engine).suffix


def _openvino(options: EngineOptions) -> Runtime:
    from engines.openvino import OpenVINORunner, OpenVINOSettings, build

    settings = OpenVINOSettings(
        options.threads,
        options.precision_hint,
        options.group,
        options.shape,
        options.streams,
        pinned=len(options.nodes) > 1,
        full=options.full,
    )
    return Runtime(partial(build, settings=settings), partial(OpenVINORunner, settings=settings))


def _onnxruntime(options: EngineOptions) -> Runtime:
    from engines.onnxruntime import OnnxRuntimeRunner, OnnxRuntimeSettings, build

    settings = OnnxRuntimeSettings(options.threads, options.defaults, options.streams, options.nodes)
    return Runtime(partial(build, settings=settings), partial(OnnxRuntimeRunner, settings=settings))


def _tensorrt(options: EngineOptions) -> Runtime:
    from engines.tensorrt import TensorRTRunner, TensorRTSettings, build

    return Runtime(partial(build, settings=options.plan or TensorRTSettings()), TensorRTRunner)


def _tensorrt_rtx(options: EngineOptions) -> Runtime:
    from engines.tensorrt import TensorRTSettings
    from engines.tensorrt_rtx import build, open_plan

    settings = options.plan or TensorRTSettings()
    return Runtime(partial(build, settings=settings, capability=options.capability), open_plan)


def _probe_tensorrt() -> Probe:
    from engines.tensorrt import probe

    return probe()


def _probe_tensorrt_rtx() -> Probe:
    from engines.tensorrt import Probe
    from engines.tensorrt_rtx import missing

    reason = missing()
    return Probe(missing=(reason,) if reason else ())


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            "openvino",
            ("model.xml", "model.bin"),
            _openvino,
            backends=("onnxruntime", "openvino"),
            batches=False,
            groups=(128, 64, 32),  # 128 was fastest on a BERT-base shape
            static=True,
        ),
        Target(
            "onnxruntime",
            ("engine.onnx",),
            _onnxruntime,
            backends=("onnxruntime", "openvino"),
            platform="onnxruntime_onnx",
        ),
        Target(
            "tensorrt",
            ("model.plan",),
            _tensorrt,
            backends=("tensorrt",),
            platform="tensorrt_plan",
            placement="tensorrt",
            gpu=True,
            probe=_probe_tensorrt,
            compiles=True,
            dynamic=False,
        ),
        Target(
            "tensorrt-rtx",
            ("model.rtx", "run_engine.py"),
            _tensorrt_rtx,
            backends=(),  # Triton has none for it
            placement="tensorrt",
            gpu=True,
            probe=_probe_tensorrt_rtx,
            portable=True,
            since={"fp32": 80, "bf16": 80},  # datacenter TensorRT has FP32 on Turing, too
            compiles=True,
            dynamic=False,
        ),
    )
}
CPU_TARGETS = tuple(name for name, target in TARGETS.items() if not target.gpu)
BASELINE = "onnxruntime"  # the runtime whose FP32 engine every benchmark times, too


def target_of(file: Path) -> Target | None:
    """The target whose engines have the suffix of `file`, None for a file of another kind."""
    return next((target for target in TARGETS.values() if target.suffix == file.suffix), None)
