"""Two CPU processes (gloo) do what one does: calibration and PTQ to the bit, training by FSDP and by DDP."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
WORKER = Path(__file__).with_name("two_ranks.py")


def torchrun(*command: str | Path) -> None:
    """Run a script on two processes of one thread each. Fails with its output."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [*launch, *map(str, command)], capture_output=True, text=True, timeout=280, cwd=ROOT, env=environment
    )
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_ranks", WORKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint("bert", "text-classification", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(checkpoint: Path, folder: Path) -> Any:
    torchrun(WORKER, checkpoint, folder)
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("algorithm", ["max", "percentile", "mse", "avg"])
def test_calibration_is_the_same_to_the_bit(
    algorithm: str, two: Any, worker: ModuleType, checkpoint: Path, one_thread: None
) -> None:
    assert worker.calibrated(str(checkpoint), algorithm) == two[algorithm]
    assert two[algorithm]["samples"] == 20  # all of five batches of four, not one process's share


def test_ptq_through_the_trainer_is_the_same_to_the_bit(
    two: Any, worker: ModuleType, checkpoint: Path, tmp_path: Path, one_thread: None
) -> None:
    assert worker.compressed(str(checkpoint), str(tmp_path)) == two["ptq"]


def test_fsdp_takes_the_step_one_process_takes(two: Any, worker: ModuleType, checkpoint: Path) -> None:
    one = worker.stepped(str(checkpoint), sharded=False)
    assert one.keys() == two["fsdp"].keys()
    # The gradient is the mean of two means instead of one mean: float32 sums in another order.
    assert two["fsdp"] == pytest.approx(one, abs=1e-4)


def test_finetuning_runs_under_torchrun(two: Any, folder: Path, checkpoint: Path) -> None:
    """The same flags on two processes (DDP through Trainer); the folder is written once and loads again."""
    from qdq.loading.model import load_model

    found = json.loads((folder / "finetuned" / "eval_results.json").read_text(encoding="utf-8"))
    assert 0 <= found["acc_and_f1"] <= 1
    before, after = (load_model(str(path)).model.state_dict() for path in (checkpoint, folder / "finetuned"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
