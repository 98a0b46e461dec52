"""Sensitivity: a prefix that is not computed again changes nothing, damage is found where it was put, runs resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrate import calibrate
from qdq.inject import inject, quantizers
from qdq.inject.spec import named_spec
from qdq.loading.model import LoadedModel
from qdq.placing.sensitivity.probe import Probe, Trial, compare, decibels
from qdq.placing.sensitivity.report import Journal, study
from qdq.placing.units import groups, kind_of, layer_of, part_of
from qdq.tasks.loading import EvaluationSettings, evaluation_of
from qdq.text.data import Record

Load = Callable[..., LoadedModel]


def injected(load_tiny: Load, encode: Callable[..., Any], *arguments: str) -> LoadedModel:
    loaded = load_tiny(*arguments)
    spec = named_spec("qdqbert")
    inject(loaded.model, spec)
    calibrate(loaded.module(), [encode(loaded)], spec, algorithm_named("max"))
    return loaded


def probe_of(loaded: LoadedModel, sentences: tuple[str, ...], label: bool = True) -> Probe:
    records = [Record(text, label=str(n % 2) if label else None) for n, text in enumerate(sentences[:12])]
    return Probe(loaded.module(), evaluation_of(records, loaded, EvaluationSettings(64, 5)))


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "albert", "mpnet"])
def test_skipped_layers_change_nothing(
    load_tiny: Load, encode: Callable[..., Any], sentences: tuple[str, ...], model_type: str
) -> None:
    """The last layer's points alone, and all without them, are run from the kept layer outputs."""
    loaded = injected(load_tiny, encode, model_type)
    probe = probe_of(loaded, sentences)
    last = [name for name in probe.names if layer_of(name) == 1] or list(probe.names[-3:])
    rest = [name for name in probe.names if name not in last]
    found = [probe.trial(chosen) for chosen in (last, rest)]
    probe._kept.clear()
    assert [probe.trial(chosen) for chosen in (last, rest)] == found
    kept = {id(module): module for module in loaded.model.modules() if "forward" in vars(module)}
    assert not kept, "a skipped layer's forward was not given back"


def test_a_damaged_point_is_found_by_every_measure(
    load_tiny: Load, encode: Callable[..., Any], sentences: tuple[str, ...], tmp_path: Path
) -> None:
    loaded = injected(load_tiny, encode)
    culprit = next(name for name in quantizers(loaded.model) if name.endswith("1.output.add_local_input_quantizer"))
    point = quantizers(loaded.model)[culprit]
    point.set_amax(torch.as_tensor(point.amax) * 60)  # two codes instead of a hundred
    report = study(probe_of(loaded, sentences), Journal(tmp_path / "j", {}), True, "texts", lambda done, total: None)
    assert report["points"][0]["name"] == culprit
    assert max(report["points"], key=lambda row: row["gain"])["name"] == culprit
    assert min(report["points"], key=lambda row: row["snr_db"])["name"] == culprit
    assert report["groups"][0]["points"] > 1 and report["everything"]["divergence"] > report["floating"]["divergence"]
    assert {"metric_damage_points", "metric_gain_points"} <= set(report["points"][0])
    assert report["floating"]["divergence"] == 0


def test_an_interrupted_study_goes_on_and_ends_the_same(
    load_tiny: Load,
    encode: Callable[..., Any],
    sentences: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = injected(load_tiny, encode)
    journal = tmp_path / "study.json"

    def run(stop: int | None = None) -> tuple[dict[str, Any], int]:
        trials = 0
        before = Probe.trial

        def counted(*arguments: Any) -> Trial:
            nonlocal trials
            trials += 1
            return before(*arguments)

        def progress(done: int, total: int) -> None:
            if stop is not None and done >= stop:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Probe, "trial", counted)
            report = study(probe_of(loaded, sentences), Journal(journal, {"a": 1}), False, "texts", progress)
        return report, trials

    with pytest.raises(KeyboardInterrupt):
        run(stop=15)
    resumed, fewer = run()
    journal.unlink()
    whole, every = run()
    assert resumed == whole and fewer < every
    assert Journal(journal, {"a": 2})._trials == {}  # another study's trials are not taken


@pytest.mark.parametrize(
    ("task", "shape", "kind"),
    [
        ("text-classification", (2, 3), "kl"),
        ("text-classification", (2, 1), "squared"),
        ("token-classification", (2, 4, 3), "kl"),
        ("question-answering", (2, 4), "kl"),
        ("feature-extraction", (2, 4, 8), "cosine"),
        ("feature-extraction", (2, 8), "cosine"),
    ],
)
def test_divergence_ignores_padding_and_is_zero_for_equal_outputs(task: str, shape: tuple[int, ...], kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    one, other = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    same, apart = (compare(task, [(one,)], [(answer,)], [mask]) for answer in (one, other))
    assert (same.divergence, same.mse, apart.kind) == (pytest.approx(0, abs=1e-7), 0, kind)
    assert apart.divergence > 0.01
    if len(shape) > 1 and shape[1] == 4:
        padded = one.clone()
        padded[1, 2:] = 50.0
        assert compare(task, [(one,)], [(padded,)], [mask]).divergence == pytest.approx(0, abs=1e-7)


def test_kl_is_its_definition_with_logits_of_deviation_one() -> None:
    expected, actual = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]])
    found = compare("text-classification", [(expected,)], [(actual,)], [torch.ones(1, 2)])
    p, q = (np.exp(v) / np.exp(v).sum() for v in (np.array([0.0, 2.0]), np.array([4.0, 0.0])))
    assert found.divergence == pytest.approx(float((p * np.log(p / q)).sum()))


def test_names_of_groups() -> None:
    point = "bert.encoder.layer.3.attention.output.add_local_input_quantizer"
    assert (kind_of(point), layer_of(point), part_of(point)) == ("residual local", 3, "attention.output")
    found = groups([point, point.replace("3", "4"), point.replace("local", "residual")])
    assert set(found) == {"layer 3", "residual local"}  # the part's group has the same points as the kind's
    assert decibels(100, 1) == pytest.approx(20) and decibels(1, 0) == 200


def test_the_command_writes_table_json_and_plot(
    compiled: Path, tmp_path: Path, qdq: Callable[..., Any], sentences: tuple[str, ...]
) -> None:
    out, data = tmp_path / "study", compiled / "text.jsonl"
    options = ("--data", data, "--samples", "6", "--sequence", "32", "--threads", "1", "--metric", "--out", out)
    ran = qdq("sensitivity", compiled / "work", *options)
    assert ran.code == 0, ran.err
    assert "damage" in ran.out and "encoder.layer.0" in ran.out
    report = json.loads((out / "sensitivity.json").read_text())
    assert len(report["points"]) >= 12
    first = (out / "sensitivity.json").read_bytes(), (out / "sensitivity.png").read_bytes()
    assert first[1].startswith(b"\x89PNG") and not (out / "sensitivity.partial.json").exists()
    assert qdq("sensitivity", compiled / "work", *options).code == 0
    assert ((out / "sensitivity.json").read_bytes(), (out / "sensitivity.png").read_bytes()) == first
    unlabelled = tmp_path / "plain.txt"
    unlabelled.write_text("\n".join(sentences), encoding="utf-8")
    ran = qdq("sensitivity", compiled / "work", "--data", unlabelled, "--metric", "--sequence", "32")
    assert ran.code == 2 and "give labelled text to --data" in ran.err
