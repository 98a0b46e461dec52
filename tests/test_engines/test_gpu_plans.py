"""TensorRT plans on a simulated device with a stand-in for `tensorrt`: binding, profiles, launches, errors, report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from engines.bench_gpu import GpuBenchSettings, bench_plans, plans
from engines.bench_gpu.device import DeviceInfo, Stream
from engines.bench_gpu.plans import open_device
from engines.tensorrt.availability import Probe
from qdq.base.artifacts import read_json, to_json
from qdq.errors import BuildError, ConfigError, Unavailable

from .test_packing import ROWS

KERNEL_MS = {"int8.plan": 1.0, "fp16.plan": 2.0, "fp32.plan": 8.0, "other.plan": 1.0, "bf16.plan": 1.5, "nan.plan": 1.0}


class FakeDevice:
    """A Device (engines.bench_gpu.device) whose memory is numpy and whose time is simulated, in milliseconds."""

    def __init__(self) -> None:
        self.info = DeviceInfo("Simulated T4", "0000:3b:00.0", "simulated", {"simulated": "1"})
        self.host = self.free = 0.0
        self.memory: dict[int, NDArray[Any]] = {}
        self.recording: list[Callable[[], None]] | None = None
        self.captures = 0

    def issue(self, milliseconds: float, action: Callable[[], None]) -> None:
        def run() -> None:
            self.free = max(self.free, self.host) + milliseconds
            action()

        run() if self.recording is None else self.recording.append(run)

    def stream(self) -> Stream:
        return Stream(7, None)

    def event(self) -> list[float]:
        return [0.0]

    def record(self, event: list[float], stream: Stream) -> None:
        event[0] = max(self.host, self.free)

    def wait(self, event: list[float]) -> None:
        self.host = max(self.host, event[0])

    def elapsed(self, start: list[float], end: list[float]) -> float:
        return end[0] - start[0]

    def synchronize(self, stream: Stream) -> None:
        assert self.recording is None, "waiting breaks a capture"
        self.host = max(self.host, self.free)

    def allocate(self, size: int) -> int:
        address = 1000 + len(self.memory)
        self.memory[address] = np.zeros(size, np.uint8)
        return address

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        return np.zeros(shape, dtype)

    def upload(self, address: int, source: NDArray[Any], stream: Stream) -> None:
        self.issue(0.25, lambda: np.copyto(self.memory[address], source.reshape(-1).view(np.uint8)))

    def download(self, target: NDArray[Any], address: int, stream: Stream) -> None:
        self.issue(0.25, lambda: np.copyto(target.reshape(-1).view(np.uint8), self.memory[address]))

    def capture(self, stream: Stream, launch: Callable[[], None]) -> Callable[[], None]:
        self.recording, self.captures = [], self.captures + 1
        launch()
        recorded, self.recording = self.recording, None

        def replay() -> None:
            for operation in recorded:
                operation()

        return replay


class FakeTensorRT:
    """The names of `tensorrt` the benchmark uses. A plan file's text is the version that built it."""

    __version__ = "10.14.1"
    __spec__ = ModuleSpec("tensorrt", None)  # torch._dynamo asks for it when it is first imported
    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")

    def __init__(self, device: FakeDevice) -> None:
        self.device, self.contexts = device, list[FakeContext]()

    def Logger(self) -> None: ...  # noqa: N802

    def init_libnvinfer_plugins(self, logger: None, namespace: str) -> bool:
        return True

    def Runtime(self, logger: None) -> Any:  # noqa: N802
        return SimpleNamespace(deserialize_cuda_engine=self.load)

    def load(self, serialized: bytes) -> Any:
        name, version = serialized.decode().split()
        return FakeEngine(self, name) if version == self.__version__ else None


