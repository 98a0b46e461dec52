"""The generated run_engine.py: its values, what it says without a GPU, its names in NVIDIA's bindings, and its run.

No GPU runs these tests, so the run is one of stand-ins for the GPU and for TensorRT.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines import packing
from engines.packing import Packing
from engines.tensorrt.settings import TensorRTSettings
from engines.tensorrt_rtx import missing
from engines.tensorrt_rtx.script import TEMPLATE, run_script, write_run_script
from engines.types import TensorInfo

INPUTS = [TensorInfo(name, "int32", ("batch", "sequence")) for name in ("input_ids", "attention_mask")]
# The class behind every variable and attribute of the script that holds a TensorRT object.
HOLDERS = {
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "config": "IRuntimeConfig",
    "cache": "IRuntimeCache",
}

needs_compiler = pytest.mark.skipif(missing() is not None, reason=missing() or "")


def graph() -> onnx.ModelProto:
    """Ids that pass a Cast on their way to a table of 50 rows, and a mask."""
    inputs = [helper.make_tensor_value_info(tensor.name, TensorProto.INT32, [None, None]) for tensor in INPUTS]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
    ]
    table = helper.make_tensor("table", TensorProto.FLOAT, [50, 1], np.zeros(50))
    outputs = [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, None, 1])]
    return helper.make_model(helper.make_graph(nodes, "ids", inputs, outputs, [table]))


@needs_compiler
def test_the_values_are_those_of_the_model(tmp_path: Path) -> None:
    settings = TensorRTSettings(batch_opt=8, batch_max=8, sequence_opt=64, sequence_max=64)
    onnx.save(graph(), tmp_path / "model.onnx")
    script = write_run_script(tmp_path / "model.onnx", tmp_path, INPUTS, settings, (80, 89))
    values = vars(loaded(script))
    assert values["RANGES"] == {"batch": [1, 8, 8], "sequence": [1, 64, 64]} and values["CAPABILITIES"] == [80, 89]
    assert values["INPUTS"] == {tensor.name: ["batch", "sequence"] for tensor in INPUTS}
    assert values["ROWS"] == {"input_ids": 50}
    assert f"tensorrt-rtx-cu12-bindings=={values['VERSION']}" in values["INSTALL"]
    text = script.read_text(encoding="utf-8")
    assert text == run_script(graph(), INPUTS, settings, (80, 89)) and text.count("# begin values") == 1
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith(("INPUTS", "ROWS")))


def loaded(script: Path) -> Any:
    """The script as a module."""
    space: dict[str, Any] = {"__name__": "run_engine", "__file__": str(script)}
    exec(compile(script.read_text(encoding="utf-8"), script.name, "exec"), space)
    return SimpleNamespace(**space)


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TEMPLATE, *arguments], capture_output=True, text=True, timeout=60)


def test_help_and_wrong_use_need_neither_gpu_nor_tensorrt() -> None:
    assert ran("--help").returncode == 0 and "--sequence N" in ran("--help").stdout
    for arguments, message in (
        (["--batch", "41"], "--batch: the plan takes 1 to 40, found 41"),
        (["--sequence", "0"], "--sequence: the plan takes 1 to 128, found 0"),
        (["--seconds", "0"], "--seconds: expected more than 0"),
        (["--inputs", "a.npz", "--batch", "2"], "the arrays of --inputs have a shape of their own"),
    ):
        assert (ran(*arguments).returncode, message in ran(*arguments).stderr) == (2, True)


def test_what_is_missing_is_said() -> None:
    done = ran()
    if done.returncode == 0:
        pytest.skip("this machine runs it")
    assert done.returncode == 3 and done.stderr.startswith("run_engine: ") and done.stderr.count("\n") == 1


def uses() -> Iterator[tuple[str, str]]:
    """Class of NVIDIA's module and attribute of it, "" for the module's own, wherever the template names one."""
    for node in ast.walk(ast.parse(TEMPLATE.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
        if name == "trt":
            yield "", node.attr
        elif name in HOLDERS:
            yield HOLDERS[name], node.attr
        elif isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name) and owner.value.id == "trt":
            yield name, node.attr


@needs_compiler
def test_every_name_it_uses_is_in_the_bindings() -> None:
    child = (
        "import json, sys; sys.path.insert(0, sys.argv[1]);"
        "from run_template import import_runtime; trt = import_runtime();"
        "print(json.dumps({name: dir(getattr(trt, name) if name else trt) for name in sys.argv[2:]}))"
    )
    found = set(uses())
    assert len(found) > 25 and {owner for owner, _ in found} >= set(HOLDERS.values())
    names = sorted({owner for owner, _ in found})
    done = subprocess.run(
        [sys.executable, "-c", child, TEMPLATE.parent, *names], capture_output=True, text=True, check=True
    )
    known = json.loads(done.stdout.splitlines()[-1])
    assert [(owner, name) for owner, name in sorted(found) if name not in known[owner]] == []


# A run of stand-ins


class Gpu:
    """Memory as arrays by address, and a clock that says 1, 2, 3 … milliseconds."""

    name, capability, stream = "stand-in", 75, 7

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.times = 0

    def allocate(self, _size: int) -> int:
        return len(self.memory) + 100

    def upload(self, array: Any) -> int:
        self.memory[self.allocate(0)] = array
        return len(self.memory) + 99

    def download(self, array: Any, address: int) -> None:
        array[:] = self.memory[address]

    def wait(self) -> None: ...

    def event(self) -> int:
        return 0

    def record(self, event: int) -> None: ...

    def milliseconds(self, _start: int, _end: int) -> float:
        self.times += 1
        return float(self.times)


class Kind(Enum):
    INPUT, OUTPUT = 1, 2


class Engine:
    """One output "sum": the ids of each text, summed."""

    num_io_tensors = 3
    names = ("input_ids", "attention_mask", "sum")

    def __init__(self, gpu: Gpu, cache: Any) -> None:
        self.gpu, self.cache, self.engine = gpu, cache, self
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.runs = 0

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> Kind:
        return Kind.OUTPUT if name == "sum" else Kind.INPUT

    def get_tensor_dtype(self, _name: str) -> type[Any]:
        return np.int32

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(create_runtime_cache=lambda: self.cache, set_runtime_cache=lambda _cache: True)

    def create_execution_context(self, config: Any) -> Engine:
        assert (config.cuda_graph_strategy, config.dynamic_shapes_kernel_specialization_strategy) == ("whole", "eager")
        return self

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return shape[1] <= 128

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return self.shapes["input_ids"][:1]

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.gpu.stream
        self.gpu.memory[self.addresses["sum"]] = self.gpu.memory[self.addresses["input_ids"]].sum(axis=1)
        self.runs += 1
        return True


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The template with stand-ins; `program.call(arguments)` runs it."""
    (tmp_path / "run_engine.py").write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "model.rtx").write_bytes(b"plan")
    module = loaded(tmp_path / "run_engine.py")
    gpu = Gpu()
    cache = SimpleNamespace(deserialize=lambda blob: blob == b"kernels", serialize=lambda: b"kernels")
    engine = Engine(gpu, cache)
    module.engines = [engine]
    trt = SimpleNamespace(
        __version__="1.7.1.116",
        Logger=type("Logger", (), {"WARNING": 1, "__init__": lambda *_: None}),
        Runtime=lambda _logger: SimpleNamespace(
            deserialize_cuda_engine=lambda _plan: module.engines[0], get_engine_validity=lambda _plan: (2, 3)
        ),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"),
        EngineInvalidityDiagnostics=SimpleNamespace(__members__={"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "X": 4}),
        TensorIOMode=Kind,
        nptype=lambda kind: kind,
    )
    module.main.__globals__.update({"import_runtime": lambda: trt, "Gpu": lambda: gpu})

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["run_engine.py", "--seconds", "0.05", *arguments])
        return int(module.main())

    module.call, module.gpu, module.engine = call, gpu, engine
    return module


def test_a_run_measures_and_writes(program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.call("--batch", "4", "--sequence", "16", "--outputs", str(tmp_path / "out.npz")) == 0
    printed = capsys.readouterr().out
    assert "stand-in, TensorRT for RTX 1.7.1.116" in printed and "4 x 16: p50 " in printed
    ids = program.gpu.memory[program.engine.addresses["input_ids"]]
    assert ids.shape == (4, 16) and ids.dtype == np.int32 and 0 <= ids.min() < ids.max() < 30522
    assert (program.gpu.memory[program.engine.addresses["attention_mask"]] == 1).all()
    with np.load(tmp_path / "out.npz") as outputs:
        assert (outputs["sum"] == ids.sum(axis=1)).all()
    assert (tmp_path / "model.rtx.cache").read_bytes() == b"kernels"
    assert {path.name for path in tmp_path.iterdir()} == {"run_engine.py", "model.rtx", "model.rtx.cache", "out.npz"}


def test_given_inputs_are_fed(program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = np.arange(6).reshape(2, 3)
    np.savez(tmp_path / "in.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    (tmp_path / "model.rtx.cache").write_bytes(b"another GPU's")
    assert program.call("--inputs", str(tmp_path / "in.npz")) == 0
    told = capsys.readouterr()
    assert "2 x 3: p50" in told.out and "is of another GPU, driver or version, and is replaced" in told.err
    assert (program.gpu.memory[program.engine.addresses["sum"]] == [3, 12]).all()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"input_ids": np.zeros((2, 3))}, "has no array 'attention_mask'; it has input_ids"),
        ({name: np.zeros((2, 200)) for name in Engine.names[:2]}, "cannot have shape (2, 200); the plan takes"),
        ({"input_ids": np.full((2, 3), 30522), "attention_mask": np.ones((2, 3))}, "must be ids from 0 to 30521"),
        (None, "cannot be read"),
    ],
)
def test_wrong_inputs_are_named(
    program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], arrays: Any, message: str
) -> None:
    (tmp_path / "in.npz").write_bytes(b"no archive")
    if arrays is not None:
        np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(SystemExit) as ended:
        program.call("--inputs", str(tmp_path / "in.npz"))
    assert ended.value.code == 1 and message in capsys.readouterr().err


