"""The sweep over algorithms, batch sizes and batch numbers: every candidate tried, the best kept, failures shown."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qdq.calibrate.rebatch import MicroBatches
from qdq.calibrate.treatments.order import finish, prepare
from qdq.calibrate.treatments.settings import PLAIN, PtqSettings, Treatments
from qdq.calibrate.treatments.sweep import (
    Score,
    Trial,
    first_samples,
    quantization_state,
    set_quantization_state,
    sweep,
    table_text,
)
from qdq.cli.main import main
from qdq.errors import CalibrationError, ConfigError, ParityError
from qdq.inject import inject, quantizers
from qdq.inject.spec import named_spec
from qdq.loading.model import LoadedModel, load_model
from qdq.text.data import Record
from qdq.text.encode import calibration_batches

Checkpoint = Callable[..., Path]
Batch = dict[str, Tensor]

SPEC = named_spec("linear")


@pytest.fixture(scope="module")
def bert(tiny_checkpoint: Checkpoint) -> LoadedModel:
    return load_model(str(tiny_checkpoint("bert")))


@pytest.fixture(scope="module")
def samples(bert: LoadedModel, sentences: tuple[str, ...]) -> list[Batch]:
    feeds = calibration_batches(bert.tokenizer, [Record(text) for text in sentences[:16]], bert.inputs, 64, 8)
    return [{name: torch.from_numpy(array) for name, array in feed.items()} for feed in feeds]


def build(bert: LoadedModel) -> nn.Module:
    module = copy.deepcopy(bert.module())
    inject(module.model, SPEC)
    return module


def logits(module: nn.Module, samples: list[Batch]) -> Tensor:
    with torch.no_grad():
        return torch.cat([module(**batch)[0] for batch in samples])


def test_every_candidate_is_what_it_would_be_alone_and_the_best_is_kept(
    bert: LoadedModel, samples: list[Batch]
) -> None:
    seen: list[Tensor] = []
    floating = logits(bert.module(), samples)

    def score(module: nn.Module) -> Score:
        seen.append(logits(module, samples))
        return {"minus_error": -float((seen[-1] - floating).square().mean())}

    settings = PtqSettings(("KL", "abs_max", "hist", "mse"), (1, 2), (4, 8))
    treatments = Treatments(clip_search=False)
    found = sweep(lambda: build(bert), samples, SPEC, settings, treatments, score)
    assert [c.samples for c in found.trials] == [4] * 4 + [8] * 8 + [16] * 4
    errors = [c.scores["minus_error"] for c in found.trials]
    assert [c.best for c in found.trials].index(True) == errors.index(max(errors, key=lambda e: e or 0.0))
    assert sum(c.best for c in found.trials) == 1

    module = build(bert)
    set_quantization_state(module, found.state)
    assert torch.equal(logits(module, samples), seen[errors.index(max(errors, key=lambda e: e or 0.0))])
    for position, (size, count) in {5: (4, 2), 14: (8, 2)}.items():
        alone = build(bert)
        algorithm = settings.algorithms()[position % 4]
        batches = MicroBatches.of(first_samples(samples, size * count), size)
        finish(prepare(alone, batches, SPEC, [algorithm], treatments), algorithm)
        assert torch.equal(logits(alone, samples), seen[position])


def test_a_failed_candidate_is_shown_and_never_the_best(bert: LoadedModel, samples: list[Batch]) -> None:
    scores = iter([{"accuracy": 0.5}, None, {"accuracy": 0.4}])

    def score(module: nn.Module) -> Score:
        value = next(scores)
        if value is None:
            raise ParityError("batch 0: the engine returned NaN")
        return value

    settings = PtqSettings(("mse", "KL", "abs_max"), (None,), (4,))
    found = sweep(lambda: build(bert), samples, SPEC, settings, PLAIN, score)
    assert [c.best for c in found.trials] == [True, False, False]
    assert found.trials[1].as_json()["failure"] == "batch 0: the engine returned NaN"
    assert "NaN" in table_text(found.trials)


def test_a_sweep_in_which_everything_fails_says_why(bert: LoadedModel, samples: list[Batch]) -> None:
    def score(module: nn.Module) -> Score:
        raise ParityError("batch 0: the engine returned NaN")

    with pytest.raises(CalibrationError, match="every candidate of the sweep failed; the first: batch 0"):
        sweep(lambda: build(bert), samples, SPEC, PtqSettings(("mse",), (None,)), PLAIN, score)


def test_more_samples_than_there_are(bert: LoadedModel, samples: list[Batch]) -> None:
    with pytest.raises(ConfigError, match="batch_num_list: 5 batches of 4 are more than the 16 samples"):
        sweep(lambda: build(bert), samples, SPEC, PtqSettings(("mse",), (5,), (4,)), PLAIN, lambda module: {})


def test_state_keeps_what_a_candidate_decided(bert: LoadedModel, samples: list[Batch]) -> None:
    module = build(bert)
    algorithm = PtqSettings(("mse",)).algorithms()[0]
    finish(prepare(module, MicroBatches.of(samples, 8), SPEC, [algorithm], Treatments()), algorithm)
    kept, before = quantization_state(module), logits(module, samples)
    for point in quantizers(module).values():
        point.set_amax(torch.ones_like(point.amax))
    set_quantization_state(module, kept)
    assert torch.equal(logits(module, samples), before)


def test_the_table_marks_the_best() -> None:
    rows = [
        Trial("mse", 4, 1, 4, {"accuracy": 0.81, "minus_error": -0.2}, best=True),
        Trial("percentile 99.9", 16, None, 128, {"accuracy": None, "minus_error": -0.3}),
    ]
    assert table_text(rows).splitlines() == [
        "algorithm         batches  accuracy  minus error",
        "mse                 1 x 4    0.8100      -0.2000  best",
        "percentile 99.9  all x 16         -      -0.3000",
    ]


def test_command_line_sweep_writes_its_table(
    tiny_checkpoint: Checkpoint, sentences: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{text}\t{index % 2}" for index, text in enumerate(sentences)]
    (tmp_path / "data.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n", encoding="utf-8")
    out = tmp_path / "work"
    arguments = ["calibrate", "--model", str(tiny_checkpoint("bert")), "--calibration", str(tmp_path / "data.tsv")]
    arguments += ["--samples", "16", "--target", "onnxruntime", "--sequence", "32", "--threads", "1", "--out", str(out)]
    arguments += ["--algo-list", "KL,hist,percentile:90", "--batch-num-list", "2,all", "--batch-size-list", "4"]
    assert main(arguments) == 0
    report = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    assert [row["algorithm"] for row in report["candidates"]] == ["entropy", "percentile 99.999", "percentile 90"] * 2
    assert [row["samples"] for row in report["candidates"]] == [8] * 3 + [16] * 3
    assert all(0 <= row["accuracy"] <= 1 for row in report["candidates"])
    assert sum(row["best"] for row in report["candidates"]) == 1
    best = next(row for row in report["candidates"] if row["best"])
    calibration = json.loads((out / "calibration.json").read_text(encoding="utf-8"))
    assert calibration["samples"] == best["samples"]
    assert "best" in capsys.readouterr().err


def test_plain_calibration_through_the_command_line(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Every treatment can be left out."""
    arguments = ["calibrate", "--model", str(tiny_checkpoint("bert")), "--samples", "8", "--target", "onnxruntime"]
    arguments += ["--calibrator", "KL", "--sequence", "32", "--out", str(tmp_path / "work"), "--round-type", "round"]
    treatments = (
        "bias-correction",
        "value-centering",
        "equalization",
        "smoothing",
        "residual-scaling",
        "softmax-scale",
    )
    arguments += [f"--no-{name}" for name in treatments]
    assert main(arguments) == 0
    calibration = json.loads((tmp_path / "work" / "calibration.json").read_text(encoding="utf-8"))
    assert calibration["algorithm"] == "entropy"
    assert calibration["treatments"] == {}


def test_treatments_through_the_command_line(
    tiny_checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Treatments stand in calibration.json, and the checkpoint holds it; clip is understood by its former name."""
    arguments = ["calibrate", "--model", str(tiny_checkpoint("bert")), "--samples", "8", "--target", "onnxruntime"]
    arguments += ["--calibrator", "search", "--round-type", "gptq", "--bias-correction", "--equalization"]
    arguments += ["--smoothing", "--softmax-scale", "--placement", "qdqbert", "--sequence", "32"]
    assert main([*arguments, "--out", str(tmp_path / "work")]) == 0
    assert "calibrator 'search' is called 'clip' now" in " ".join(capsys.readouterr().err.split())
    manifest = json.loads((tmp_path / "work" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["options"]["calibrator"] == "clip"
    calibration = json.loads((tmp_path / "work" / "calibration.json").read_text(encoding="utf-8"))
    assert calibration["algorithm"] == "search"
    done = {
        "value_centering",
        "equalization",
        "smoothing",
        "residual_scaling",
        "clip_search",
        "softmax_scale",
        "rounding",
    }
    assert calibration["treatments"].keys() == {*done, "bias_correction"}
