"""`--placement auto`: it leaves out what hurts, keeps the rest, says why, and decides the same every time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engines.tensorrt_rtx import missing
from export.to_onnx import export_onnx
from qdq.base.artifacts import write_json
from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrate import calibrate
from qdq.calibrate.checkpoint import write_checkpoint
from qdq.errors import DeployError
from qdq.inject import inject, quantizers
from qdq.inject.quantizer import folded
from qdq.inject.spec import named_spec, spec_from_mapping
from qdq.loading.model import LoadedModel
from qdq.loading.runner import TorchRunner
from qdq.pipeline.run import CANONICAL
from qdq.pipeline.stages.export import export_example
from qdq.placing import base_spec
from qdq.placing.curve import plot_curve
from qdq.placing.decide import SearchRequest, decide_placement, search_placement
from qdq.placing.search import affordable_checks, choose
from qdq.placing.sensitivity.probe import Probe
from qdq.placing.units import cost_of, layer_of, units
from qdq.studies.placement_costs import cpu_shares, tensorrt_costs
from qdq.tasks.loading import EvaluationSettings, evaluation_of
from qdq.text.data import Record

Load = Callable[..., LoadedModel]


def damaged(load_tiny: Load, encode: Callable[..., Any], target: str = "tensorrt") -> tuple[LoadedModel, Any, str]:
    """A model with one residual operand that ruins the answers."""
    loaded, spec = load_tiny(), base_spec("auto", target)
    inject(loaded.model, spec)
    calibrate(loaded.module(), [encode(loaded)], spec, algorithm_named("max"))
    culprit = next(name for name in quantizers(loaded.model) if name.endswith("1.output.add_residual_input_quantizer"))
    point = quantizers(loaded.model)[culprit]
    point.set_amax(torch.as_tensor(point.amax) * 500)
    return loaded, spec, culprit


def test_what_hurts_is_left_out_with_its_reason_and_the_rest_stays(
    load_tiny: Load, encode: Callable[..., Any], sentences: tuple[str, ...]
) -> None:
    loaded, spec, culprit = damaged(load_tiny, encode)
    records = [Record(text) for text in sentences]
    final, placement, decision = decide_placement(loaded, spec, records, "tensorrt", 64)
    reasons = {point.name: point.reason for point in placement.points if not point.placed}
    assert "auto: leaving it out alone takes the divergence of all points from" in reasons[culprit]
    assert "the LayerNorm in front then writes this tensor in FP16" in reasons[culprit]
    assert decision.after < 0.02 * decision.before
    assert len(placement.placed) >= 0.8 * 36
    assert set(quantizers(loaded.model)) == {point.name for point in placement.placed}
    again = load_tiny()
    assert [p.name for p in inject(again.model, final).placed] == [p.name for p in placement.placed]
    assert spec_from_mapping(json.loads(json.dumps(final.as_json()))) == final


def test_two_runs_decide_the_same(load_tiny: Load, encode: Callable[..., Any], sentences: tuple[str, ...]) -> None:
    records = [Record(text) for text in sentences]
    first, second = (
        decide_placement(*damaged(load_tiny, encode)[:2], records, "tensorrt", 64)[2].as_json() for _ in range(2)
    )
    assert first == second


def test_a_harmless_placement_is_kept_whole_after_one_check(
    load_tiny: Load, encode: Callable[..., Any], sentences: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, spec = load_tiny(), base_spec("auto", "cpu")
    inject(loaded.model, spec)
    calibrate(loaded.module(), [encode(loaded)], spec, algorithm_named("max"))
    monkeypatch.setattr("qdq.placing.search.BOUND", 1e9)
    _, placement, decision = decide_placement(loaded, spec, [Record(t) for t in sentences], "cpu", 64)
    assert decision.dropped == {} and decision.checks == 1
    assert [point.name for point in placement.placed] == [p.name for p in inject(load_tiny().model, spec).placed]


def test_the_checks_stay_within_their_budget(
    load_tiny: Load, encode: Callable[..., Any], sentences: tuple[str, ...]
) -> None:
    loaded, _, _ = damaged(load_tiny, encode)
    evaluation = evaluation_of([Record(t) for t in sentences[:8]], loaded, EvaluationSettings(64, 8))
    probe = Probe(loaded.module(), evaluation)
    found = units(probe.names, "tensorrt")
    assert choose(probe, found, 30).checks <= 30
    assert affordable_checks(10_600_000, 16 * 45) >= 30
    assert affordable_checks(10**9, 10**6) == 12


def test_fewer_texts_rank_what_the_budget_does_not_reach(
    load_tiny: Load, encode: Callable[..., Any], sentences: tuple[str, ...]
) -> None:
    """Attentions that hardly anything reads have the worst signal-to-noise ratios and take all the room there is; what
    ruins the answers is found by its gain on a quarter of the texts.
    """
    loaded, spec = load_tiny(num_hidden_layers=8), base_spec("auto", "tensorrt")
    inject(loaded.model, spec)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "attention.output.dense" in name:
                parameter.mul_(1e-3)
    calibrate(loaded.module(), [encode(loaded)], spec, algorithm_named("max"))
    points = quantizers(loaded.model)
    culprit = next(name for name in points if name.endswith("7.output.add_residual_input_quantizer"))
    for name, point in points.items():
        if "attention.self.matmul" in name or name == culprit:
            point.set_amax(torch.as_tensor(point.amax) * (0.05 if name == culprit else 1e4))
    settings = EvaluationSettings(64, 8)
    probe, few = (
        Probe(loaded.module(), evaluation_of([Record(t) for t in some], loaded, settings))
        for some in (sentences[:16], sentences[:16:4])
    )
    found = units(probe.names, "tensorrt")
    by_itself, helped = choose(probe, found, 13), choose(probe, found, 13, fewer=lambda: few)
    assert not any(culprit in unit for unit in by_itself.dropped)
    assert helped.after < 0.1 * helped.before < by_itself.after
    assert helped.checks <= 13


def test_points_stand_and_fall_with_those_that_make_them_worth_something(load_tiny: Load) -> None:
    loaded = load_tiny()
    inject(loaded.model, named_spec("qdqbert"))
    names = list(quantizers(loaded.model))
    for target, size in (("tensorrt", 4), ("cpu", 2)):
        found = units(names, target)
        assert sorted(point for unit in found for point in unit.points) == sorted(names)
        attention = [unit for unit in found if unit.kind.startswith("attention")]
        assert {len(unit.points) for unit in attention} == {size}
        assert {len(unit.points) for unit in found if unit.kind.startswith("linear")} == {2}
        assert {len(unit.points) for unit in found if unit.kind.startswith("residual")} == {1}


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_every_kind_has_a_cost(load_tiny: Load, target: str) -> None:
    loaded = load_tiny("distilbert")
    inject(loaded.model, named_spec("qdqbert"))
    assert all(unit.cost > 0 for unit in units(quantizers(loaded.model), target))
    assert cost_of("linear ffn.lin1", {"linear a": 0.2, "linear b": 0.4, "attention": 9.0}) == pytest.approx(0.3)


@pytest.mark.slow
def test_cpu_costs_are_measured_for_every_kind(load_tiny: Load, encode: Callable[..., Any], tmp_path: Path) -> None:
    loaded, spec = load_tiny(), named_spec("qdqbert")
    inject(loaded.model, spec)
    table = calibrate(loaded.module(), [encode(loaded)], spec, algorithm_named("max"))
    write_checkpoint(loaded, spec, table, tmp_path / "checkpoint")
    with folded(loaded.model):
        export_onnx(loaded.module(), export_example(loaded), loaded.outputs, tmp_path / CANONICAL)
    shares = cpu_shares(tmp_path, batch=2, sequence=16, rounds=3)
    inside = [name for name in quantizers(loaded.model) if layer_of(name) is not None]
    assert shares.keys() == {unit.kind for unit in units(inside, "cpu")}
    with pytest.raises(DeployError, match="does not exist; run 'qdq compile --placement qdqbert"):
        cpu_shares(tmp_path / "nothing")


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_tensorrt_costs_are_compiled_for_every_kind(
    load_tiny: Load, encode: Callable[..., Any], tmp_path: Path
) -> None:
    loaded, spec = load_tiny(), named_spec("fused")
    placement = inject(loaded.model, spec)
    table = calibrate(loaded.module(), [encode(loaded)], spec, algorithm_named("max"))
    write_checkpoint(loaded, spec, table, tmp_path / "checkpoint")
    write_json(tmp_path / "placement.json", placement.as_json())
    with folded(loaded.model):
        export_onnx(loaded.module(), export_example(loaded), loaded.outputs, tmp_path / CANONICAL)
    found = tensorrt_costs([tmp_path], batch=2, sequence=32)
    kinds = {unit.kind for unit in units([n for n in quantizers(loaded.model) if layer_of(n) is not None], "tensorrt")}
    assert all(found[name].keys() == kinds for name in ("shares", "kernels", "megabytes"))
    assert found["layer"]["kernels"] > 0 and found["layer"]["megabytes"] > 0
    assert found["about"].startswith("compiled by TensorRT for RTX")


def test_compile_with_auto_writes_the_decision(
    workplace: Path, qdq: Callable[..., Any], small: tuple[str, ...]
) -> None:
    source = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--out", "auto", "--target", "openvino")
    ran = qdq("calibrate", *source, "--placement", "auto", *small)
    assert ran.code == 0, ran.err
    report = json.loads(Path("auto/placement.json").read_text())
    assert report["auto"]["checks"] >= 1 and report["auto"]["divergence"] <= report["auto"]["divergence_all"]
    declined = [point for point in report["points"] if not point["placed"]]
    assert all(point["reason"] for point in declined)
    first = Path("auto/placement.json").read_bytes(), Path("auto/checkpoint/quant_spec.json").read_bytes()
    assert qdq("calibrate", *source, "--placement", "auto", *small).code == 0
    assert (Path("auto/placement.json").read_bytes(), Path("auto/checkpoint/quant_spec.json").read_bytes()) == first
    ran = qdq("export", "--out", "auto")
    assert ran.code == 0, ran.err


def test_search_takes_the_cheapest_within_the_drop_and_draws_the_curve(
    load_tiny: Load, encode: Callable[..., Any], sentences: tuple[str, ...], tmp_path: Path
) -> None:
    loaded, spec, _culprit = damaged(load_tiny, encode)
    answers = (
        evaluation_of([Record(text) for text in sentences], load_tiny())
        .score(TorchRunner(load_tiny().module()))
        .answers
    )
    records = [
        Record(text, label=a["label"]) for text, a in zip(sentences, answers, strict=True)
    ]  # FP32 is always right
    request = SearchRequest("tensorrt", 64, 3.0)
    final, placement, decision, found = search_placement(loaded, spec, records, request, lambda done, total: None)
    assert found.by == "metric" and found.best is not None and found.curve[found.best].within
    assert all(not tried.within for tried in found.curve if tried.cost < found.curve[found.best].cost)
    assert found.curve[0].drop_points is not None
    assert len(placement.points) - len(placement.placed) >= len(final.declined) == len(decision.dropped)
    plot_curve(found, tmp_path / "search.png")
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_search_times_engines_of_the_curve_on_a_cpu(
    workplace: Path, qdq: Callable[..., Any], small: tuple[str, ...], target: str
) -> None:
    source = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--eval-data", "text.jsonl", "--out", "auto")
    ran = qdq("calibrate", *source, "--target", target, "--search", "--max-drop", "100", *small)
    assert ran.code == 0, ran.err
    assert "auto/search.json" in ran.out and "auto/search.png" in ran.out
    report = json.loads(Path("auto/search.json").read_text())
    timed = {tried["dropped"]: tried["measured"] for tried in report["curve"] if tried["measured"] is not None}
    assert {0, report["best"], report["curve"][-1]["dropped"]} <= timed.keys() and len(timed) <= 7
    assert timed.pop(0) == 0.0 and all(-2 < added != 0 for added in timed.values())  # of two layers


TENSORRT = ("--target", "tensorrt", "--search", "--max-drop", "100")


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_search_compiles_placements_of_the_curve_for_tensorrt(
    workplace: Path, qdq: Callable[..., Any], small: tuple[str, ...]
) -> None:
    source = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--eval-data", "text.jsonl", "--out", "auto")
    ran = qdq("calibrate", *source, *TENSORRT, *small)
    assert ran.code == 0, ran.err
    report = json.loads(Path("auto/search.json").read_text())
    assert report["target_kind"] == "tensorrt" and report["about"].startswith("compiled by TensorRT for RTX")
    compiled = [tried for tried in report["curve"] if tried["compiled_kernels"] is not None]
    assert {0, report["best"], report["curve"][-1]["dropped"]} <= {tried["dropped"] for tried in compiled}
    first, last = compiled[0], compiled[-1]
    assert first["dropped"] == 0 and all(tried["measured"] is None for tried in report["curve"])
    assert all(tried["compiled_kernels"] > 0 and tried["compiled_megabytes"] > 0 for tried in compiled)
    assert last["kernels"] > 0 and last["megabytes"] > 0  # predicted from the table


def test_search_for_tensorrt_without_its_compiler_keeps_the_predicted_curve(
    workplace: Path, qdq: Callable[..., Any], small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.tensorrt_rtx.libraries.missing", lambda: "the compiler is not installed: get it")
    source = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--eval-data", "text.jsonl", "--out", "auto")
    ran = qdq("calibrate", *source, *TENSORRT, *small)
    assert ran.code == 0, ran.err
    assert "no engine of the search was compiled: the compiler is not installed: get it" in " ".join(ran.err.split())
    report = json.loads(Path("auto/search.json").read_text())
    assert report["best"] is not None and all(tried["compiled_kernels"] is None for tried in report["curve"])


def test_a_search_without_the_runtime_keeps_its_curve(
    workplace: Path, qdq: Callable[..., Any], small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it fails, as where it is not installed
    source = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--eval-data", "text.jsonl", "--out", "auto")
    ran = qdq("calibrate", *source, "--target", "onnxruntime", "--search", "--max-drop", "100", *small)
    assert ran.code == 0, ran.err
    assert "no engine of the search was timed: onnxruntime is not installed" in " ".join(ran.err.split())
    report = json.loads(Path("auto/search.json").read_text())
    assert report["best"] is not None and all(tried["measured"] is None for tried in report["curve"])


def test_a_drop_that_nothing_meets_marks_no_best_and_fails(
    workplace: Path, qdq: Callable[..., Any], small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdq.placing.search.BOUND", -1.0)  # plain text has no labels: divergence is bounded
    Path("plain.txt").write_text(
        "\n".join(json.loads(line)["text"] for line in Path("text.jsonl").read_text().splitlines())
    )
    source = ("--model", "tiny-bert", "--calibration", "plain.txt", "--eval-data", "text.jsonl", "--out", "auto")
    ran = qdq("calibrate", *source, "--target", "openvino", "--placement", "auto", "--search", *small)
    assert ran.code == 1 and "the closest leaves" in ran.err, ran.err
    report = json.loads(Path("auto/search.json").read_text())
    assert report["best"] is None and report["by"] == "divergence" and report["curve"][report["closest"]]
    assert not Path("auto/checkpoint").exists()
    assert all(tried["measured"] is None for tried in report["curve"])  # nothing is timed for nothing
    ran = qdq("calibrate", *source, "--search", "--placement", "linear", *small)
    assert ran.code == 2 and "--search chooses a placement, and linear is one" in ran.err