class Rows(Engine):
    """A plan of texts in rows, whose output "sum" is the first id of each text."""

    num_io_tensors = 5
    names = ("input_ids", "segments", "positions", "first", "sum")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return self.shapes["first"]

    def execute_async_v3(self, _stream: int) -> bool:
        ids, first = (self.gpu.memory[self.addresses[name]] for name in ("input_ids", "first"))
        self.gpu.memory[self.addresses["sum"]] = ids.reshape(-1)[first]
        return True


@pytest.fixture
def in_rows(program: Any, tmp_path: Path) -> Any:
    """The same of a plan of texts in rows, as `write_run_script` would write it."""
    form = Packing(
        *("rows", {"offset": 0, "padding": None}, {"sum": "text"}, False, True, Rows.names[:-1], 32),
        texts=40,
        rows=12,
        tokens=360,
    )
    program.engines[0] = program.engine = Rows(program.gpu, program.engine.cache)
    shutil.copy(packing.__file__, tmp_path / "packing.py")
    program.main.__globals__["PACKING"] = asdict(form)
    yield program
    sys.path[:] = [place for place in sys.path if place != str(tmp_path)]
    sys.modules.pop("packing", None)


def test_padded_texts_are_packed_and_answered_in_their_order(
    in_rows: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = np.arange(1, 13).reshape(3, 4)
    mask = np.arange(4) < np.array([[1], [4], [2]])
    np.savez(tmp_path / "in.npz", input_ids=ids, attention_mask=mask)
    assert in_rows.call("--inputs", str(tmp_path / "in.npz"), "--outputs", str(tmp_path / "out.npz")) == 0
    assert "3 texts as 1 x 7: p50" in capsys.readouterr().out
    assert in_rows.gpu.memory[in_rows.engine.addresses["input_ids"]].tolist() == [[5, 6, 7, 8, 9, 10, 1]]
    with np.load(tmp_path / "out.npz") as outputs:
        assert outputs["sum"].tolist() == [1, 5, 9]


def test_random_texts_have_the_usual_number_of_tokens(in_rows: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_rows.call("--sequence", "32") == 0
    printed = capsys.readouterr().out
    assert "40 texts as " in printed and " x 32: p50" in printed
    assert 5 < in_rows.engine.shapes["input_ids"][0] < 20


def test_a_text_longer_than_a_row_is_named(in_rows: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "in.npz", **dict.fromkeys(("input_ids", "attention_mask"), np.ones((1, 33), np.int64)))
    with pytest.raises(SystemExit) as ended:
        in_rows.call("--inputs", str(tmp_path / "in.npz"))
    assert ended.value.code == 1 and "text 0 has 33 tokens, a row holds 32" in capsys.readouterr().err


@needs_compiler
def test_a_script_of_rows_takes_padded_arrays(tmp_path: Path) -> None:
    form = Packing("rows", None, {"rows": "token"}, False, False, ("input_ids", "segments"), 64, 8, 3, 90)
    settings = TensorRTSettings(batch_opt=8, batch_max=8, sequence_opt=64, sequence_max=64, packing=form)
    onnx.save(graph(), tmp_path / "model.onnx")
    inputs = [TensorInfo(name, "int32", ("rows", "sequence")) for name in form.inputs]
    values = vars(loaded(write_run_script(tmp_path / "model.onnx", tmp_path, inputs, settings, (75,))))
    assert Packing(**values["PACKING"]) == replace(form, inputs=list(form.inputs))
    assert values["INPUTS"] == {name: ["batch", "sequence"] for name in ("input_ids", "attention_mask")}
    assert values["RANGES"] == {"batch": [1, 8, 8], "sequence": [1, 64, 64]}


def test_a_plan_that_is_refused(program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    program.engines[0], program.gpu.capability = None, 90
    with pytest.raises(SystemExit) as ended:
        program.call()
    assert (
        ended.value.code == 3 and "VERSION_MISMATCH, UNSUPPORTED_CC. It was built by 1.7.1" in capsys.readouterr().err
    )
    with pytest.raises(SystemExit) as ended:
        program.call("--plan", "nowhere.rtx")
    assert ended.value.code == 1 and "nowhere.rtx cannot be read" in capsys.readouterr().err


def test_percentiles_are_nearest_ranks() -> None:
    summary = loaded(TEMPLATE).summary
    assert summary([float(value) for value in range(1, 101)], 40).startswith(
        "p50 50.000 ms, p90 90.000 ms, p99 99.000 ms, 100 runs, 800.0 sequences/s"
    )
    assert "p99 - (needs 100 runs)" in summary([1.0, 2.0], 1)
