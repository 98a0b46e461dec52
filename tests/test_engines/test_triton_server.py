"""A real Triton server on this machine: raw repositories by stand-in backends, texts in front of a plan's model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.serving.form import TextForm
from engines.triton import TritonSettings, write_repository, write_text_repository
from engines.triton.model_config import read_config
from engines.triton.server import Installation, Server, find, installation, leftovers, running
from engines.types import BuiltEngine
from qdq.errors import DeployError, Unavailable

from .test_serving.conftest import WORDS, tokenizer_file  # noqa: F401  # a fixture
from .triton_parts import FEEDS, settings

pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="the triton extra is not installed")
pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server_here() -> Installation:
    try:
        return find()
    except Unavailable as reason:
        pytest.skip(str(reason))


def ask(server: Server, model: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(body).encode()
    with urllib.request.urlopen(f"{server.http}/v2/models/{model}/{path}", data, timeout=30) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def request_of(*names: str) -> dict[str, Any]:
    inputs = [{"name": name, "shape": [1, 6], "datatype": "INT64", "data": FEEDS[name].tolist()} for name in FEEDS]
    return {"inputs": inputs, "outputs": [{"name": name, "parameters": {"classification": 2}} for name in names]}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_repository_of_token_ids_is_served_unchanged(
    server_here: Installation, engine: BuiltEngine, tmp_path: Path, backend: str
) -> None:
    """Warm-up included; labels come with the onnxruntime backend, which has a batch dimension of its own."""
    if backend == "openvino":
        pytest.importorskip("openvino", reason="the cpu extra is not installed")
    names = ("no", "yes") if backend == "onnxruntime" else ()
    write_repository(engine, settings(backend=backend, labels=names), [FEEDS], tmp_path / "raw")
    with running(tmp_path / "raw") as server:
        (logits,) = ask(server, "tiny", "infer", {"inputs": request_of()["inputs"]})["outputs"]
        table = np.linspace(-1, 1, 2048, dtype=np.float32).reshape(1024, 2)
        expected = (table[FEEDS["input_ids"]] * FEEDS["attention_mask"][:, None]).mean(axis=0)
        np.testing.assert_allclose(logits["data"], expected, rtol=1e-5)
        if names:
            (ranked,) = ask(server, "tiny", "infer", request_of("logits"))["outputs"]
            assert [item.split(":")[-1] for item in ranked["data"]] == ["yes", "no"]


def test_the_response_cache_answers_what_it_knows(
    server_here: Installation, engine: BuiltEngine, tmp_path: Path
) -> None:
    write_repository(engine, settings(cache=True), [FEEDS], tmp_path / "raw")
    with running(tmp_path / "raw") as server:
        first, again = (ask(server, "tiny", "infer", {"inputs": request_of()["inputs"]}) for _ in range(2))
        with urllib.request.urlopen(server.metrics, timeout=30) as answer:
            metrics = answer.read().decode()
    assert first["outputs"] == again["outputs"]
    assert re.search(r'nv_cache_num_hits_per_model\{model="tiny",version="1"\} [1-9]', metrics)


def test_texts_in_front_of_a_plan(
    server_here: Installation,
    engine: BuiltEngine,
    tmp_path: Path,
    tokenizer_file: Path,  # noqa: F811
) -> None:
    """The plan's model is another one with its inputs and outputs, because no GPU is here: all else is real."""
    form = TextForm(
        task="text-classification",
        engine="tensorrt",
        files=("model.plan",),
        threads=0,
        hint="f32",
        inputs=("input_ids", "attention_mask"),
        outputs=("logits",),
        types={"input_ids": "int64", "attention_mask": "int64"},
        sequence=8,
        characters=512,
        packed=False,
        typed=False,
        pad={"input_ids": 0, "token_type_ids": 0},
        pad_left=False,
        sample={"TEXT": ("the cat",)},
        labels=("no", "yes"),
        buckets=(6, 8),
    )
    (tmp_path / "model.plan").write_bytes(b"plan")
    plan = replace(engine, target="tensorrt", files=(tmp_path / "model.plan",))
    repository = tmp_path / "texts"
    write_text_repository(plan, form, tokenizer_file.read_text(), TritonSettings("tiny", "tensorrt"), repository)
    stand_in(repository / "tiny_plan", engine.files[0])
    before = sorted(repository.rglob("*"))
    with running(repository) as server:
        short = ask(server, "tiny", "generate", {"TEXT": "the cat"})
        long = ask(server, "tiny", "generate", {"TEXT": "the cat sees a small"})
    assert sorted(repository.rglob("*")) == before  # else the next compile would take it for damaged
    table = np.linspace(-1, 1, 2048, dtype=np.float32).reshape(1024, 2)
    ids = [
        [WORDS.index(word) for word in ("[CLS]", "the", "cat", *more, "[SEP]")] for more in ((), ("sees", "a", "small"))
    ]
    for answer, row, width in ((short, ids[0], 6), (long, ids[1], 8)):  # the mean is over the bucket's width
        np.testing.assert_allclose(answer["LOGITS"], table[row].sum(axis=0) / width, rtol=1e-4)