class FakeEngine:
    """ids and mask (INT32) [B, S] from 1x1 to 4x8, or from 1x1 to 8x16 in the second profile -> logits [B, 3]."""

    num_io_tensors, num_optimization_profiles = 3, 2

    def __init__(self, trt: FakeTensorRT, name: str) -> None:
        self.trt, self.name = trt, name
        self.types = {"input_ids": "INT32", "attention_mask": "INT32", "logits": "BF16" if "bf16" in name else "FLOAT"}

    def get_tensor_name(self, index: int) -> str:
        return list(self.types)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "out" if name == "logits" else "in"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.types[name])

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, int]]:
        return [(1, 1), (2, 4), (4, 8)] if index == 0 else [(1, 1), (8, 16), (8, 16)]

    def create_execution_context(self) -> FakeContext:
        self.trt.contexts.append(FakeContext(self))
        return self.trt.contexts[-1]


class FakeContext:
    """Writes the first token id of every row as the logits."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.profile = engine, 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes.get(name) or (self.shapes["input_ids"][0], 3)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.engine.trt.device.issue(KERNEL_MS[self.engine.name], self.compute)
        return stream == 7

    def compute(self) -> None:
        memory = self.engine.trt.device.memory
        ids = memory[self.addresses["input_ids"]].view(np.int32).reshape(self.shapes["input_ids"])
        logits = np.repeat(ids[:, :1].astype(np.float32), 3, axis=1)
        if self.engine.name == "nan.plan":
            logits[0, 0] = np.nan
        if self.engine.types["logits"] == "BF16":
            logits = (logits.view(np.uint32) >> 16).astype(np.uint16)
        memory[self.addresses["logits"]][:] = logits.reshape(-1).view(np.uint8)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """A machine with a GPU and TensorRT, simulated."""
    fake = FakeDevice()

    @contextmanager
    def opened(index: int, spin: bool) -> Iterator[FakeDevice]:
        yield fake

    monkeypatch.setattr(plans, "probe", lambda: Probe(gpu="Simulated T4", tensorrt="10.14.1"))
    monkeypatch.setattr(plans, "open_device", opened)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(fake))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    return fake


def plan_files(folder: Path, *names: str, version: str = "10.14.1") -> dict[str, Path]:
    for name in names:
        (folder / f"{name}.plan").write_text(f"{name}.plan {version}")
    return {name: folder / f"{name}.plan" for name in names}


def batches(batch: int = 4, sequence: int = 8) -> list[dict[str, NDArray[Any]]]:
    ids = np.arange(batch * sequence, dtype=np.int64).reshape(batch, sequence)
    return [{"input_ids": ids + 100 * tag, "attention_mask": np.ones_like(ids)} for tag in range(3)]


def small(**changes: Any) -> GpuBenchSettings:
    return GpuBenchSettings(**{"batch": 4, "sequence": 8, "warmup": 3, "iterations": 200, "block": 50, **changes})


def p50(report: dict[str, Any], name: str) -> float:
    return float(report["contestants"][name]["latency_ms"]["p50"])


def test_three_precisions_side_by_side(device: FakeDevice, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    files = plan_files(tmp_path, "fp32", "fp16", "int8")
    report = bench_plans(files, batches(), small(), lambda done, total: seen.append((done, total)))
    assert list(report["contestants"]) == ["tensorrt-fp32", "tensorrt-fp16", "int8"]
    assert (p50(report, "tensorrt-fp32"), p50(report, "tensorrt-fp16"), p50(report, "int8")) == pytest.approx((8, 2, 1))
    int8 = report["contestants"]["int8"]
    assert int8["speedup"] == pytest.approx({"tensorrt-fp32": 8, "tensorrt-fp16": 2}) and int8["samples"] == 200
    assert int8["sequences_per_s"] == pytest.approx(4 / 1e-3)
    assert report["gpu"]["device"] == "Simulated T4" and device.captures == 3 and seen[-1] == (609, 609)
    assert report["versions"]["tensorrt"] == "10.14.1" and "nvidia-ml-py" in report["gpu"]["nvml"]["reason"]
    line = report["gpu"]["trtexec"]["int8"]["10"]
    assert line.startswith("trtexec --loadEngine=int8.plan --shapes=input_ids:4x8,attention_mask:4x8")
    assert str(tmp_path) not in to_json(report)  # and it is valid JSON


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_transfers_are_part_of_a_launch_only_on_request(device: FakeDevice, tmp_path: Path, cuda_graph: bool) -> None:
    files = plan_files(tmp_path, "int8")
    without = bench_plans(files, batches(), small(cuda_graph=cuda_graph))
    included = bench_plans(files, batches(), small(cuda_graph=cuda_graph, transfers=True))
    assert p50(without, "int8") == pytest.approx(1)
    assert p50(included, "int8") == pytest.approx(1 + 3 * 0.25)  # two inputs, one output
    assert device.captures == 2 * cuda_graph


@pytest.mark.parametrize("name", ["int8", "bf16"])
def test_ids_reach_the_plan_in_its_own_type_and_results_come_back(
    device: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    checked: dict[str, NDArray[Any]] = {}
    monkeypatch.setattr("engines.bench_gpu.timing.check_outputs", lambda _, outputs: checked.update(outputs))
    bench_plans(plan_files(tmp_path, name), batches(), small())
    assert checked["logits"].dtype == np.float32  # row n starts with token 8 n, which bfloat16 holds exactly
    assert checked["logits"].tolist() == [[8.0 * row] * 3 for row in range(4)]


def test_streams_have_contexts_and_buffers_of_their_own(device: FakeDevice, tmp_path: Path) -> None:
    report = bench_plans(plan_files(tmp_path, "int8"), batches(), small(streams=2))
    assert report["contestants"]["int8"]["samples"] == 400 and device.captures == 2 and len(device.memory) == 6


def test_the_profile_that_holds_the_shape_is_chosen(device: FakeDevice, tmp_path: Path) -> None:
    bench_plans(plan_files(tmp_path, "int8"), batches(8, 16), small(batch=8, sequence=16))
    assert [context.profile for context in sys.modules["tensorrt"].contexts] == [1]


def test_shapes_outside_every_profile_name_the_range(device: FakeDevice, tmp_path: Path) -> None:
    text = r"int8\.plan: input 'input_ids' is 9x8, its profile goes from 1x1 to 4x8 \(tuned for 2x4\); choose a batch"
    with pytest.raises(ConfigError, match=text):
        bench_plans(plan_files(tmp_path, "int8"), batches(9, 8), small(batch=9))


def test_a_plan_of_another_version_is_refused(device: FakeDevice, tmp_path: Path) -> None:
    files = plan_files(tmp_path, "other", version="8.6.1")
    with pytest.raises(BuildError, match=r"TensorRT 10\.14\.1 cannot load .*other\.plan .* build it again on this"):
        bench_plans(files, batches(), small())


def test_other_errors_name_the_plan_and_the_remedy(device: FakeDevice, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no plans"):
        bench_plans({}, batches(), small())
    with pytest.raises(BuildError, match=r"gone\.plan cannot be read \(No such file or directory\); build the engine"):
        bench_plans({"int8": tmp_path / "gone.plan"}, batches(), small())
    with pytest.raises(BuildError, match=r"contestant 'nan': output 'logits' holds NaN"):
        bench_plans(plan_files(tmp_path, "nan"), batches(), small())
    only_ids = [{"input_ids": batch["input_ids"]} for batch in batches()]
    with pytest.raises(ConfigError, match=r"has an input 'attention_mask' the benchmark text does not feed"):
        bench_plans(plan_files(tmp_path, "int8"), only_ids, small())
    (tmp_path / "packing.json").write_text(json.dumps(asdict(ROWS)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"its batch has the rows form, .* 'qdq bench' does"):
        bench_plans(plan_files(tmp_path, "int8"), only_ids, small())
    (tmp_path / "packing.json").unlink()
    equal = [{name: np.ones_like(array) for name, array in batches()[0].items()}]
    with pytest.raises(ConfigError, match="repeats one token of input_ids"):
        bench_plans(plan_files(tmp_path, "int8"), equal, small())


def command(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """`qdq bench` with `arguments`: exit code, standard output, standard error."""
    from qdq.cli.main import main

    code = main(["bench", *map(str, arguments)])
    return code, *capsys.readouterr()


SHORT = ("--batch", "4", "--sequence", "8", "--warmup", "3", "--iterations", "200")


def test_the_command_races_plans_and_keeps_the_report(
    device: FakeDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = plan_files(tmp_path, "fp32", "fp16", "int8")
    engines = [word for name, file in files.items() for word in ("--engine", f"{name}={file}")]
    code, out, _ = command(capsys, *engines, *SHORT, "--no-cuda-graph", "--transfers")
    assert code == 0 and device.captures == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["tensorrt-fp32", "tensorrt-fp16", "int8"]
    assert lines[3].split()[-2:] == ["5.00", "1.57"]  # 8.75 and 2.75 over 1.75 ms: a transfer takes 0.25
    plain = [line for line in lines if "trtexec" not in line and "benchmark-gpu.json" not in line]
    assert max(map(len, plain)) <= 80
    assert "int8, TensorRT 11.x: trtexec --loadEngine=int8.plan" in out and "--includeDataTransfers" in out
    report = read_json(tmp_path / "benchmark-gpu.json")
    assert report["workload"]["text"] == "random token ids, no padding" and report["workload"]["padding_share"] == 0
    assert report["contestants"].keys() == {"tensorrt-fp32", "tensorrt-fp16", "int8"}


def test_the_command_takes_a_work_directory_and_a_models_text(
    device: FakeDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "work" / "tensorrt"
    for folder, name in ((target, "int8"), (target / "fp16", "fp16")):
        folder.mkdir(parents=True)
        plan_files(folder, name)[name].rename(folder / "model.plan")
    code, out, err = command(
        capsys, "--engine", tmp_path / "work", "--model", "all-MiniLM-L6-v2", *SHORT, "--json", "--out", tmp_path
    )
    assert code == 0, err
    report = json.loads(out)
    assert list(report["contestants"]) == ["int8", "tensorrt-fp16"]
    assert report["workload"]["text"].startswith("bundled held-out English text")
    assert read_json(tmp_path / "benchmark-gpu.json") == report


def test_the_command_names_what_is_wrong(
    device: FakeDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_files(tmp_path, "int8")["int8"]
    for arguments, message in (
        (("--device", "1"), "--device: is about plans on a GPU; name one with --engine"),
        (("--engine", plan, "--placement", "linear"), "--placement: says nothing about a built plan"),
        (("--engine", f"a={plan}", "--engine", f"a={plan}"), "would both be called 'a'"),
        (("--engine", "fp16="), "--engine: 'fp16=' names no file; write NAME=PLAN"),
        (("--engine", tmp_path / "int9.plan"), "int9.plan is not a file; did you mean 'int8.plan'?"),
        (("--engine", tmp_path), "holds no plan; build them with 'qdq build' and 'qdq variants'"),
        (("--engine", plan, "--eval-data", "x.tsv"), "--eval-data: text needs a tokenizer; give --model, too"),
        (("--engine", plan, "--streams", "0"), "GPU benchmark streams is 0; it must be at least 1"),
        (("--engine", plan, "--batch", "0"), "--batch: 0 is outside 1..4096"),
    ):
        code, out, err = command(capsys, *arguments)
        assert (code, out) == (2, "") and message in err, arguments


def test_the_command_on_a_machine_without_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plans, "probe", lambda: Probe(missing=("no usable NVIDIA GPU (the driver sees no device)",)))
    code, out, err = command(capsys, "--engine", "model.plan")  # also where the plan is not there
    assert (code, out) == (3, "")
    assert err == (
        "qdq: this machine cannot time a TensorRT plan:\n  - no usable NVIDIA GPU (the driver sees no device)\n"
    )


def test_a_machine_without_gpu_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plans, "probe", lambda: Probe(missing=("no usable NVIDIA GPU (the driver sees no device)",)))
    with pytest.raises(Unavailable, match=r"cannot time a TensorRT plan:\n  - no usable NVIDIA GPU"):
        bench_plans(plan_files(tmp_path, "int8"), batches(), small())
    for binding in ("pycuda", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, binding, None)
    for module in ("device_pycuda", "device_cudart"):
        monkeypatch.delitem(sys.modules, f"engines.bench_gpu.{module}", raising=False)
        monkeypatch.delattr(f"engines.bench_gpu.{module}", raising=False)
    with pytest.raises(Unavailable, match=r"no Python binding of CUDA .* pip install pycuda .* pip install 'cuda-b"):
        open_device().__enter__()
