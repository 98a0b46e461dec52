"""Trainings of a search: what a step costs, and students that are cut from students but learn from the given model."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from qdq.auto.search.candidates import WHOLE, Candidate
from qdq.auto.search.material import read_judges, training_samples
from qdq.auto.search.settings import SearchSettings
from qdq.auto.search.training import Start, measure_step, train
from qdq.compress import dynabert
from qdq.inject.widths import blocks
from qdq.loading.model import LoadedModel, load_model


@pytest.fixture
def settings(tmp_path: Path) -> SearchSettings:
    for name, verb in (("train", "sees"), ("dev", "wants")):
        rows = "".join(f"the {one} {verb} {index}\t{index % 2}\n" for index, one in enumerate(["cat", "dog"] * 12))
        (tmp_path / f"{name}.tsv").write_text(f"text\tlabel\n{rows}", encoding="utf-8")
    paths = {name: str(tmp_path / f"{name}.tsv") for name in ("train", "dev")}
    return SearchSettings(model="m", **paths, sequence=16)


def test_a_step_has_its_price(settings: SearchSettings, load_tiny: Callable[..., LoadedModel]) -> None:
    loaded = load_tiny()
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    step = measure_step(loaded, training_samples(settings, loaded), seed=1)
    assert 0 < step.teacher <= step.seconds  # a tiny one has no own part beyond the noise
    assert all(value.equal(before[name]) for name, value in loaded.model.state_dict().items())


def test_a_student_of_a_student_learns_from_the_given_model(
    settings: SearchSettings, load_tiny: Callable[..., LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_tiny(num_attention_heads=4)
    samples, judges = training_samples(settings, loaded), read_judges(settings, loaded)
    teachers: list[Any] = []
    original = dynabert.WidthDistillation

    def watched(student: Any, switch: Any, teacher: Any, *others: Any) -> Any:
        teachers.append(teacher)
        return original(student, switch, teacher, *others)

    monkeypatch.setattr(dynabert, "WidthDistillation", watched)
    how = {"steps": 2, "target": "openvino", "bf16": False}
    wide = Candidate(Fraction(3, 4))
    first = train(wide, settings, Start(loaded, loaded.model, WHOLE), samples, judges, output=tmp_path / "a", **how)
    student = load_model(str(first.folder))
    narrow, start = Candidate(Fraction(1, 2)), Start(loaded, student.model, wide.width)
    second = train(narrow, settings, start, samples, judges, output=tmp_path / "b", **how)
    found = [blocks(load_model(str(one.folder)).model)[0] for one in (first, second)]
    assert [(one.heads, one.neurons) for one in found] == [(3, 48), (2, 32)]
    assert teachers == [loaded.model, loaded.model]
    assert second.step in (0, 1, 2) and 0 <= second.metric <= 1
