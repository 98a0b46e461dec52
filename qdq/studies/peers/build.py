"""Build and load the contestants of `qdq.studies.peers.race`, from one checkpoint and the same calibration texts.

Our stages, the FP32 export and the tools' quantizations run in processes of their own, whose seconds are counted from
their start: whoever comes first would otherwise pay for importing torch and warming its exporter up, and the next not.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.opening import Opening, open_runner
from engines.openvino import has_bf16
from engines.targets import TARGETS
from qdq.base.artifacts import atomic_path
from qdq.base.config import choice
from qdq.errors import BuildError, ConfigError, Unavailable
from qdq.loading.kinds import TASKS
from qdq.studies.models import batches, run_stages
from qdq.studies.peers.tools import FLOAT, TOOLS, build_artifact

if TYPE_CHECKING:
    from engines.types import Runner
    from qdq.base.types import Feeds
    from qdq.loading.model import EncoderModule, LoadedModel
    from qdq.text.data import Record

Built = tuple[Opening, dict[str, float]]  # bytes of its weights, seconds to its first answer: build_s, compile_s
TASK = "text-classification"  # of `qdq.studies.peers.compiled`
RACED = (TASK, "token-classification")  # tasks of models that race; both answer in ``logits``
OURS = {"qdq-openvino": "openvino", "qdq-onnxruntime": "onnxruntime"}  # contestant: target
TORCH = ("torch-fp32", "torch-dynamic")
CALIBRATION_BATCH = 8
OUT = "qdq"  # our work directory
TYPED = ("model", "calibration", "eval_data", "samples", "eval_samples", "threads", "precision_hint")
CALLS = 3  # while memory is measured
LIBRARIES = {
    "torch": ("torch", "transformers.models.auto.modeling_auto", "qdq.loading.model", "qdq.loading.runner"),
    "openvino": ("openvino", "engines.openvino"),
    "onnxruntime": ("onnxruntime", "engines.onnxruntime"),
}
NO_BF16 = "this CPU has no BF16 instructions, and OpenVINO's emulation is slower than FP32"


@dataclass(frozen=True)
class Material:
    """Inputs that every contestant is built from and checked on."""

    options: Namespace  # of the command line of `race`
    typed: Mapping[str, Any]  # options of our compile run
    folder: Path  # of the checkpoint
    loaded: LoadedModel  # in FP32
    threads: int
    calibration: Sequence[Feeds]  # int64 [8, S]
    texts: Sequence[Record]  # for accuracy and latency; nothing was calibrated on them
    float_export_s: float  # seconds of the plain FP32 export that every tool starts from


def prepare(options: Namespace) -> Material:
    """Read the texts and the model, and export FP32 for the tools.

    Raises QdqError, before anything is built for what the model or this machine cannot take.
    """
    from qdq.loading.model import load_model
    from qdq.loading.source import resolve
    from qdq.pipeline import options as pipeline
    from qdq.pipeline.run import prepare_torch
    from qdq.pipeline.stages.load import check_shape
    from qdq.pipeline.texts import calibration_texts, evaluation_texts

    # Refuse what cannot be done.
    if options.precision_hint == "bf16" and not has_bf16():
        raise ConfigError(f"--precision-hint: {NO_BF16}; leave it out")
    folder, name = resolve(options.model)
    batch, sequence = options.shapes[0]
    typed = {key: value for key in TYPED if (value := getattr(options, key)) is not None}
    typed |= {"target": "openvino", "batch": batch, "sequence": sequence, "out": str(options.work / OUT)}
    resolved = pipeline.resolve(pipeline.CompileOptions(**typed), name)
    prepare_torch(resolved.threads)
    loaded = load_model(str(folder))
    task = choice(loaded.task.name, RACED, "task of the model")
    for shape in options.shapes:
        check_shape(loaded, *shape)
    # The texts, and the file that every tool starts from.
    calibrated = calibration_texts(resolved, task)
    texts = evaluation_texts(resolved, task, calibrated).records
    calibration = batches(loaded, calibrated.records, (CALIBRATION_BATCH, sequence))
    float_export_s, _ = alone(export_plain, folder, task, calibration[0], options.work / FLOAT)
    return Material(options, typed, folder, loaded, resolved.threads, calibration, texts, float_export_s)


def build_all(material: Material, names: Sequence[str]) -> tuple[dict[str, Built], dict[str, str]]:
    """Build every contestant that can be built here; returns them, and the reason for every other.

    Ours must build: their errors are raised.
    """
    seconds = {FLOAT: 0.0}  # by what several contestants share
    built = {name: _ours(material, name, seconds) for name in names if name in OURS}
    built |= {name: _torch(material, name) for name in names if name in TORCH}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            if name in TOOLS:
                built[name] = _tool(material, name, seconds)
        except BuildError as error:
            skipped[name] = str(error)
    return built, skipped


def _ours(material: Material, name: str, seconds: dict[str, float]) -> Built:
    """Our engine; the first one also calibrates, exports and lowers for OpenVINO, which adds its `seconds`."""
    target, options = OURS[name], material.options
    out, lowered = options.work / OUT, target == "openvino"
    engine = out / target / TARGETS[target].engine
    if OUT not in seconds:
        seconds[OUT], _ = alone(run_stages, ("calibrate", "export", "lower"), material.typed)
    opening = Opening(target, str(engine), material.threads, options.precision_hint, static=True)
    stages = ("build",) if lowered else ("lower", "build")
    building, _ = alone(run_stages, stages, {"out": str(out), "target": target})
    build_s = seconds[OUT] + building + _first_call(material, opening)
    compiled = {"compile_s": seconds[OUT]} if lowered else {}
    return opening, {"bytes": _weights(engine), "build_s": build_s, **compiled}


def _torch(material: Material, name: str) -> Built:
    """The model in torch; its bytes are those of its state as torch saves it."""
    import torch

    opening, file = Opening(name, str(material.folder), material.threads), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a quantized state is a TypedStorage, whose use warns
        torch.save(_torch_module(opening).state_dict(), file)
    return opening, {"bytes": file.tell(), "build_s": _first_call(material, opening)}


def _tool(material: Material, name: str, seconds: dict[str, float]) -> Built:
    """A tool's engine; the first contestant that needs a file has it written, and adds its `seconds`."""
    tool, options = TOOLS[name], material.options
    if tool.hint == "bf16" and not has_bf16():
        raise Unavailable(f"OpenVINO in BF16: {NO_BF16}")
    path = options.work / tool.model
    if tool.model not in seconds:
        seconds[tool.model], _ = alone(build_artifact, options.work / FLOAT, material.calibration, path)
    opening = replace(tool, model=str(path), threads=material.threads, hint=tool.hint or options.precision_hint)
    return opening, {"bytes": _weights(path), "build_s": seconds[tool.model] + _first_call(material, opening)}


