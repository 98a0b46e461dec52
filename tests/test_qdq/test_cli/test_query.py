"""`qdq query` and `qdq load` as commands, on a server in this process: answers, exit codes, files, one error each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ...test_engines.test_client.stand_in import StandIn, http_server

Qdq = Callable[..., Any]


@pytest.fixture
def server() -> Iterator[StandIn]:
    """A server with one model that takes text and counts its characters."""
    with http_server() as model:
        yield model


def test_one_text_is_answered_in_a_line(qdq: Qdq, server: StandIn) -> None:
    ran = qdq("query", server.http, "a text to answer")
    assert (ran.code, ran.out, ran.err) == (0, "long  16.0000\n", "")
    ran = qdq("query", server.http, "--pair", "its pair", "short", "--truncation", "cut", "--outputs", "LABEL")
    assert ran.out == "short\n"
    assert server.seen[-1]["texts"] == {"TEXT": ["short"], "TEXT_PAIR": ["its pair"]}
    assert server.seen[-1]["parameters"]["truncation"] == "cut" and server.seen[-1]["outputs"] == ["LABEL"]


def test_several_texts_keep_their_order_and_one_refusal_fails_alone(qdq: Qdq, server: StandIn) -> None:
    texts = [f"text {'x' * number}" if number != 10 else "" for number in range(20)]
    ran = qdq("query", server.http, *texts, "--json")
    answers = json.loads(ran.out)
    assert ran.code == 1
    scores = [max(10.0, len(text)) if text else None for text in texts]
    assert [answer.get("score") for answer in answers] == scores
    assert answers[10]["status"] == 400 and "TEXT is empty" in answers[10]["error"]
    out = qdq("query", server.http, "a", "").out
    assert out.startswith("a\n  short  10.0000\n\n  error: http://127.0.0.1:") and out.endswith("TEXT is empty\n")


def test_a_file_is_asked_row_by_row(qdq: Qdq, server: StandIn, tmp_path: Path) -> None:
    table = tmp_path / "pairs.tsv"
    table.write_text("sentence1\tsentence2\nfirst text\tits pair\nsecond\tanother\n", encoding="utf-8")
    ran = qdq("query", server.http, "--file", table)
    assert ran.out == "first text\n  short  10.0000\nsecond\n  short  10.0000\n"
    assert sorted(seen["texts"]["TEXT_PAIR"][0] for seen in server.seen) == ["another", "its pair"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "no text; give TEXT, or --file"),
        (("text", "--file", "x.tsv"), 2, "both say what to ask"),
        (("text", "--model", "nothing"), 1, "'nothing' is not found"),
        (("text", "--choice", "a", "--choice", "b"), 2, "leave --choice out"),
        (("text", "--truncation", "cuts"), 2, "did you mean 'cut'"),
    ],
)
def test_mistakes_get_one_message(qdq: Qdq, server: StandIn, words: tuple[str, ...], code: int, said: str) -> None:
    ran = qdq("query", server.http, *words)
    assert ran.code == code and said in ran.err and ran.out == ""


def test_load_reports_and_writes(qdq: Qdq, server: StandIn, tmp_path: Path) -> None:
    ran = qdq("load", server.http, "--clients", "1,4", "--requests", "40", "--out", tmp_path / "load")
    assert ran.code == 0, ran.err
    assert max(len(line) for line in ran.out.splitlines() if str(tmp_path) not in line) <= 80
    report = json.loads((tmp_path / "load" / "load.json").read_text(encoding="utf-8"))
    assert [(run["clients"], run["answered"], run["errors"]) for run in report["runs"]] == [(1, 40, {}), (4, 40, {})]
    assert report["model"] == "counts" and report["texts"] > 40 and report["runs"][0]["cpu_ms_per_text"] is not None
    assert (tmp_path / "load" / "load.png").is_file()
    assert json.loads(qdq("load", server.http, "--clients", "2", "--requests", "4", "--json").out)["texts"] > 40


def test_load_fails_when_requests_are_refused(qdq: Qdq, server: StandIn) -> None:
    server.busy = True
    ran = qdq("load", server.http, "--clients", "2", "--requests", "4")
    assert ran.code == 1 and "clients 2: 4 x" in ran.out and "maximum queue size" in " ".join(ran.out.split())


def test_load_of_token_ids_needs_a_work_directory(qdq: Qdq, server: StandIn, tmp_path: Path) -> None:
    server.inputs = {"input_ids": "INT64"}
    ran = qdq("load", server.http, "--requests", "4")
    assert ran.code == 2 and "--check DIR" in ran.err
    ran = qdq("load", server.http, "--requests", "4", "--check", tmp_path)
    assert ran.code == 2 and "no repository of a model of token ids 'counts'" in ran.err
