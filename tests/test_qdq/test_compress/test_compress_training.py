"""DynaBERT and QAT end to end on a tiny model, and runs that are killed and started again."""

from __future__ import annotations

import importlib.util
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from qdq.calibrate.checkpoint import load_checkpoint
from qdq.compress.arguments import CompressionArguments
from qdq.compress.method import CompressionResult
from qdq.compress.trainer import CompressionTrainer
from qdq.compress.training import newest_checkpoint
from qdq.errors import ConfigError, DataError
from qdq.loading.model import LoadedModel, load_model

ROOT = Path(__file__).resolve().parents[3]
Load = Callable[..., LoadedModel]
Encode = Callable[..., dict[str, torch.Tensor]]


def data(loaded: LoadedModel, encode: Encode, count: int = 16) -> list[dict[str, torch.Tensor]]:
    inputs = encode(loaded, count)
    with torch.no_grad():
        labels = loaded.model(**inputs).logits.argmax(-1)
    return [{**{name: inputs[name][i] for name in inputs}, "labels": labels[i]} for i in range(count)]


def trainer_for(
    loaded: LoadedModel, encode: Encode, folder: Path, strategy: str, arguments: dict[str, Any], **options: Any
) -> CompressionTrainer:
    values: dict[str, Any] = {
        "algo_list": ["abs_max"],
        "batch_num_list": [None],
        "max_steps": 6,
        "save_steps": 2,
        "learning_rate": 1e-3,
        "report_to": "none",
        "disable_tqdm": True,
        "device": "cpu",
        "width_mult_list": ["1/2"],
        **arguments,
    }
    rows = data(loaded, encode)
    options = {"train_dataset": rows, "eval_dataset": rows, "tokenizer": loaded.tokenizer, **options}
    return CompressionTrainer(
        loaded.model, CompressionArguments(output_dir=str(folder), strategy=strategy, **values), **options
    )


def compress(loaded: LoadedModel, encode: Encode, folder: Path, strategy: str, **arguments: Any) -> CompressionResult:
    return trainer_for(loaded, encode, folder, strategy, arguments).compress()


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.document_row("000/1", "000/32")
def test_dynabert_ptq_gives_a_smaller_quantized_checkpoint(load_tiny: Load, encode: Encode, tmp_path: Path) -> None:
    loaded = load_tiny(num_attention_heads=4)
    result = compress(
        loaded, encode, tmp_path, "dynabert+ptq", width_mult_list=["3/4", "1/2"], max_steps=30, save_steps=30
    )
    assert [candidate.name for candidate in result.candidates] and result.baseline == 1.0
    assert {candidate.name.partition("-abs")[0] for candidate in result.candidates} == {"width-0.75", "width-0.5"}
    inputs = encode(loaded)
    for candidate in result.candidates:
        again, spec, _ = load_checkpoint(result.folders[candidate.name])
        assert spec == candidate.spec
        with torch.no_grad():
            assert torch.equal(again.model(**inputs).logits, candidate.model(**inputs).logits)
    assert blocks_heads(load_model(str(tmp_path / "width-0.5-abs_max-4xall"))) == 2


def blocks_heads(loaded: LoadedModel) -> int:
    from qdq.inject.widths import blocks

    return blocks(loaded.model)[0].heads


def test_distillation_brings_the_student_towards_the_teacher(load_tiny: Load, encode: Encode, tmp_path: Path) -> None:
    def distance(steps: int) -> float:
        loaded = load_tiny(num_attention_heads=4)
        options = {"max_steps": steps, "learning_rate": 2e-3}
        trainer = trainer_for(loaded, encode, tmp_path / str(steps), "dynabert", options)
        result = trainer.compress(custom_evaluate=lambda model, loader: 0.0)  # of equals the last is kept
        inputs = encode(loaded)
        with torch.no_grad():
            return float((result.best.model(**inputs).logits - loaded.model(**inputs).logits).square().mean())

    assert distance(40) < distance(1) / 2


