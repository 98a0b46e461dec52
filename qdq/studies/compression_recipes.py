"""Models that docs/compression.md measures, and the flags of their scripts, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Words = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One model: the script of its task, its data relative to the shared folder, how long and fast each part trains."""

    script: str
    data: str
    dev: str
    samples_per_step: int
    training: Mapping[str, Words]


def _steps(count: int, rate: str, evaluated_every: int = 50) -> Words:
    return ("--learning_rate", rate, "--max_steps", str(count), "--save_steps", str(evaluated_every))


# Reconstructed and calibrated models are near the teacher already, and larger steps only leave it.
CASES: Mapping[str, Case] = {
    "minilm-mrpc": Case(
        *("compress_seq_cls.py", "mrpc", "dev.tsv", 16),
        {
            "qat": _steps(300, "5e-6"),
            "dynabert+ptq": _steps(200, "2e-5"),
            "dynabert+qat+embeddings": _steps(60, "1e-5"),
        },
    ),
    # A label per token teaches more than the distance from a teacher that knows these sentences by heart.
    "minilm-conll": Case(
        *("compress_token_cls.py", "conll2003", "valid.txt", 32),
        {
            "qat": (*_steps(100, "1e-5"), "--distillation", "False"),
            "dynabert+ptq": _steps(500, "3e-5", 100),
            "dynabert+qat+embeddings": _steps(60, "1e-5"),
        },
    ),
}
# What both models need to survive INT8 (docs/calibration.md), and 128 samples to calibrate with.
TREATED: Words = (
    *("--algo_list", "clip", "--batch_size_list", "8", "--batch_num_list", "16"),
    *("--equalization", "--smoothing", "--softmax_scale", "--round_type", "gptq", "--bias_correction"),
)
# The points that pay on a CPU; every one of QDQBERT's twenty per layer.
CPU: Words = ("--placement", "linear+qk", *TREATED)
FULL: Words = ("--placement", "qdqbert", *TREATED, "--residual_scaling")
TRAINING: Words = (
    *("--train_sampling_strategy", "group_by_length", "--max_seq_length", "128", "--warmup_ratio", "0.1"),
    *("--weight_decay", "0.01", "--logging_steps", "50", "--disable_tqdm", "True"),
)
WIDTHS = ("3/4", "2/3")

# Part -> flags of the model's script. `engines` comes after the parts whose candidates it compiles.
TRAININGS: Mapping[str, Words] = {
    "ptq": ("--strategy", "ptq", *FULL),
    "qat": ("--strategy", "qat", *FULL, *TRAINING, "--freeze_observers", "0.5"),
    "ptq-cpu": ("--strategy", "ptq", *CPU),
    "dynabert+ptq": ("--strategy", "dynabert+ptq", "--width_mult_list", *WIDTHS, *CPU, *TRAINING),
    "dynabert+qat+embeddings": (
        *("--strategy", "dynabert+qat+embeddings", "--width_mult_list", WIDTHS[0], *FULL, *TRAINING),
    ),
}
PARTS = (*TRAININGS, "engines")
