"""The study that damages checkpoints: a hundred of its ten thousand, and that it notices every kind of fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from qdq.loading import model, reference
from qdq.studies.fuzz import __main__ as study
from qdq.studies.fuzz import judge
from qdq.studies.fuzz.checkpoints import write_classifier, write_embedder
from qdq.studies.fuzz.mutations import mutate


def test_no_damage_ends_in_an_internal_error_or_a_wrong_model(tmp_path: Path) -> None:
    """All ten thousand: ``python -m qdq.studies.fuzz --mutations 10000``."""
    report = study.fuzz(100, seed=1, scratch=tmp_path)
    assert report["faults"] == []
    assert sum(report["outcomes"].values()) == 100
    assert report["outcomes"]["refused"] > 30 and report["outcomes"]["same"] > 10


@pytest.mark.parametrize("write", [write_classifier, write_embedder])
def test_a_whole_checkpoint_is_the_same_model(write: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = write(tmp_path / "whole")
    assert judge.judge(folder, judge.outputs_of(folder)) == judge.Verdict("same")


def test_a_config_that_changes_the_model_is_another_model(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "whole")
    whole = judge.outputs_of(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}), encoding="utf-8")
    assert judge.judge(folder, whole) == judge.Verdict("other")


def misread(loaded: Any) -> Any:
    loaded.model.base_model.embeddings.token_type_embeddings.weight.data.add_(1.0).mul_(-1.0)
    return loaded


def of_another_head(loaded: Any) -> Any:
    return replace(loaded, pooling=replace(loaded.pooling, normalize=False))


@pytest.mark.parametrize(("write", "change"), [(write_classifier, misread), (write_embedder, of_another_head)])
def test_a_wrong_reading_is_noticed(
    write: Callable[[Path], Path], change: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "whole")
    load = model.load_model
    monkeypatch.setattr(model, "load_model", lambda name: change(load(name)))
    verdict = judge.judge(folder)
    assert verdict.kind == "wrong" and "computes other outputs" in verdict.said


def raises(error: BaseException) -> Callable[..., Any]:
    def fail(*_arguments: Any) -> Any:
        raise error

    return fail


def test_crashes_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_classifier(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(reference, "open_reference", raises(model.ModelError("x: cannot be loaded")))
        assert judge.judge(folder).kind == "unknown"
    monkeypatch.setattr(model, "load_model", raises(KeyError("layer")))
    assert judge.judge(folder).kind == "internal"


def test_every_mutation_can_be_repeated(tmp_path: Path) -> None:
    done = []
    for name in ("first", "second"):
        folder = write_embedder(tmp_path / name)
        done.append([mutate(folder, Random(f"3/{number}")) for number in range(5)])
    assert done[0] == done[1]
    first, second = (
        sorted(p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()) for n in ("first", "second")
    )
    assert first == second
