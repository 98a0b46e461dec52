"""Bad requests on the real server: each is refused alone, at once and in words, while the others are answered."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from engines.client import LoadSettings, Refused, TextRow, connect, cpu_seconds, feeds_of, parse_address, run_load
from engines.triton.server import Server
from qdq.cli.judge import Judge

from .conftest import CLASSIFIER, HANGS, described

LONG = " ".join(["a"] * 600)  # 602 tokens
CHEAP = 3.0  # CPU seconds of the server for a refusal; 1 MB of text takes as long to tokenize


def ask(server: Server, body: Any, path: str = "infer", model: str = CLASSIFIER) -> tuple[int, Any]:
    """Status and JSON of a request as any client may send it."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.http}/v2/models/{model}/{path}", data)
    try:
        with urllib.request.urlopen(request, timeout=HANGS) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@contextlib.contextmanager
def cheaply(server: Server) -> Iterator[None]:
    """Refuse whatever is asked within a little of the server's CPU time, however busy the machine is."""
    before = cpu_seconds(server.process.pid)
    yield
    after = cpu_seconds(server.process.pid)
    assert before is not None and after is not None and after - before < CHEAP


def tensor(name: str, data: list[Any], shape: list[int] | None = None, datatype: str = "BYTES") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data), 1] if shape is None else shape, "data": data}


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([tensor("TEXT", [1], datatype="INT32")], "expects 'BYTES'"),
        ([tensor("TEXT", ["cat"], [1])], "shape"),
        ([tensor("TEXT", ["cat"], [1, 1, 1])], "shape"),
        ([tensor("TEXT", ["cat", "dog"], [1, 2])], "shape"),
        ([tensor("TEXT", ["cat"], [2, 1])], "element"),
        ([], "input"),
        ([tensor("TEXT_PAIR", ["cat"])], "TEXT"),
        ([tensor("input_ids", [101, 102], [1, 2], "INT64")], "input_ids"),
        ([tensor("TEXT", ["cat"]), tensor("input_ids", [-1], [1, 1], "INT64")], "input"),
        ([tensor("TEXT", ["cat"]), tensor("TEXT_PAIR", ["a", "b"])], "batch"),
        ([tensor("TEXT", [], [0, 1])], ""),
        ([tensor("TEXT", ["cat"] * 9)], "batch"),
    ],
    ids=[
        "wrong type",
        "rank 1",
        "rank 3",
        "two texts in a row",
        "too few values",
        "no input",
        "no text",
        "token ids",
        "text and token ids",
        "unequal rows",
        "empty batch",
        "beyond the largest batch",
    ],
)
def test_a_request_of_the_wrong_form_is_refused(zoo: Server, inputs: list[dict[str, Any]], said: str) -> None:
    with cheaply(zoo):
        status, answer = ask(zoo, {"inputs": inputs})
    assert status == 400 and said.lower() in answer["error"].lower(), answer


@pytest.mark.parametrize("body", [b"no json", b"", b"[]", b'{"inputs": 3}', b'{"inputs": [{"name": "TEXT"}]}'])
def test_what_is_no_request_is_refused(zoo: Server, body: bytes) -> None:
    """Triton's own HTTP server says 500 to a body that is no JSON; what counts is that it says so and goes on."""
    status, answer = ask(zoo, body)
    assert status in (400, 500) and answer["error"]
    assert ask(zoo, {"TEXT": "the cat"}, "generate")[0] == 200


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "row 0: the text is empty"),
        ("   \n\t ", "row 0: the text is empty"),
        (LONG, "602 tokens"),
        ("a" * 1_000_000, "1000000 characters"),
        ("cat " * 250_000, "1000000 characters"),
    ],
    ids=["empty", "blank", "600 words", "1 MB in a word", "1 MB of words"],
)
def test_a_text_that_cannot_be_answered_is_refused_in_words(zoo: Server, text: str, said: str) -> None:
    for url in (zoo.http, f"grpc://{zoo.grpc}"):
        model = described(url, CLASSIFIER)
        with connect(parse_address(url), HANGS) as client, cheaply(zoo), pytest.raises(Refused, match=said) as refused:
            client.infer(model, feeds_of(model, TextRow(text)), ("LABEL",))
        assert refused.value.status == 400


