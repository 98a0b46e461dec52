"""The contestants of `qdq.studies.peers.race`, built once: what earlier runs in the work directory made is used again.

Everything is recorded in the work directory's manifest by what it depends on: the checkpoint, the texts, the options,
installed versions, and for ours the source code. So a second run with other rounds or shapes only times.

Our stages, the FP32 export and the tools' quantizations run in processes of their own, whose seconds are counted from
their start: whoever comes first would otherwise pay for importing torch and warming its exporter up, and the next not.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import atomic_path, read_json, sha256_file, sha256_json, sha256_tree, write_json
from qdq.errors import BuildError, Unavailable
from qdq.studies.peers.memory import dynamic, open_peer

if TYPE_CHECKING:
    from engines.types import Feeds
    from qdq.pipeline.run import Run
    from qdq.pipeline.workdir import WorkDirectory
    from qdq.studies.peers import Material, Opening
    from qdq.studies.peers.options import PeerOptions

OURS = {"qdq-openvino": "openvino", "qdq-onnxruntime": "onnxruntime"}  # contestant: target
TORCH = ("torch-fp32", "torch-dynamic")
WEIGHTS = {"openvino": "model.bin", "onnxruntime": "engine.onnx*"}
ROOT = Path(__file__).resolve().parents[3]

Made = tuple[dict[str, Any], Sequence[Path]]  # what is remembered, and the files it is about


@dataclass(frozen=True)
class Peer:
    """A contestant that can be loaded: bytes of its weights on disk, seconds to its first answer (of our OpenVINO
    engine also to the lowered graph), and its files' hashes, by which later records know it.
    """

    name: str
    opening: Opening
    bytes: int
    build_s: float
    compile_s: float | None
    files: Mapping[str, str]


@dataclass
class Builder:
    """Builds what is asked for in `options.work`, whose lock `work` holds."""

    options: PeerOptions
    work: WorkDirectory

    def kept(self, name: str, inputs: Mapping[str, Any], make: Callable[[], Made]) -> dict[str, Any]:
        """What `make` returned when it last ran with these inputs; it runs again when a file of it has changed."""
        path = self.work.path / "kept" / f"{name}.json"
        if not self.work.fresh(name, inputs):
            self.work.forget(name)
            value, files = make()
            self.work.complete(name, inputs, [write_json(path, value), *files])
        found: dict[str, Any] = read_json(path)
        return found

    def build(self, name: str) -> Peer:
        """One contestant. Raises Unavailable when its tool is not installed, BuildError when it fails."""
        if name in OURS:
            return self._ours(name)
        return self._torch(name) if name in TORCH else self._tool(name)

    @cached_property
    def run(self) -> Run:
        """A Run over our work directory, calibrated and exported: texts, reference model, threads."""
        _ = self._prepared
        return self._opened("openvino")

    @property
    def reference(self) -> Opening:
        """torch FP32."""
        from qdq.studies.peers import Opening

        return Opening(TORCH[0], str(self.run.checkpoint), self.run.options.threads)

    @cached_property
    def feeds(self) -> list[Feeds]:
        """The calibration texts, eight a batch."""
        from qdq.text.encode import encode_batch

        loaded, records = self.run.reference, self.run.calibration.records
        sequence = self.options.shapes[0][1]
        return [
            encode_batch(loaded.tokenizer, records[start : start + 8], loaded.inputs, sequence)
            for start in range(0, len(records), 8)
        ]

    @cached_property
    def _inputs(self) -> dict[str, Any]:
        """What every build depends on."""
        from qdq.base.versions import versions
        from qdq.pipeline.options import CompileOptions
        from qdq.pipeline.texts import source_fingerprint

        typed = self.typed("openvino")
        texts = source_fingerprint(CompileOptions(**typed), self.options.calibration)
        return {
            "model": sha256_tree(self.options.folder),
            "calibration": [texts, self.options.samples, self.options.shapes[0][1]],
            "threads": self.options.threads,
            "versions": versions(),
        }

    def typed(self, target: str) -> dict[str, Any]:
        """The options of a compile run, as typed."""
        options = self.options
        typed: dict[str, Any] = {
            "model": options.model,
            "calibration": options.calibration,
            "eval_data": options.eval_data,
            "task": "text-classification",
            "out": str(self.work.path / "qdq"),
            "target": target,
            "batch": options.shapes[0][0],
            "sequence": options.shapes[0][1],
            "samples": options.samples,
            "eval_samples": options.eval_samples,
            "threads": options.threads,
            "precision_hint": options.precision_hint,
        }
        return {name: value for name, value in typed.items() if value is not None}

    def _opened(self, target: str) -> Run:
        from qdq.base.screen import Screen
        from qdq.load.source import short_name
        from qdq.pipeline.options import CompileOptions, resolve
        from qdq.pipeline.run import Run
        from qdq.pipeline.workdir import WorkDirectory

        name = short_name(self.options.model)
        resolved = resolve(CompileOptions(**self.typed(target)), name)
        with WorkDirectory(self.work.path / "qdq") as work:
            return Run(resolved, work, Screen(), name)

    @cached_property
    def _prepared(self) -> float:
        """Our checkpoint and graphs, calibrated and exported once for both engines, and lowered for OpenVINO, as one
        process does it: seconds that took.
        """

        def make() -> Made:
            seconds = alone(_stages, ("calibrate", "export", "lower"), self.typed("openvino"))
            folder = self.work.path / "qdq"
            files = [folder / "checkpoint", *sorted(folder.glob("model.*.onnx*")), folder / "openvino" / "model.onnx"]
            return {"seconds": seconds}, files

        seconds: float = self.kept("qdq", {**self._inputs, "code": _code()}, make)["seconds"]
        return seconds

    def _ours(self, name: str) -> Peer:
        from engines.onnxruntime import ENGINE
        from qdq.studies.peers import Opening

        target, prepared = OURS[name], self._prepared
        run = self._opened(target)
        model = run.target / ("model.xml" if target == "openvino" else ENGINE)
        opening = Opening(target, str(model), run.options.threads, self.options.precision_hint, static=True)

        def make() -> Made:
            lowered = target == "openvino"
            stages = ("build",) if lowered else ("lower", "build")
            seconds = prepared + alone(_stages, stages, self.typed(target)) + self._first_call(opening)
            made = {"build_s": seconds, "bytes": _bytes(sorted(run.target.glob(WEIGHTS[target])))}
            return {**made, **({"compile_s": prepared} if lowered else {})}, [run.target]

        inputs = {**self._inputs, "code": _code(), "hint": self.options.precision_hint}
        return self._peer(name, name, opening, self.kept(name, inputs, make))

    def _tool(self, name: str) -> Peer:
        from qdq.studies.peers import ARTIFACTS, TOOLS, build_artifact

        tool, float_model = TOOLS[name], self.float_export[0]
        own = tool.artifact in ARTIFACTS
        record = tool.artifact if own else name
        path = self.work.path / "tools" / ARTIFACTS[tool.artifact][0] if own else float_model
        opening = tool.opening(path, self.run.options.threads, self.options.precision_hint)
        nncf = {} if not name.startswith("nncf") else version_of("nncf")

        def make() -> Made:
            material = self._material(float_model)
            seconds = alone(build_artifact, tool.artifact, material, path) if own else 0.0
            seconds += self._first_call(opening)
            files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
            return {"build_s": seconds, "bytes": _bytes(files[-1:])}, files

        return self._peer(name, record, opening, self.kept(record, {**self._inputs, **nncf}, make))

    def _torch(self, name: str) -> Peer:
        opening = replace(self.reference, engine=name)
        path = self.work.path / "tools" / f"{name}.pt"

        def make() -> Made:
            import torch

            begin = time.perf_counter()
            module = self.run.reference.module()
            state = (dynamic(module) if name == "torch-dynamic" else module).state_dict()
            with warnings.catch_warnings(), atomic_path(path) as partial:
                warnings.simplefilter("ignore")  # a quantized state is a TypedStorage, whose use warns
                torch.save(state, partial)
            seconds = time.perf_counter() - begin + self._first_call(opening)
            return {"build_s": seconds, "bytes": _bytes([path])}, [path]

        return self._peer(name, name, opening, self.kept(name, self._inputs, make))

    def _peer(self, name: str, record: str, opening: Opening, found: Mapping[str, Any]) -> Peer:
        files: Mapping[str, str] = self.work.manifest["stages"][record]["outputs"]
        return Peer(name, opening, found["bytes"], found["build_s"], found.get("compile_s"), files)

    def _first_call(self, opening: Opening) -> float:
        begin = time.perf_counter()
        open_peer(opening, self.feeds[0]["input_ids"].shape)(self.feeds[0])
        return time.perf_counter() - begin

    @cached_property
    def float_export(self) -> tuple[Path, float]:
        """One plain FP32 export for every tool, and the seconds it took."""
        path = self.work.path / "tools" / "float.onnx"

        def make() -> Made:
            return {"seconds": alone(export_plain, self.options.folder, self.feeds[0], path)}, [path]

        return path, self.kept("float", self._inputs, make)["seconds"]

    def _material(self, model: Path) -> Material:
        from qdq.studies.peers import Material

        return Material(model, self.feeds)


def build_all(builder: Builder, names: Sequence[str]) -> tuple[dict[str, Peer], dict[str, str]]:
    """Every contestant that can be built here, and the reason for every other. Ours must build: their errors go up."""
    built: dict[str, Peer] = {}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            built[name] = builder.build(name)
        except (Unavailable, BuildError) as error:
            if name in OURS:
                raise
            skipped[name] = str(error)
    return built, skipped


def export_plain(folder: Path, feeds: Feeds, path: Path) -> None:
    """The checkpoint in `folder` as other tools' users export it: torch's TorchScript exporter, eager attention.

    ONNX Runtime's and NNCF's own fusions are written for this form of the graph; ours would put them at a disadvantage.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        str(folder), attn_implementation="eager", dtype=torch.float32
    ).eval()
    names = list(feeds)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> Any:
            return self.model(**dict(zip(names, tensors, strict=True))).logits

    axes = {name: {0: "batch", 1: "sequence"} for name in names} | {"logits": {0: "batch"}}
    sample = tuple(torch.from_numpy(feeds[name][:2]) for name in names)
    with atomic_path(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and says so at length
        torch.onnx.export(
            Logits().eval(),
            sample,
            str(partial),
            dynamo=False,
            opset_version=17,
            input_names=names,
            output_names=["logits"],
            dynamic_axes=axes,
        )


def _stages(names: Sequence[str], typed: Mapping[str, Any]) -> None:
    """Run stages of ours."""
    from qdq.base.screen import Screen
    from qdq.pipeline.compile import run_stage

    for stage in names:
        run_stage(stage, typed, Screen())


def alone(function: Callable[..., None], *arguments: Any) -> float:
    """Call `function` in a process of its own: seconds from its start to its end, imports included.

    What it raises is raised here. Raises BuildError when the process is killed.
    """
    begin = time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            process.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise BuildError(f"{function.__name__}: its process was killed; is there enough memory?") from error
    return time.perf_counter() - begin


def _bytes(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _code() -> str:
    """Hash of our own source code."""
    files = [file for folder in ("qdq", "export", "engines") for file in sorted((ROOT / folder).rglob("*.py"))]
    return sha256_json({file.relative_to(ROOT).as_posix(): sha256_file(file) for file in files})


def version_of(package: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {package: version(package)}
    except PackageNotFoundError:
        return {}
