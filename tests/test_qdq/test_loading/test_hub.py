"""Hub ids against a hub that is closed, silent, refusing or there; in children, as the endpoint is read at import."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from qdq.base.notice import NOTICE
from qdq.loading.hub import download

COMMIT = "0123456789abcdef0123456789abcdef01234567"

CHILD = """
import json, sys, time
from pathlib import Path
from qdq.errors import ModelError
from qdq.loading.hub import download
answers = []
for name in json.loads(sys.argv[1]):
    start = time.monotonic()
    try:
        folder = download(name, **json.loads(sys.argv[2]))
        said = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    except ModelError as error:
        said = str(error)
    answers.append([said, time.monotonic() - start])
print(json.dumps(answers))
"""


def ask(home: Path, endpoint: str, *names: str, **options: bool) -> list[tuple[str | list[str], float]]:
    """Per name: the downloaded files or the message, and the seconds it took."""
    network = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*"}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(names), json.dumps(options)],
        capture_output=True,
        text=True,
        env=inherited | network,
    )
    assert ran.returncode == 0, ran.stderr
    return [(said, seconds) for said, seconds in json.loads(ran.stdout)]


@contextmanager
def hub(models: Mapping[str, Mapping[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """As much of a model hub as downloading takes; yields its endpoint and the list of files it served."""
    served: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        """Model metadata, file lists and files."""

        def do_GET(self) -> None:
            if api := re.fullmatch(
                r"/api/models/([\w-]+/[\w-]+)(/revision/main|/tree/.*)?", self.path.partition("?")[0]
            ):
                self.describe(api[1], api[2] or "")
            else:
                self.file()

        do_HEAD = do_GET  # noqa: N815  # the name the base class looks for

        def describe(self, name: str, part: str) -> None:
            files = models.get(name)
            if files is None:
                self.reply(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            elif not files:
                self.reply(
                    403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {name} is restricted"}
                )
            elif part.startswith("/tree"):
                rows = [{"type": "file", "path": f, "size": len(c), "oid": "0" * 40} for f, c in files.items()]
                self.reply(200, json.dumps(rows).encode(), {})
            else:
                siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
                self.reply(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode(), {})

        def file(self) -> None:
            match = re.fullmatch(rf"/([\w-]+/[\w-]+)/resolve/{COMMIT}/(.+)", self.path)
            content = models.get(match[1], {}).get(match[2]) if match else None
            if content is None:
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            if self.command == "GET" and match:
                served.append(match[2])
            self.reply(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

        def reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", served
        server.shutdown()


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_closed_hub_is_one_error_at_once_and_impossible_names_never_get_there(tmp_path: Path) -> None:
    names = (
        "org/name",
        "bert-base-uncazed",
        "a--b",
        "../secret",
        "~nobody/x",
        "a/b/c",
        "https://hub/org/name",
        "x\ny",
        "",
    )
    answers = ask(tmp_path, closed_port(), *names)
    for (said, seconds), name in zip(answers[:2], names, strict=False):
        assert isinstance(said, str)
        assert said.startswith(f"model '{name}': no such folder here, and the model hub cannot be reached (")
        assert "refused" in said
        assert said.endswith("download the checkpoint on another machine and give its folder")
        assert seconds < 5
    for (said, _), name in zip(answers[2:], names[2:], strict=True):
        assert said == f"model '{name}': no such folder, and not a hub id such as org/name; check the path"


def test_a_silent_hub_is_one_error_within_five_seconds(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        start = time.monotonic()
        ((said, seconds),) = ask(tmp_path, f"http://127.0.0.1:{listener.getsockname()[1]}", "org/name")
        whole = time.monotonic() - start
    assert isinstance(said, str)
    assert "the model hub cannot be reached (" in said
    assert seconds < 5
    assert whole < seconds + 3  # nothing that still waits keeps the process from ending


FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickle",
    "vocab.txt": b"a",
    "sentencepiece.bpe.model": b"s",
    "1_Pooling/config.json": b"[]",
    "README.md": b"text",
    "tf_model.h5": b"other",
}
WANTED = ["1_Pooling/config.json", "config.json", "model.safetensors", "sentencepiece.bpe.model", "vocab.txt"]


def test_download_takes_what_is_needed_and_later_runs_need_no_hub(tmp_path: Path) -> None:
    with hub({"org/model": FILES}) as (endpoint, served):
        ((first, _),) = ask(tmp_path, endpoint, "org/model")
        assert first == WANTED
        assert sorted(served) == WANTED  # no pickle
    ((again, _),) = ask(tmp_path, endpoint, "org/model")
    assert again == WANTED


def test_a_download_says_how_much_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def snapshot(name: str, local_files_only: bool = False, **_: object) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError(name)
        return "folder"

    files = {"config.json": 570, "model.safetensors": 90_868_370, "pytorch_model.bin": 90_888_945}
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("qdq.loading.hub._listing", lambda name: files)
    caplog.set_level(NOTICE, "qdq.loading.hub")
    assert download("org/name") == Path("folder")
    monkeypatch.setattr("qdq.loading.hub._listing", lambda name: dict.fromkeys(files))  # a mirror that says no sizes
    download("org/name", allow_pickle=True)
    sized, unsized = (message.partition(", kept in ")[0] for message in caplog.messages)
    assert sized == "downloading org/name from the hub: 2 files, 91 MB"  # not the pickle
    assert unsized == "downloading org/name from the hub: 3 files"


def test_a_cache_without_weights_is_completed(tmp_path: Path) -> None:
    """Other programs cache single files, such as the tokenizer alone."""
    with hub({"org/model": {"config.json": b"{}", "model.safetensors": b"weights"}}) as (endpoint, served):
        ask(tmp_path, endpoint, "org/model")
        served.clear()
        next(tmp_path.rglob("model.safetensors")).unlink()
        ((said, _),) = ask(tmp_path, endpoint, "org/model")
    assert said == ["config.json", "model.safetensors"]


def test_refusals_say_which(tmp_path: Path) -> None:
    pickled = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    models = {"org/pickled": pickled, "org/flax": {"config.json": b"{}"}, "org/gated": {}}
    with hub(models) as (endpoint, served):
        answers = ask(tmp_path, endpoint, "org/pickled", "org/flax", "org/unknown", "org/gated")
        assert served == []
        ((trusted, _),) = ask(tmp_path, endpoint, "org/pickled", allow_pickle=True)
    pickle, flax, unknown, gated = (str(said) for said, _ in answers)
    assert pickle.startswith("model 'org/pickled': has weights stored as pickle only, which can run code when read")
    assert "--allow-pickle" in pickle
    assert flax.startswith("model 'org/flax': has no safetensors weights on the hub")
    assert unknown.startswith(
        "model 'org/unknown': no such folder here and no such model on the hub; check the spelling"
    )
    assert gated.startswith("model 'org/gated': no such folder here, and the hub refuses it (")
    assert "Access to org/gated is restricted" in gated
    assert trusted == ["config.json", "pytorch_model.bin"]


def test_offline_mode_is_reported_as_such(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, '["org/name"]', "{}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    ((said, seconds),) = json.loads(ran.stdout)
    assert "offline mode is enabled" in said
    assert seconds < 5