def _weights(engine: Path) -> int:
    """Bytes of OpenVINO's .bin, or of an ONNX file with its external data."""
    pattern = f"{engine.stem}.bin" if engine.suffix == ".xml" else f"{engine.name}*"
    return sum(file.stat().st_size for file in engine.parent.glob(pattern))


def _first_call(material: Material, opening: Opening) -> float:
    """Seconds to load a contestant and to get its first answer."""
    feeds = material.calibration[0]
    begin = time.perf_counter()
    open_peer(opening, feeds["input_ids"].shape)(feeds)
    return time.perf_counter() - begin


def export_plain(folder: Path, task: str, feeds: Feeds, path: Path) -> None:
    """Export the checkpoint in `folder` as other tools' users do: torch's TorchScript exporter, eager attention.

    ONNX Runtime's and NNCF's own fusions are written for this form of the graph; ours would put them at a disadvantage.
    """
    import torch

    auto = TASKS[task].auto()
    model = auto.from_pretrained(str(folder), attn_implementation="eager", dtype=torch.float32, return_dict=False)
    axes = {0: "batch", 1: "sequence"}
    answers = axes if task == "token-classification" else {0: "batch"}
    sample = {name: torch.from_numpy(array[:2]) for name, array in feeds.items()}
    with atomic_path(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and says so at length
        torch.onnx.export(
            model.eval(),
            kwargs=sample,
            f=str(partial),
            dynamo=False,
            opset_version=17,
            input_names=list(sample),
            output_names=["logits"],
            dynamic_axes=dict.fromkeys(sample, axes) | {"logits": answers},
        )


def alone(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Call `function` in a process of its own: seconds from its start to its end, imports included, and the result.

    What it raises is raised here. Raises BuildError when the process is killed.
    """
    begin = time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            result = process.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise BuildError(f"{function.__name__}: its process was killed; is there enough memory?") from error
    return time.perf_counter() - begin, result


def open_peer(opening: Opening, shape: tuple[int, ...]) -> Runner:
    """Any contestant, for feeds of `shape` [batch, sequence]. Raises QdqError when it cannot be loaded."""
    if not opening.engine.startswith("torch"):
        return open_runner(opening, shape)
    from qdq.loading.runner import TorchRunner

    return TorchRunner(_torch_module(opening), opening.threads)


def _torch_module(opening: Opening) -> EncoderModule:
    """The model in FP32, or with torch's dynamic quantization of every linear."""
    import torch

    from qdq.loading.model import load_model

    module = load_model(opening.model).module()
    if opening.engine == "torch-dynamic":
        quantize: Any = torch.ao.quantization.quantize_dynamic
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.ao is deprecated in favour of torchao
            module = quantize(module, {torch.nn.Linear}, dtype=torch.qint8)
    return module


def peak_memory(opening: Opening, feeds: Feeds) -> int:
    """Bytes that loading the contestant and a few calls on `feeds` add to a process that has imported its libraries.

    Measured in this process, so it needs one of its own. Raises QdqError when the contestant cannot be loaded.
    """
    for module in LIBRARIES["torch" if opening.engine.startswith("torch") else opening.engine]:
        importlib.import_module(module)
    if opening.engine == "openvino":
        import openvino

        openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")  # loads the CPU plugin
    before = _resident("VmRSS")
    # Let the kernel count the peak from here on (proc(5), clear_refs); where it cannot, importing counts, too.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    run = open_peer(opening, next(iter(feeds.values())).shape)
    for _ in range(CALLS):
        run(feeds)
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """Bytes of ``VmRSS`` (now) or ``VmHWM`` (peak) of this process, which only Linux tells."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kibibytes,) = re.findall(rf"^{field}:\s*(\d+) kB", status, flags=re.MULTILINE)
    return int(kibibytes) * 1024
