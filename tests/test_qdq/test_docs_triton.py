"""The clients that docs/triton.md prints, run against what the product deployed.

The server is a stand-in for Triton that knows nothing but the deployed folder: it serves the inputs of config.pbtxt,
and refuses a request with another name, type or shape, or one too few or too many.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import types
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import transformers

from engines.triton.model_config import read_config
from qdq.loading.model import load_model
from qdq.text.data import Record
from qdq.text.encode import encode_batch

pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="the triton extra is not installed")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "triton.md"
TYPES = {8: "INT32", 9: "INT64"}  # ModelConfig's numbers -> the protocol's names


class Served:
    """One model of a repository, answering requests of the KServe protocol as JSON."""

    def __init__(self, folder: Path) -> None:
        self.config = read_config(folder / "config.pbtxt")
        self.inputs = {item.name: (TYPES[item.data_type], len(item.dims) + 1) for item in self.config.input}
        self._session = onnxruntime.InferenceSession(folder / "1" / self.config.default_model_filename)

    def metadata(self) -> dict[str, Any]:
        inputs = [{"name": name, "datatype": kind, "shape": [-1] * rank} for name, (kind, rank) in self.inputs.items()]
        return {"name": self.config.name, "inputs": inputs}

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return list(self._session.run(None, feeds))

    def infer(self, request: dict[str, Any]) -> dict[str, Any]:
        sent = {item["name"]: item for item in request["inputs"]}
        assert sent.keys() == self.inputs.keys(), f"the request has {sorted(sent)}, the model {sorted(self.inputs)}"
        feeds = {}
        for name, item in sent.items():
            assert (item["datatype"], len(item["shape"])) == self.inputs[name], item
            assert item["shape"][0] <= self.config.max_batch_size
            feeds[name] = np.array(item["data"], dtype=item["datatype"].lower()).reshape(item["shape"])
        answers = zip(self._session.get_outputs(), self.run(feeds), strict=True)
        outputs = [{"name": out.name, "shape": list(a.shape), "data": a.ravel().tolist()} for out, a in answers]
        return {"model_name": self.config.name, "outputs": outputs}


@pytest.fixture
def serve() -> Iterator[Callable[[Path], tuple[Served, str]]]:
    """`serve(repository)`: its one model, and the address of a server that answers for it."""
    servers: list[ThreadingHTTPServer] = []

    def start(repository: Path) -> tuple[Served, str]:
        (folder,) = (path for path in repository.iterdir() if path.is_dir())
        served = Served(folder)
        prefix = f"/v2/models/{folder.name}"

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply({prefix: served.metadata(), f"{prefix}/ready": {}}.get(self.path))

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._reply(served.infer(request) if self.path == f"{prefix}/infer" else None)

            def _reply(self, content: Any) -> None:
                self.send_response(200 if content is not None else 404)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("localhost", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return served, f"localhost:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Client:
    """tritonclient.http's client as far as the page uses it, in JSON instead of its binary form."""

    def __init__(self, url: str) -> None:
        self._url = f"http://{url}/v2/models"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def get_model_metadata(self, name: str) -> Any:
        return self._ask(name, None)

    def infer(self, name: str, inputs: list[Any]) -> Any:
        found = self._ask(f"{name}/infer", {"inputs": [vars(item) for item in inputs]})["outputs"]
        arrays = {item["name"]: np.array(item["data"], dtype=np.float32).reshape(item["shape"]) for item in found}
        return types.SimpleNamespace(as_numpy=arrays.get)

    def _ask(self, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"{self._url}/{path}", data) as answer:  # our own server
            return json.loads(answer.read())


class InferInput:
    """tritonclient.http's input: shape and type are checked against the array."""

    def __init__(self, name: str, shape: list[int], datatype: str) -> None:
        self.name, self.shape, self.datatype = name, shape, datatype

    def set_data_from_numpy(self, array: np.ndarray) -> None:
        assert list(array.shape) == self.shape and array.dtype == self.datatype.lower()
        self.data = array.ravel().tolist()