@pytest.mark.document_row("000/22", "000/24", "000/35")
@pytest.mark.parametrize("strategy", ["dynabert", "qat"])
def test_the_best_of_the_evaluated_models_is_kept(
    strategy: str, load_tiny: Load, encode: Encode, tmp_path: Path
) -> None:
    """The start among them, whether the metric rises or falls on the way; of equals it is the last."""
    kept = set()
    for sign in (1.0, -1.0, 0.0):
        loaded = load_tiny(num_attention_heads=4, num_hidden_layers=1)
        start, seen = loaded.model.classifier.weight.detach().clone(), []

        def moved(model: Any, loader: Any, start: Any = start, sign: float = sign, seen: Any = seen) -> float:
            seen.append(sign * float((model.classifier.weight - start).abs().sum()))
            return float(seen[-1])

        trainer = trainer_for(loaded, encode, tmp_path / str(sign), strategy, {"max_steps": 3, "save_steps": 1})
        found = trainer.compress(custom_evaluate=moved).best
        *_, before, first, second, third, final = seen
        best = max(before, first, second, third)
        assert found.metric == final == best
        assert found.notes["best_step"] == max(n for n, one in enumerate((before, first, second, third)) if one == best)
        kept.add(found.notes["best_step"])
    assert len(kept) > 1


@pytest.mark.document_row("000/1", "000/41", "000/42", "000/45")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_pact": False, "distillation": False},
        {"use_pact": False, "activation_quantize_type": "abs_max", "weight_quantize_type": "abs_max"},
        {"algo_list": ["clip"], "smoothing": True, "equalization": True, "round_type": "gptq"},
    ],
    ids=["pact", "moving-average", "abs-max", "from-treated"],
)
def test_qat_writes_a_checkpoint_that_computes_the_same(
    options: dict[str, Any], load_tiny: Load, encode: Encode, tmp_path: Path
) -> None:
    loaded = load_tiny()
    result = compress(loaded, encode, tmp_path, "qat", **options)
    (candidate,) = result.candidates
    assert candidate.table is not None and candidate.table.algorithm == "qat"
    again, _, _ = load_checkpoint(result.folders[candidate.name])
    inputs = encode(loaded)
    with torch.no_grad():
        assert torch.equal(again.model(**inputs).logits, candidate.model(**inputs).logits)
    assert not same_weights(load_tiny().model, load_model(str(result.folders[candidate.name])).model)


@pytest.mark.document_row("000/43")
def test_qat_starts_from_the_weights_that_were_rounded(load_tiny: Load, encode: Encode, tmp_path: Path) -> None:
    """The model in front of the first step is the calibrated one, codes and corrected biases included."""
    loaded = load_tiny()
    inputs, seen = encode(loaded, 16), []
    with torch.no_grad():
        wanted = loaded.model(**inputs).logits

    def minus_error(model: Any, loader: Any) -> float:
        seen.append(-float((model(**inputs).logits - wanted).square().mean()))
        return seen[-1]

    options = {"round_type": "gptq", "bias_correction": True, "use_pact": False, "max_steps": 2}
    trainer = trainer_for(loaded, encode, tmp_path, "qat", options)
    result = trainer.compress(custom_evaluate=minus_error)
    baseline, calibrated, start, *_ = seen
    plain = trainer_for(loaded, encode, tmp_path / "plain", "ptq", {}).compress(custom_evaluate=minus_error).best
    assert baseline == 0
    assert start == pytest.approx(calibrated, rel=0.2) and start > (plain.metric or 0)
    assert (result.best.metric or 0) >= start


