"""The model card: the Hub's YAML, and numbers that are the JSON files'."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qdq.pipeline.stages.report import facts_of
from qdq.report.card import metadata, render_card


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def test_the_hub_reads_the_card(compiled: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard((compiled / "work" / "README.md").read_text(encoding="utf-8"))
    data, accuracy = card.data, read(compiled / "work" / "onnxruntime", "accuracy")
    assert isinstance(data, hub.ModelCardData)
    assert data.pipeline_tag == "text-classification" and "int8" in data.tags
    assert data.base_model is None  # a local folder is no model of the Hub
    found = {(result.metric_name, result.metric_value) for result in data.eval_results}
    expected = {
        (f"{name} ({side.upper()})", entry[side])
        for name, entry in accuracy["metrics"].items()
        for side in ("int8", "fp32")
    }
    assert found == expected
    assert {result.dataset_name for result in data.eval_results} == {"text.jsonl"}


def test_the_card_says_what_was_measured_and_what_not(compiled: Path) -> None:
    facts = facts_of(compiled / "work", "onnxruntime")
    card, benchmark = render_card(facts), read(compiled / "work" / "onnxruntime", "benchmark")
    assert "| accuracy |" in card and "the local checkpoint `tiny-bert`" in card
    assert f"{benchmark['contestants']['int8']['sequences_per_s']:.1f} |" in card
    assert benchmark["machine"]["cpu"] in card and "qdq.load(" in card
    # Without an engine nothing is invented.
    known = {name: content for name, content in facts.files.items() if name not in ("accuracy", "benchmark")}
    bare = render_card(replace(facts, files=known, verdict=None, sizes=(0, 5), missing="tensorrt is not installed"))
    assert "metrics" not in metadata(replace(facts, files=known))
    assert bare.count("tensorrt is not installed") >= 3 and "Not timed" in bare and "Not measured" in bare


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"model": "org/name", "eval_data": "datasets:glue mrpc:validation"},
            {"base_model": "org/name", "datasets": ["glue"]},
        ),
        ({"model": None}, {"base_model": "sentence-transformers/all-MiniLM-L6-v2"}),
    ],
)
def test_names_of_the_hub_are_given_where_there_are_some(
    compiled: Path, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    facts = facts_of(compiled / "work", "onnxruntime")
    changed = replace(facts, manifest={**facts.manifest, "options": {**facts.options, **options}})
    found = metadata(changed)
    assert {key: found[key] for key in expected} == expected
