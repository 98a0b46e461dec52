"""A configured run that is killed at chosen moments and started again ends with the same table and the same model."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from qdq.auto import steps
from qdq.auto.command import run_file
from qdq.auto.strategy import REPORT
from qdq.base.artifacts import PARTIAL_PREFIX, read_json
from qdq.base.lock import hold
from qdq.base.screen import Screen
from qdq.compress.training import LossTrainer
from qdq.errors import ConfigError, WorkError
from qdq.loading.model import load_model

pytestmark = pytest.mark.usefixtures("light_collections")  # a training ends with a full one

SHORT = {
    "train_iter": 6,
    "eval_iter": 2,
    "learning_rate": 1e-3,
    "optimizer_builder": {"optimizer": {"type": "AdamW"}, "weight_decay": 0.01},
}
SEARCHED = {
    "Prune": {"pruned_ratio": 0.5},
    "Distillation": None,
    "QuantPost": None,
    "HyperParameterOptimization": {"max_quant_count": 4, "batch_num": [1, 2]},
    "TrainConfig": SHORT,
}
TRAINED = {"QuantAware": {"use_pact": True}, "Distillation": None, "TrainConfig": SHORT}
# The run of a file, in a process that kills itself when a function is called for the n-th time
KILLED = """
import importlib, os, signal, sys
from pathlib import Path
import torch
from qdq.auto.command import run_file
from qdq.base.screen import Screen
config, folder, module, owner, name, count = sys.argv[1:]
torch.set_num_threads(1)
place = importlib.import_module(module)
place = getattr(place, owner) if owner else place
function, left = getattr(place, name), int(count)
def counted(*arguments, **options):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments, **options)
setattr(place, name, counted)
run_file(config, folder, Screen())
"""


@dataclass(frozen=True)
class Moment:
    """The call of a function that a process does not survive."""

    module: str
    name: str
    count: int = 1
    owner: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        return (self.module, self.owner, self.name, str(self.count))


IN_TRAINING = Moment("qdq.compress.training", "training_step", 5, "LossTrainer")  # behind the checkpoint of step 4
CHAINS: Mapping[str, tuple[dict[str, Any], Sequence[Moment]]] = {
    "prune, then a search": (
        SEARCHED,
        (
            IN_TRAINING,
            Moment("qdq.auto.steps", "draw"),  # pruned, and nothing calibrated yet
            Moment("qdq.compress.ptq", "finish", 3),  # the third calibration
            Moment("qdq.auto.output", "copy_texts"),  # the result is written
        ),
    ),
    "quantization-aware training": (
        TRAINED,
        (
            Moment("qdq.compress.ptq", "finish"),  # calibrated for the training
            IN_TRAINING,
            Moment("qdq.auto.strategy", "write_json"),  # all but the report
        ),
    ),
}


@pytest.fixture
def configured(tiny_checkpoint: Callable[..., Path], sentences: tuple[str, ...], tmp_path: Path) -> Callable[..., Path]:
    """`configured(content)`: a configuration file on rows that the model gets wrong, so that no training ends early."""

    def make(content: Mapping[str, Any]) -> Path:
        folder = tiny_checkpoint()
        loaded = load_model(str(folder))
        with torch.no_grad():
            inputs = loaded.tokenizer(list(sentences), padding=True, return_tensors="pt")
            wrong = (1 - loaded.model(**{name: inputs[name] for name in loaded.inputs}).logits.argmax(-1)).tolist()
        lines = [f"{label}\t{text}" for label, text in zip(wrong, sentences, strict=True)]
        for name, part in (("train", lines[:24]), ("dev", lines[24:])):
            (tmp_path / f"{name}.tsv").write_text("\n".join(["label\tsentence", *part]) + "\n", encoding="utf-8")
        data = {f"{name}_data": str(tmp_path / f"{name}.tsv") for name in ("train", "dev")}
        section = {"model_dir": str(folder), "batch_size": 4, "max_seq_length": 32, **data}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({"Global": section, **content}), encoding="utf-8")
        return tmp_path / "run.yaml"

    return make


def outcome(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The table and the weights of a finished run."""
    return read_json(folder / REPORT), (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS)
def test_killed_at_any_moment_it_ends_with_the_same_table(
    chain: str, configured: Callable[..., Path], tmp_path: Path
) -> None:
    content, moments = CHAINS[chain]
    file, whole, killed = configured(content), tmp_path / "whole", tmp_path / "killed"
    assert run_file(file, whole, Screen()).baseline == 0
    for moment in moments:
        ran = subprocess.run(
            [sys.executable, "-c", KILLED, str(file), str(killed), *moment.words], capture_output=True, text=True
        )
        assert ran.returncode == -signal.SIGKILL, f"{moment}: {ran.stderr}"
        assert not (killed / REPORT).exists()
    run_file(file, killed, Screen())
    assert outcome(killed) == outcome(whole)
    assert not list(killed.rglob(f"{PARTIAL_PREFIX}*"))  # of the processes that were killed


@pytest.mark.slow
def test_finished_parts_are_not_done_again(
    configured: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is trained or searched a second time; other sections, data or models make it necessary."""
    file, out = configured(SEARCHED), tmp_path / "out"
    first = run_file(file, out, Screen())
    calibrations: list[Any] = []
    real = steps.calibrated
    monkeypatch.setattr(steps, "calibrated", lambda *a, **o: calibrations.append(a) or real(*a, **o))
    monkeypatch.setattr(LossTrainer, "training_step", None)
    assert run_file(file, out, Screen()).as_json() == first.as_json()
    assert len(calibrations) == 1  # of the best, whose model is written again
    # As many other rows: nothing that was found with the earlier ones counts, a training neither
    place = tmp_path / "dev.tsv"
    header, *lines = place.read_text().splitlines()
    place.write_text("\n".join([header, *lines[1:], lines[1]]) + "\n")
    with pytest.raises(ConfigError, match="checkpoints of a training with another evaluation data"):
        run_file(file, out, Screen())


def test_one_run_at_a_time_in_a_folder(configured: Callable[..., Path], tmp_path: Path) -> None:
    file = configured({"QuantPost": {"batch_nums": 1}})
    with hold(tmp_path / "out", "someone"), pytest.raises(WorkError, match="another qdq auto is working here; wait"):
        run_file(file, tmp_path / "out", Screen())
