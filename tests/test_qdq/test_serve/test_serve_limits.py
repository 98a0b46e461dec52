"""Promises of config.pbtxt on the real server: metrics that count, a time limit of the queue that refuses."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import pytest

from engines.client import TextRow, connect, feeds_of, parse_address
from engines.client.protocol import Refused
from engines.serving.metrics import FAMILIES
from engines.triton import TritonSettings
from engines.triton.model_config import add_queue, read_config, render
from engines.triton.server import Server

from .conftest import CLASSIFIER, HANGS, Loaded, described, serving


def counts(server: Server) -> dict[str, float]:
    with urllib.request.urlopen(server.metrics, timeout=HANGS) as answer:
        text = answer.read().decode()
    found = re.findall(rf'^(qdq_\w+){{model="{CLASSIFIER}"}} (\S+)$', text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_the_metrics_count_texts_tokens_and_refusals(repository: Path, classified: Loaded) -> None:
    config = repository / CLASSIFIER / "config.pbtxt"
    config.write_text(config.read_text(encoding="utf-8").replace('"256"', '"2"'), encoding="utf-8")  # queue_size
    with serving(repository) as server:
        model, before = described(server.http, CLASSIFIER), counts(server)
        with connect(parse_address(server.http), HANGS) as client:
            for text, truncation in (("the cat", "error"), ("a " * 600, "cut"), ("", "error"), ("a " * 600, "error")):
                try:
                    client.infer(model, feeds_of(model, TextRow(text)), ("LABEL",), {"truncation": truncation})
                except Refused as refused:
                    assert refused.status == 400
        asked = counts(server)
        calls = classified(server.http, 32, requests=600)
        loaded = counts(server)
    assert set(before) == set(FAMILIES)
    assert {name: asked[name] - before[name] for name in before} == {
        "qdq_texts_total": 2,
        "qdq_tokens_total": 4 + 32,
        "qdq_cut_texts_total": 1,
        "qdq_refused_requests_total": 2,
        "qdq_busy_requests_total": 0,
        "qdq_failed_requests_total": 0,
        "qdq_executions_total": 4,
    }
    assert loaded["qdq_busy_requests_total"] == sum(call.status == 503 for call in calls) > 0
    assert loaded["qdq_texts_total"] - asked["qdq_texts_total"] == sum(call.outputs is not None for call in calls)


def test_a_request_that_waited_too_long_is_refused(repository: Path) -> None:
    """With the policy that --queue-timeout writes a request may ask for less, here for what none makes."""
    path = repository / CLASSIFIER / "config.pbtxt"
    config = read_config(path)
    add_queue(config, TritonSettings(CLASSIFIER, "onnxruntime", queue_timeout_ms=600_000))
    path.write_text(render(config), encoding="utf-8")
    with serving(repository) as server, connect(parse_address(server.http), HANGS) as client:
        model = described(server.http, CLASSIFIER)
        feeds = feeds_of(model, TextRow("the cat"))
        with pytest.raises(Refused) as refused:
            client.infer(model, feeds, ("LABEL",), {"timeout": 1})
        assert refused.value.status == 503
        assert client.infer(model, feeds, ("LABEL",))["LABEL"][0, 0]
