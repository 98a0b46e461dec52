"""Models that docs/compression.md measures, and the flags of their scripts, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from qdq.studies.models import CONLL, MRPC, Case


class Recipe(NamedTuple):
    """One model with its data: the script of its task, and the flags that only its own parts have."""

    case: Case
    script: str
    samples_per_step: int
    flags: Mapping[str, str]


# Reconstructed and calibrated models are near the teacher already, and larger steps only leave it.
EMBEDDINGS = "--learning_rate 1e-5 --max_steps 60 --save_steps 50"
MRPC_FLAGS = {
    "qat": "--learning_rate 5e-6 --max_steps 300 --save_steps 50",
    "dynabert+ptq": "--learning_rate 2e-5 --max_steps 200 --save_steps 50",
    "dynabert+qat+embeddings": EMBEDDINGS,
}
# A label per token teaches more than the distance from a teacher that knows these sentences by heart.
CONLL_FLAGS = {
    "qat": "--learning_rate 1e-5 --max_steps 100 --save_steps 50 --distillation False",
    "dynabert+ptq": "--learning_rate 3e-5 --max_steps 500 --save_steps 100",
    "dynabert+qat+embeddings": EMBEDDINGS,
}
CASES: Mapping[str, Recipe] = {
    MRPC.model: Recipe(MRPC, "compress_seq_cls.py", 16, MRPC_FLAGS),
    CONLL.model: Recipe(CONLL, "compress_token_cls.py", 32, CONLL_FLAGS),
}

# What both models need to survive INT8 (docs/calibration.md), and 128 samples to calibrate with.
TREATED = (
    "--algo_list clip --batch_size_list 8 --batch_num_list 16 "
    "--equalization --smoothing --softmax_scale --round_type gptq --bias_correction"
)
# The points that pay on a CPU; every one of QDQBERT's twenty per layer.
CPU = f"--placement linear+qk {TREATED}"
FULL = f"--placement qdqbert {TREATED} --residual_scaling"
TRAINING = (
    "--train_sampling_strategy group_by_length --max_seq_length 128 --warmup_ratio 0.1 "
    "--weight_decay 0.01 --logging_steps 50 --disable_tqdm True"
)
# Part -> flags of the model's script. `engines` comes after the parts whose candidates it compiles.
TRAININGS: Mapping[str, str] = {
    "ptq": f"--strategy ptq {FULL}",
    "qat": f"--strategy qat {FULL} {TRAINING} --freeze_observers 0.5",
    "ptq-cpu": f"--strategy ptq {CPU}",
    "dynabert+ptq": f"--strategy dynabert+ptq --width_mult_list 3/4 2/3 {CPU} {TRAINING}",
    "dynabert+qat+embeddings": f"--strategy dynabert+qat+embeddings --width_mult_list 3/4 {FULL} {TRAINING}",
}
PARTS = (*TRAININGS, "engines")
