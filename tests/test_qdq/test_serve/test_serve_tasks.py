"""Text in, answers out for every task on a real server: what it answers is what the engine says, HTTP and gRPC."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from engines.client import LoadSettings, TextRow, answer_of, connect, feeds_of, parse_address, run_load, small_outputs
from engines.triton.server import Server
from qdq.base.choices import INFORMATION_EXTRACTION
from qdq.cli.judge import Judge
from qdq.tasks.extraction import best_span, windows
from qdq.text.data import Record
from qdq.uie.extract import Found, Reader

from .conftest import CLASSIFIER, HANGS, SERVED, described

Qdq = Callable[..., Any]


@pytest.mark.parametrize("task", SERVED)
def test_the_server_answers_as_the_engine_does(
    zoo: Server, judge: Callable[[str], Judge], rows: Mapping[str, list[TextRow]], task: str
) -> None:
    """All rows of a task, from 8 clients, so that batches mix lengths."""
    expected = judge(task)
    for url in (zoo.http, f"grpc://{zoo.grpc}"):
        model = described(url, task)
        feeds = [feeds_of(model, row) for row in rows[task]]
        calls = run_load(
            parse_address(url), model, feeds, LoadSettings(8, 600.0, HANGS, len(feeds)), Judge.outputs(model)
        )
        assert [call.message for call in calls if call.outputs is None] == []
        assert sorted(call.row for call in calls) == list(range(len(feeds)))
        differences = [expected.differs(call.row, call.outputs) for call in calls if call.outputs is not None]
        assert not any(differences), next(filter(None, differences))


def test_answers_say_where_in_the_text_they_are(zoo: Server, rows: Mapping[str, list[TextRow]]) -> None:
    with connect(parse_address(zoo.http)) as client:
        questions, tags = client.describe("question-answering"), client.describe("token-classification")
        for row in rows["question-answering"][:8]:
            answer = answer_of(client.infer(questions, feeds_of(questions, row), small_outputs(questions)))
            assert answer["answer"] == (row.pair or "")[answer["start"] : answer["end"]]
            assert 0 <= answer["score"] <= 1
        for row in rows["token-classification"][:8]:
            found = answer_of(client.infer(tags, feeds_of(tags, row), small_outputs(tags)))["entities"]
            assert all(entity["word"] == row.text[entity["start"] : entity["end"]] for entity in found)


def test_answers_to_a_prompt_are_those_of_the_extraction(
    zoo: Server, judge: Callable[[str], Judge], rows: Mapping[str, list[TextRow]]
) -> None:
    """`qdq extract` with the same engine finds the same places, in the same order."""
    served = judge(INFORMATION_EXTRACTION).served
    reader = Reader(served.runner, served.loaded.tokenizer, served.loaded.inputs, served.sequence, batch=1)
    model = described(zoo.http, INFORMATION_EXTRACTION)
    with connect(parse_address(zoo.http)) as client:
        found = 0
        for row in rows[INFORMATION_EXTRACTION][:12]:
            (expected,) = reader.answers([(row.text, row.pair or "")])
            spans = answer_of(client.infer(model, feeds_of(model, row), small_outputs(model)))["spans"]
            assert [(one["text"], one["start"], one["end"]) for one in spans] == [
                one[:3] for one in map(_plain, expected)
            ]
            found += len(spans)
    assert found


def _plain(found: Found) -> tuple[str, int, int]:
    return found.text, found.start, found.end


def test_a_context_that_is_too_long_is_read_in_windows(
    zoo: Server, judge: Callable[[str], Judge], rows: Mapping[str, list[TextRow]]
) -> None:
    """The answer of the window whose start and end logits are best, as `qdq evaluate` has it."""
    served, model = judge("question-answering").served, described(zoo.http, "question-answering")
    texts = [row.text for row in rows["token-classification"]]
    question, context = "but why ?", " ".join(texts[:6])
    parts = windows(served.loaded.tokenizer, [Record(question, context)], served.sequence, None, True)
    with connect(parse_address(zoo.http)) as client:
        answer = answer_of(client.infer(model, feeds_of(model, TextRow(question, context)), small_outputs(model)))
    outputs = [served.runner({name: np.array([part.tokens[name]]) for name in served.loaded.inputs}) for part in parts]
    spans = [
        best_span(part, {name: values[0] for name, values in one.items()}, 30)
        for part, one in zip(parts, outputs, strict=True)
    ]
    best = max(spans, key=lambda span: span.score)
    assert len(parts) > 2 and (answer["start"], answer["end"]) == (best.first, best.last)
    assert answer["answer"] == context[best.first : best.last] and answer["cut"] == 0


def test_query_answers_every_task(qdq: Qdq, zoo: Server, rows: Mapping[str, list[TextRow]]) -> None:
    for task in SERVED:
        row = rows[task][0]
        words = ["--pair", row.pair] if row.pair else []
        words += [word for choice in row.choices for word in ("--choice", choice)]
        for url in (zoo.http, f"grpc://{zoo.grpc}"):
            ran = qdq("query", url, row.text, *words, "--model", task)
            assert ran.code == 0 and ran.out.strip(), ran.err


def test_load_compares_every_answer_with_the_engine(
    qdq: Qdq, zoo: Server, deployed: Callable[[str], Any], jsonl_file: Any
) -> None:
    words = ("--model", CLASSIFIER, "--data", jsonl_file, "--clients", "16", "--requests", "100", "--json")
    ran = qdq("load", zoo.http, *words, "--check", deployed(CLASSIFIER))
    assert ran.code == 0, ran.out + ran.err
    report = json.loads(ran.out)
    (run,) = report["runs"]
    check = run["check"]
    assert (check["right"], check["wrong"]) == (100, 0) and check["same"] > 90 and run["batches"]["rows"] == 100
    assert run["batches"]["mean_batch"] > 1 and run["cpu_ms_per_text"] > 0 and run["direct_cpu_ms_per_text"] > 0
    assert "other/" not in report["check"]["engine"]