def without_types(folder: Path) -> None:
    """Let the tokenizer of a checkpoint make no token types, as one that its owner trained."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module", params=["bert", "bert, no token types", "roberta"])
def deployed(
    request: pytest.FixtureRequest,
    compiled: Path,
    tiny_checkpoint: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    qdq: Callable[..., Any],
    small: tuple[str, ...],
) -> tuple[Path, Path]:
    """A checkpoint, and the repository that was made of it."""
    place = tmp_path_factory.mktemp("deployed")
    if request.param == "bert":
        shutil.copytree(compiled / "work", place / "work")
        with pytest.MonkeyPatch.context() as there:
            there.chdir(compiled)  # where the texts are that the run recalls
            ran = qdq("deploy", "--out", place / "work", "--target", "onnxruntime", "--raw-inputs")
        assert ran.code == 0, ran.err
        return compiled / "tiny-bert", place / "work/onnxruntime/raw_repository"
    source = tiny_checkpoint(request.param.partition(",")[0], num_hidden_layers=1)
    checkpoint = Path(shutil.copytree(source, place / "model"))
    if "no token types" in request.param:
        without_types(checkpoint)
    text, out = (
        ("--calibration", compiled / "text.jsonl"),
        ("--out", place / "work", "--target", "onnxruntime", "--raw-inputs"),
    )
    ran = qdq("compile", "--model", checkpoint, *text, *out, *small)
    assert ran.code == 0, ran.err
    return checkpoint, place / "work/onnxruntime/raw_repository"


def printed(language: str, word: str) -> str:
    """The block of the page in `language` that holds `word`."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if word in block)
    return str(block)


def test_the_printed_client_gets_the_engines_answers(
    deployed: tuple[Path, Path], serve: Callable[[Path], tuple[Served, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, repository = deployed
    served, address = serve(repository)
    http = types.ModuleType("tritonclient.http")
    vars(http).update(InferInput=InferInput, InferenceServerClient=Client)
    monkeypatch.setitem(sys.modules, "tritonclient.http", http)
    monkeypatch.setattr(sys.modules["tritonclient"], "http", http, raising=False)
    code = printed("python", "InferenceServerClient")
    for old, new in {"<checkpoint>": str(checkpoint), "<name>": served.config.name, "localhost:8000": address}.items():
        code = code.replace(old, new)
    told: list[Any] = []
    exec(compile(code, str(PAGE), "exec"), {"print": told.append})
    loaded = load_model(str(checkpoint))
    texts = [Record(text) for text in ("two texts", "of one batch")]
    (expected,) = served.run(encode_batch(loaded.tokenizer, texts, tuple(served.inputs), 64, "longest"))
    np.testing.assert_allclose(told[0], expected, rtol=1e-5)


def test_the_printed_requests_are_answered(
    deployed: tuple[Path, Path], serve: Callable[[Path], tuple[Served, str]]
) -> None:
    """As the page says, without `token_type_ids` where the model has none; ids are of the tiny vocabulary."""
    served, address = serve(deployed[1])
    block = printed("", "/infer").replace("localhost:8000", address).replace("<name>", served.config.name)
    block = block.replace("7592, 2088", "52, 20")
    if "token_type_ids" not in served.inputs:
        block = re.sub(r",\n[^\n]*token_type_ids[^\n]*", "", block)
    commands = block.replace("curl ", "\ncurl --silent --fail ").strip().split("\ncurl")
    answers = [
        subprocess.run(["bash", "-c", f"curl{part.removeprefix('curl')}"], capture_output=True, text=True, timeout=60)
        for part in commands
    ]
    assert [answer.returncode for answer in answers] == [0, 0]
    (output,) = json.loads(answers[-1].stdout)["outputs"]
    assert (output["name"], output["shape"]) == ("logits", [1, 2])