def stand_in(model: Path, file: Path) -> None:
    """Let the plan's model be served by the onnxruntime backend."""
    path = model / "config.pbtxt"
    config = read_config(path)
    config.platform, config.backend, config.default_model_filename = "onnxruntime_onnx", "onnxruntime", "model.onnx"
    config.instance_group[0].kind = config.instance_group[0].KIND_CPU
    path.write_text(str(config))
    (model / "1" / "model.plan").unlink()
    shutil.copy(file, model / "1" / "model.onnx")


def test_a_folder_without_models_of_ours_is_refused(server_here: Installation, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="holds no model of ours"), running(tmp_path):
        pass
    assert not list(Path(leftovers.SHARED).glob(f"{leftovers.PREFIX}*{os.getpid()}*"))


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(installation, "folder", lambda: tmp_path / "serve")
    with pytest.raises(
        Unavailable, match=r"no tritonserver on PATH.*pip install --no-deps --target .*serve nvidia-pytr"
    ):
        find()
    # The package, without a python backend for this Python
    for part in ("pytriton/tritonserver/bin", "numpy"):
        (tmp_path / "serve" / part).mkdir(parents=True)
    (tmp_path / "serve/pytriton/tritonserver/bin/tritonserver").touch()
    with pytest.raises(Unavailable, match=r"no python backend for Python 3\.\d+"):
        find()


def test_the_set_up_installs_what_the_message_says() -> None:
    lines = (Path(__file__).parents[2] / "requirements-serve.txt").read_text().splitlines()
    pins = [line.partition(";")[0] for line in lines if not line.startswith("#")]
    assert pins == installation.PINS.split()


def test_a_server_on_the_path_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tritonserver").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find()
    assert (found.binary, found.backends(tmp_path / "backends")) == (tmp_path / "tritonserver", None)
    assert found.environment(tmp_path / "python")["PATH"] == str(tmp_path)


def test_what_a_killed_server_left_is_cleaned_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that names its shared memory, a region, and the folder; another server's are left alone."""
    monkeypatch.setattr(leftovers, "SHARED", tmp_path / "shm")
    monkeypatch.setattr(leftovers.tempfile, "gettempdir", lambda: str(tmp_path))
    mine, other = f"{leftovers.PREFIX}0000_a", f"{leftovers.PREFIX}1111_b"
    for prefix in (mine, other):
        (tmp_path / "shm").mkdir(exist_ok=True)
        (tmp_path / "shm" / f"{prefix}region").touch()
        (tmp_path / prefix).mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    (tmp_path / mine / leftovers.PROCESS).write_text(f"{gone.pid} 1")
    gone.wait()
    leftovers.note(tmp_path / other, os.getpid())
    stub = tmp_path / "triton_python_backend_stub"
    stub.symlink_to(sys.executable)
    orphan = subprocess.Popen([str(stub), "-c", "import time; time.sleep(60)", f"{mine}region"])
    try:
        until = time.monotonic() + 30
        while leftovers.processes(mine) != [orphan.pid] and time.monotonic() < until:
            time.sleep(0.01)  # the kernel shows the command line of a new process a moment late
        assert leftovers.sweep() == [mine]
        assert orphan.wait(30) < 0
    finally:
        orphan.kill()
        orphan.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == [other, "shm", "triton_python_backend_stub"]
    assert [path.name for path in (tmp_path / "shm").iterdir()] == [f"{other}region"]
