"""What test_compress_training.py runs in a process of its own and kills: ``killed_run.py CHECKPOINT OUT STEP``.

The process sends itself SIGKILL at the begin of optimizer step STEP, counted over all trainings of the run.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from qdq.compress.arguments import CompressionArguments
from qdq.compress.method import CompressionResult
from qdq.compress.trainer import CompressionTrainer
from qdq.compress.training import LossTrainer
from qdq.loading.model import load_model

STEPS = 6  # of each of the two trainings
TEXTS = ("the cat finds a warm meal .", "our teacher sees the new city", "the old river wants this long road !") * 6


class Kill(TrainerCallback):
    """SIGKILL to this process at one step: nothing behind it runs, no handler, no flush."""

    seen = 0

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        Kill.seen += 1
        if Kill.seen == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def compress(checkpoint: str, out: str) -> CompressionResult:
    """Prune, train quantized, quantize the tables; the checkpoint has dropout, so the random state counts."""
    torch.set_num_threads(1)  # sums in one order, however busy the machine is: weights are compared bit by bit
    loaded = load_model(checkpoint)
    rows = [{**loaded.tokenizer(text), "labels": index % 2} for index, text in enumerate(TEXTS)]
    args = CompressionArguments(
        output_dir=out,
        strategy="dynabert+qat+embeddings",
        width_mult_list=["1/2"],  # type: ignore[list-item]  # as typed on a command line
        algo_list=["abs_max"],
        max_steps=STEPS,
        save_steps=2,
        learning_rate=1e-3,
        train_sampling_strategy="group_by_length",  # its order must not come from the global random state
        report_to="none",
        disable_tqdm=True,
        device="cpu",
    )
    data = {"train_dataset": rows, "eval_dataset": rows}
    return CompressionTrainer(loaded.model, args, tokenizer=loaded.tokenizer, **data).compress()


def main() -> None:
    """The command line above."""
    checkpoint, out, step = sys.argv[1:]
    torch.set_num_threads(1)  # as the tests run: sums in one order
    original = LossTrainer.__init__

    def watched(self: LossTrainer, *arguments: Any) -> None:
        original(self, *arguments)
        self.add_callback(Kill(int(step)))

    LossTrainer.__init__ = watched  # type: ignore[method-assign]  # of this process
    compress(checkpoint, str(Path(out)))


if __name__ == "__main__":
    main()