@pytest.mark.parametrize("text", ["cat 👋🏽 dog", "cat\0dog", "\ufeffcat", "ﬁ İ ß", "cat" * 50, "\u202ecat", "日本"])
def test_unusual_texts_are_answered(zoo: Server, text: str) -> None:
    status, answer = ask(zoo, {"TEXT": text}, "generate")
    assert status == 200 and answer["LABEL"], answer
    for url in (zoo.http, f"grpc://{zoo.grpc}"):
        model = described(url, CLASSIFIER)
        with connect(parse_address(url)) as client:
            outputs = client.infer(model, feeds_of(model, TextRow(text)), ("LABEL", "SCORE"))
        assert outputs["LABEL"][0, 0] == answer["LABEL"]


def test_bytes_that_are_no_text_are_refused(zoo: Server) -> None:
    raw = b"\x04\x00\x00\x00\xff\xfe\x00\x80"
    head = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(raw)}}
    text = json.dumps({"inputs": [head]}).encode()
    request = urllib.request.Request(
        f"{zoo.http}/v2/models/{CLASSIFIER}/infer", text + raw, {"Inference-Header-Content-Length": str(len(text))}
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=HANGS)
    assert error.value.code == 400 and b"UTF-8" in error.value.read()


def test_cutting_is_asked_for_and_said(zoo: Server) -> None:
    status, answer = ask(zoo, {"TEXT": LONG, "truncation": "cut"}, "generate")
    assert status == 200 and (answer["TOKENS"], answer["CUT"]) == (32, 570)
    assert ask(zoo, {"TEXT": "the cat", "truncation": "cut"}, "generate")[1]["CUT"] == 0
    for wrong in ({"truncation": "cuts"}, {"dimensions": 3}, {"truncate": "cut"}):
        status, answer = ask(zoo, {"TEXT": "the cat", **wrong}, "generate")
        assert status == 400 and next(iter(wrong)) in answer["error"]


def test_a_bad_row_fails_alone(zoo: Server, rows: Mapping[str, list[TextRow]], judge: Callable[[str], Judge]) -> None:
    """Good and bad texts from 16 clients at once, in the same batches: every one gets what it deserves."""
    expected, model = judge(CLASSIFIER), described(zoo.http, CLASSIFIER)
    good = rows[CLASSIFIER]
    bad = [TextRow(""), TextRow(LONG), TextRow("x" * 100_000), TextRow(" ")]
    feeds = [feeds_of(model, row) for row in (*good, *bad * 9)]
    settings = LoadSettings(16, 600.0, HANGS, 3 * len(feeds))
    calls = run_load(parse_address(zoo.http), model, feeds, settings, Judge.outputs(model))
    assert len(calls) == 3 * len(feeds)
    for call in calls:
        if call.row < len(good):
            assert call.outputs is not None, call.message
            assert expected.differs(call.row, call.outputs) == ""
        else:
            assert call.status == 400, call.message


def test_rows_of_one_request_are_answered_together(zoo: Server) -> None:
    """A request is answered as a whole: one bad row of it is named."""
    status, answer = ask(zoo, {"inputs": [tensor("TEXT", ["the cat", "a dog", "our teacher"])]})
    labels = next(output for output in answer["outputs"] if output["name"] == "LABEL")
    assert status == 200 and labels["shape"] == [3, 1]
    status, answer = ask(zoo, {"inputs": [tensor("TEXT", ["the cat", "", "our teacher"])]})
    assert status == 400 and "row 1" in answer["error"]
