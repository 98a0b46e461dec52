"""The clients in examples/serve/ against the real server: every curl line of the page, every script for every task."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.triton.server import Server

from .conftest import SERVED, serving

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "serve"
PAGE = (EXAMPLES / "README.md").read_text(encoding="utf-8")
CURLS = re.findall(r"^curl .*?'\{.*?\}'$", PAGE, flags=re.MULTILINE | re.DOTALL)
ADDRESSES: dict[str, Callable[[Server], str]] = {
    "plain_client": lambda server: server.http,
    "http_client": lambda server: server.http.removeprefix("http://"),
    "grpc_client": lambda server: server.grpc,
}
NEEDS = {"plain_client": "json", "http_client": "geventhttpclient", "grpc_client": "grpc"}


def printed(line: str, server: Server) -> Any:
    ran = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=60, env={**os.environ, "TRITON": server.http}
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def named(task: str) -> dict[str, Any]:
    """Inputs that the page's curl line sends to the model of a task."""
    line = next(curl for curl in CURLS if f"/{task}/generate" in curl)
    body: dict[str, Any] = json.loads(line[line.index("'") + 1 : -1])
    return body


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("line", [curl for curl in CURLS if "openai" not in curl])
def test_the_curl_lines_of_the_page_are_answered(zoo: Server, line: str) -> None:
    answer = printed(line, zoo)
    assert "error" not in answer, answer
    outputs = {output["name"] for output in answer["outputs"]} if "outputs" in answer else set(answer)
    said = set(re.findall(r"`([A-Z]+)`", PAGE[: PAGE.index(line)].rpartition("```\n")[2]))
    assert outputs & said or "LOGITS" in outputs


def test_the_page_has_a_line_for_every_task() -> None:
    assert all(named(task) for task in SERVED)


@pytest.mark.parametrize("script", ADDRESSES)
def test_every_script_asks_every_task_and_gets_the_same_answers(zoo: Server, script: str) -> None:
    pytest.importorskip(NEEDS[script])
    sys.path.insert(0, str(EXAMPLES))
    try:
        asking = __import__(script)
    finally:
        sys.path.remove(str(EXAMPLES))
    url = ADDRESSES[script](zoo)
    for task in SERVED:
        body = named(task)
        words = [
            f"{name}={text}" for name, value in body.items() for text in (value if isinstance(value, list) else [value])
        ]
        if script == "plain_client":
            answer = asking.ask(url, task, asking.body_of(words))
        else:
            inputs = {name: value if isinstance(value, list) else [value] for name, value in body.items()}
            answer = asking.ask(url, task, inputs, {})
        expected = printed(next(curl for curl in CURLS if f"/{task}/generate" in curl), zoo)
        assert answer.keys() <= expected.keys() and "TOKENS" in answer
        for name, value in answer.items():
            assert value == (
                pytest.approx(expected[name], abs=0.05)
                if "SCORE" in name or isinstance(value, list)
                else expected[name]
            )


@pytest.mark.parametrize("script", ADDRESSES)
def test_scripts_say_what_the_server_refuses(zoo: Server, script: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(NEEDS[script])
    words = [sys.executable, str(EXAMPLES / f"{script}.py"), ADDRESSES[script](zoo), "text-classification"]
    ran = subprocess.run([*words, "TEXT="], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1 and "empty" in ran.stderr
    ran = subprocess.run([*words, "TEXT=" + "cat " * 100, "truncation=cut"], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and json.loads(ran.stdout)["CUT"] == 70


def test_the_shape_of_a_gateway_is_served_by_the_model_in_front(
    deployed: Callable[[str], Path], tmp_path: Path, zoo: Server
) -> None:
    """The request of LiteLLM's Triton provider, and the one output it reads: [N, dimensions]."""
    repository = tmp_path / "models"
    shutil.copytree(deployed("feature-extraction") / "onnxruntime" / "model_repository", repository)
    shutil.copytree(EXAMPLES / "openai_embeddings", repository / "openai_embeddings")
    config = repository / "openai_embeddings" / "config.pbtxt"
    text = config.read_text(encoding="utf-8")
    text = text.replace("all-MiniLM-L6-v2", "feature-extraction").replace('"40"', '"8"')
    config.write_text(text, encoding="utf-8")
    texts = ["the cat", "a small dog", *["our teacher"] * 20]
    body = {"inputs": [{"name": "input_text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}]}
    with serving(repository) as server:
        line = "curl -s $TRITON/v2/models/openai_embeddings/infer -d @-"
        ran = subprocess.run(
            ["bash", "-c", line],
            input=json.dumps(body),
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "TRITON": server.http},
        )
        (output,) = json.loads(ran.stdout)["outputs"]
        assert output["shape"] == [22, 32]
        single = printed(CURLS[4].replace("a small dog wants some fresh bread .", "a small dog"), zoo)["EMBEDDING"]
        assert output["data"][32:64] == pytest.approx(single, abs=0.05)
        for line in CURLS:
            if "openai" in line:
                assert printed(line, server)["outputs"][0]["shape"] == [2, 32]
