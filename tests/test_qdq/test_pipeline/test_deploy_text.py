"""Facts of a model and of its plan that decide how texts are served."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qdq.errors import DeployError
from qdq.pipeline.stages.deploy_text import profiled_buckets, refusal, require_profile


@pytest.mark.parametrize(("batch", "sequence", "said"), [(41, 128, "--batch: .* at most 40"), (8, 129, "--sequence")])
def test_a_plan_is_not_served_beyond_its_profile(tmp_path: Path, batch: int, sequence: int, said: str) -> None:
    (tmp_path / "build.json").write_text(json.dumps({"settings": {"batch_max": 40, "sequence_max": 128}}))
    require_profile(tmp_path, 40, 128)
    with pytest.raises(DeployError, match=said):
        require_profile(tmp_path, batch, sequence)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"tokenizer": SimpleNamespace(is_fast=False)}, "no fast form"),
        ({"token_level": (), "outputs": ("scores",)}, "returns scores of its own"),
        ({"token_level": ()}, None),
    ],
)
def test_a_model_that_cannot_take_texts_says_why(changes: dict[str, Any], said: str | None) -> None:
    facts = {
        "tokenizer": SimpleNamespace(is_fast=True),
        "token_level": None,
        "outputs": ("logits",),
        "task": SimpleNamespace(name="text-classification", outputs=("logits",)),
    }
    found = refusal(SimpleNamespace(**(facts | changes)))  # type: ignore[arg-type]
    assert found is None if said is None else said in str(found)


def test_buckets_have_profiles_only_where_the_plan_was_built_with_them(tmp_path: Path) -> None:
    said: list[str] = []
    stage: Any = SimpleNamespace(say=said.append)
    (tmp_path / "build.json").write_text('{"settings": {"buckets": [32, 64]}}', encoding="utf-8")
    assert profiled_buckets(tmp_path, (32, 64), stage) == (32, 64) and not said
    assert profiled_buckets(tmp_path, (), stage) == () and not said
    assert profiled_buckets(tmp_path, (32,), stage) == ()
    assert "qdq build --buckets 32" in said[0]
