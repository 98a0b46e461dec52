"""Asking a server: the same answers, refusals and messages over HTTP and gRPC."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from engines.client import (
    ModelInfo,
    Refused,
    Tensor,
    TextRow,
    answer_of,
    answer_text,
    choose_model,
    connect,
    feeds_of,
    parse_address,
    small_outputs,
)
from engines.client.protocol import from_bytes, to_bytes
from qdq.errors import ConfigError, ServeError

from .stand_in import NAME, StandIn


def text_model(*names: str) -> ModelInfo:
    return ModelInfo("m", tuple(Tensor(name, "BYTES", (-1, 1)) for name in names), ())


def test_a_text_is_answered_with_the_outputs_that_were_asked_for(url: str, stand_in: StandIn) -> None:
    with connect(parse_address(url)) as client:
        model = choose_model(client, None)
        assert model.name == NAME and small_outputs(model) == ("LABEL", "SCORE", "TOKENS")
        feeds = feeds_of(model, TextRow("two words 👋\0"))
        answer = answer_of(client.infer(model, feeds, small_outputs(model), {"truncation": "cut", "dimensions": 3}))
    assert answer == {"label": "long", "score": 12.0, "tokens": 3}
    assert answer_text(answer) == "long  12.0000"
    (seen,) = stand_in.seen
    assert seen["texts"] == {"TEXT": ["two words 👋\0"]} and seen["outputs"] == ["LABEL", "SCORE", "TOKENS"]
    assert {"truncation": "cut", "dimensions": 3}.items() <= seen["parameters"].items()


def test_a_refusal_has_the_status_and_the_words_of_the_server(url: str, stand_in: StandIn) -> None:
    with connect(parse_address(url)) as client:
        model = client.describe(NAME)
        with pytest.raises(Refused, match="TEXT is empty") as refused:
            client.infer(model, feeds_of(model, TextRow("")))
        assert refused.value.status == 400
        assert client.infer(model, feeds_of(model, TextRow("on we go")))  # the connection is still good
        with pytest.raises(Refused, match="'nothing' is not found") as refused:
            client.describe("nothing")
        assert refused.value.status == 404
        stand_in.busy = True
        with pytest.raises(Refused, match="maximum queue size") as refused:
            client.infer(model, feeds_of(model, TextRow("text")))
        assert refused.value.status == 503


def test_an_answer_is_waited_for_as_long_as_was_said(url: str, stand_in: StandIn) -> None:
    with connect(parse_address(url), timeout=0.2) as client:
        model = client.describe(NAME)
        stand_in.delay = 1.0
        with pytest.raises(Refused) as refused:
            client.infer(model, feeds_of(model, TextRow("text")))
    assert refused.value.status == 504


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_listens(scheme: str) -> None:
    if scheme == "grpc":
        pytest.importorskip("tritonclient.grpc", reason="the triton extra is not installed")
    with socket.socket() as taken:  # bound and not listening, so that nobody else takes it
        taken.bind(("127.0.0.1", 0))
        address = parse_address(f"{scheme}://127.0.0.1:{taken.getsockname()[1]}")
        with connect(address, timeout=5) as client, pytest.raises(Refused) as refused:
            client.ready_models()
    assert refused.value.status == 0


def test_addresses() -> None:
    assert str(parse_address("localhost")) == "http://localhost:8000"
    assert str(parse_address("localhost:9")) == "http://localhost:9"
    assert str(parse_address("grpc://triton.example")) == "grpc://triton.example:8001"
    assert parse_address("https://triton.example/").port == 443
    for wrong, said in (("ftp://x", "unknown value 'ftp'"), ("http://x:99999", "port"), ("http://x/v2", "no address")):
        with pytest.raises(ConfigError, match=said):
            parse_address(wrong)


def test_rows_fit_the_model_or_say_what_is_missing() -> None:
    questions, choices = text_model("QUESTION", "CONTEXT"), text_model("TEXT", "CHOICES")
    assert feeds_of(questions, TextRow("who?", "she."))["CONTEXT"].tolist() == [["she."]]
    assert feeds_of(choices, TextRow("so", None, ("a", "b", "c")))["CHOICES"].shape == (1, 3)
    single = text_model("TEXT")
    for model, row, said in (
        (questions, TextRow("who?"), "--pair"),
        (choices, TextRow("so", None, ("a",)), "--choice"),
        (single, TextRow("a", "b"), "leave --pair out"),
        (single, TextRow("a", None, ("b", "c")), "leave --choice out"),
        (ModelInfo("m", (Tensor("input_ids", "INT64", (-1, -1)),), ()), TextRow("a"), "--raw-inputs"),
    ):
        with pytest.raises(ConfigError, match=said):
            feeds_of(model, row)


def test_the_model_is_named_where_several_take_text(stand_in: StandIn) -> None:
    stand_in.names = ("one", "two")
    with connect(parse_address(stand_in.http)) as client:
        with pytest.raises(ConfigError, match="name one with --model: one, two"):
            choose_model(client, None)
        assert choose_model(client, "two").name == "two"
        stand_in.names = ()
        with pytest.raises(ConfigError, match="no model that is ready"):
            choose_model(client, None)


def test_tensors_survive_the_wire() -> None:
    texts = np.array([["", "ä👋", "a\0b"]], dtype=object)
    assert from_bytes(to_bytes(texts, "BYTES"), "BYTES", (1, 3)).tolist() == texts.tolist()
    for datatype, kind in (("FP32", np.float32), ("INT64", np.int64), ("BOOL", np.bool_), ("FP16", np.float16)):
        values = np.array([[0, 1], [1, 0]], kind)
        again = from_bytes(to_bytes(values.T, datatype), datatype, (2, 2))
        assert again.dtype == kind and np.array_equal(again, values.T)
    with pytest.raises(ServeError, match="3 values for a FP32 tensor"):
        from_bytes(b"\0" * 12, "FP32", (2, 2))
    with pytest.raises(ServeError, match="BF16"):
        to_bytes(np.zeros(1), "BF16")


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ({"LABELS": '[{"label": "a", "score": 0.75}]'}, "a  0.7500"),
        ({"LABELS": "[]"}, "no class"),
        (
            {"ENTITIES": '[{"entity": "PER", "score": 0.5, "word": "Ann", "start": 0, "end": 3}]'},
            "PER      0.5000  0-3  Ann",
        ),
        ({"ENTITIES": "[]"}, "no entities"),
        ({"ANSWER": "Basel", "SCORE": 0.5, "START": 3, "END": 8}, "Basel  0.5000  3-8"),
        ({"CHOICE": 1, "SCORE": 0.5, "PROBABILITIES": [0.5, 0.5]}, "1  0.5000"),
        ({"SCORE": 0.25, "CUT": 7}, "0.2500  (7 tokens cut away)"),
        ({"EMBEDDING": [1.0, 2.0, 3.0, 4.0, 5.0]}, "[1.0000, 2.0000, 3.0000, 4.0000, …]  5 dimensions"),
        ({"PREDICTIONS": '[[{"token": "cat", "score": 0.5}]]'}, "cat  0.5000"),
    ],
)
def test_answers_of_every_task_read_well(outputs: dict[str, object], said: str) -> None:
    arrays = {name: np.array([value if isinstance(value, list) else [value]]) for name, value in outputs.items()}
    assert answer_text(answer_of(arrays)) == said


def test_an_output_that_should_be_json_and_is_not() -> None:
    with pytest.raises(ServeError, match="ENTITIES holds no JSON"):
        answer_of({"ENTITIES": np.array([["not json"]], dtype=object)})