@pytest.fixture(scope="module")
def worker() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("killed_run", Path(__file__).with_name("killed_run.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def test_a_run_killed_at_a_random_step_ends_as_if_it_had_not_been(
    worker: ModuleType, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(num_attention_heads=4)
    whole = worker.compress(str(checkpoint), str(tmp_path / "whole"))
    step = random.randint(4, 2 * worker.STEPS)  # of both trainings together; the first checkpoint is behind step 2
    command = [sys.executable, worker.__file__, str(checkpoint), str(tmp_path / "killed"), str(step)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    torn = [newest_checkpoint(folder) for folder in (tmp_path / "killed" / "training").iterdir()]
    assert any(torn), f"killed at step {step}"
    again = worker.compress(str(checkpoint), str(tmp_path / "killed"))
    assert again.best.metric == whole.best.metric, f"killed at step {step}"
    assert same_weights(again.best.model, whole.best.model), f"killed at step {step}"
    assert (again.folders[again.best.name] / "model.safetensors").read_bytes() == (
        whole.folders[whole.best.name] / "model.safetensors"
    ).read_bytes()


def test_a_checkpoint_that_was_being_written_is_not_continued_from(tmp_path: Path) -> None:
    for step, state in ((2, "{}"), (4, "{}"), (6, '{"half')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(state, encoding="utf-8")
    (tmp_path / "checkpoint-8").mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_checkpoints_of_another_training_are_not_continued(load_tiny: Load, encode: Encode, tmp_path: Path) -> None:
    compress(load_tiny(), encode, tmp_path, "dynabert", max_steps=2)
    with pytest.raises(ConfigError, match="another learning_rate, max_steps"):
        compress(load_tiny(), encode, tmp_path, "dynabert", max_steps=3, learning_rate=0.5)
    done = compress(load_tiny(), encode, tmp_path, "dynabert", max_steps=2)  # all there: nothing is trained again
    assert json.loads((tmp_path / "compression.json").read_text())["best"] == done.best.name


@pytest.mark.document_row("000/17")
def test_mistakes_are_found_before_training(load_tiny: Load, encode: Encode, tmp_path: Path) -> None:
    loaded = load_tiny()

    def run(strategy: str = "qat", calc: Any = None, arguments: dict[str, Any] | None = None, **options: Any) -> None:
        trainer_for(loaded, encode, tmp_path, strategy, arguments or {}, **options).compress(
            custom_dynabert_calc_loss=calc
        )

    with pytest.raises(DataError, match="train_dataset: is missing; strategy qat trains"):
        run(train_dataset=None)
    with pytest.raises(ConfigError, match="less than one head"):
        run("dynabert", arguments={"width_mult_list": ["1/8"]})
    with pytest.raises(ConfigError, match=r"criterion: returned a tensor \[8\], not a scalar"):
        run(criterion=torch.nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(ConfigError, match="custom_dynabert_calc_loss: returned NoneType"):
        run("dynabert", calc=lambda *given: None)
    assert not (tmp_path / "training").exists() or not list((tmp_path / "training").glob("*/checkpoint-*"))


@pytest.mark.document_row("000/18", "000/25")
def test_both_forms_of_a_criterion_and_the_older_loss_function(load_tiny: Load, encode: Encode, tmp_path: Path) -> None:
    masks = []

    def calc_loss(loss_fct: Any, model: Any, batch: Any, head_mask: Any) -> torch.Tensor:
        masks.append(head_mask)
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss: torch.Tensor = loss_fct(logits, batch["labels"])
        return loss

    for name, criterion in (("module", torch.nn.CrossEntropyLoss()), ("function", torch.nn.functional.cross_entropy)):
        trainer = trainer_for(load_tiny(), encode, tmp_path / name, "dynabert", {}, criterion=criterion)
        result = trainer.compress(custom_dynabert_calc_loss=calc_loss)
        assert result.best.name == "width-0.5"
    assert any(mask is not None and mask.shape == (2, 2) for mask in masks)


@pytest.mark.document_row("000/1", "000/27")
def test_the_whole_chain_with_the_documented_defaults(load_tiny: Load, encode: Encode, tmp_path: Path) -> None:
    loaded = load_tiny(num_attention_heads=4)
    lists = {"algo_list": ["mse", "KL"], "batch_num_list": [1], "width_mult_list": ["3/4"]}
    result = compress(loaded, encode, tmp_path, "dynabert+qat+embeddings", max_steps=2, **lists)
    assert result.best.name == "width-0.75-qat-embeddings"
    again, _, _ = load_checkpoint(result.folders[result.best.name])
    assert blocks_heads(again) == 3
    inputs = encode(loaded)
    with torch.no_grad():
        assert torch.equal(again.model(**inputs).logits, result.best.model(**inputs).logits)
