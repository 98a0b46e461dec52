"""What docs/compression.md measures: the models, and the flags of their scripts, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Words = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One model: the script of its task, its data relative to the shared folder, and flags of its own, part by part."""

    script: str
    data: str
    dev: str
    samples_per_step: int
    flags: Mapping[str, Words] = field(default_factory=dict)


CASES: Mapping[str, Case] = {
    "minilm-mrpc": Case(
        *("compress_seq_cls.py", "mrpc", "dev.tsv", 16),
        {"qat": ("--max_steps", "300", "--learning_rate", "5e-6")},
    ),
    # A label per token teaches more than distance from an overfitted teacher; MRPC has 3,668 labels in all.
    "minilm-conll": Case(
        *("compress_token_cls.py", "conll2003", "valid.txt", 32),
        {"qat": ("--max_steps", "100", "--learning_rate", "1e-5", "--distillation", "False")},
    ),
}
# What both models need to survive INT8 (docs/calibration.md), and 128 samples to calibrate with.
TREATED: Words = (
    *("--algo_list", "search", "--batch_size_list", "8", "--batch_num_list", "16"),
    *("--equalization", "--smoothing", "--softmax_scale", "--round_type", "gptq", "--bias_correction"),
)
# The points that pay on a CPU; every one of QDQBERT's twenty per layer.
CPU: Words = ("--placement", "linear+qk", *TREATED)
FULL: Words = ("--placement", "qdqbert", *TREATED, "--residual_scaling")
TRAINING: Words = (
    *("--train_sampling_strategy", "group_by_length", "--max_seq_length", "128", "--warmup_ratio", "0.1"),
    *("--weight_decay", "0.01", "--logging_steps", "50", "--save_steps", "50", "--disable_tqdm", "True"),
)
# Reconstructed and calibrated models are near the teacher already, and larger steps only leave it.
DYNABERT: Words = (*TRAINING, "--learning_rate", "2e-5", "--max_steps", "200")
QAT: Words = (*TRAINING, "--freeze_observers", "0.5")
WIDTHS = ("3/4", "2/3")

# Part -> flags of the model's script. `engines` comes after the parts whose candidates it compiles.
TRAININGS: Mapping[str, Words] = {
    "ptq": ("--strategy", "ptq", *FULL),
    "qat": ("--strategy", "qat", *FULL, *QAT),
    "ptq-cpu": ("--strategy", "ptq", *CPU),
    "dynabert+ptq": ("--strategy", "dynabert+ptq", "--width_mult_list", *WIDTHS, *CPU, *DYNABERT),
    "dynabert+qat+embeddings": (
        *("--strategy", "dynabert+qat+embeddings", "--width_mult_list", WIDTHS[0]),
        *(*FULL, *TRAINING, "--learning_rate", "1e-5", "--max_steps", "60"),
    ),
}
PARTS = (*TRAININGS, "engines")
