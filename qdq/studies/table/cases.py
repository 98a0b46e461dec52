"""The six models of the table, and how each is trained, pruned, scored and timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qdq.studies.compression_recipes import CPU, TRAINING

LAYERS = 3  # of a model that is fine-tuned here: half of what the shared ones have, so that minutes of a CPU suffice
BUNDLED = "all-MiniLM-L6-v2"  # the encoder of the demo package
PRUNED_WIDTH = "3/4"  # the width that the documents prune 6 layers to
KINDS = ("text-classification", "token-classification", "question-answering")
SCRIPTS = dict(zip(KINDS, ("compress_seq_cls.py", "compress_token_cls.py", "compress_qa.py"), strict=True))
# Chinese text that the character vocabulary is built from, relative to the shared data.
CHINESE = ("tnews/train.json", "msra_ner/train.txt", "cmrc2018/cmrc2018_trial.json")
FINETUNING = (
    "--bf16 True --use_cpu True --embedding_learning_rate 1e-3 --learning_rate 2e-4 --warmup_steps 30 "
    "--weight_decay 0.01 --train_sampling_strategy group_by_length --disable_tqdm True --seed 42"
)


@dataclass(frozen=True)
class TableCase:
    """One model with its data; `train` and `dev` are relative to the shared data.

    Attributes:
        name: of the checkpoint, in the shared models, or fine-tuned here where `finetuning` says how.
        task: as `qdq.loading.kinds` names it.
        data: the data set as the documents call it.
        sequence: tokens; texts are cut there, contexts windowed.
        rows: of the development data that score the engines, None for all.
        batch: texts that are timed at once.
        pruning: flags of the training behind pruning.
        finetuning: flags of examples/finetune.py, "" for a checkpoint that is there.
        start: what fine-tuning takes the layers from, in the shared models; "" is the bundled encoder.
        windows: EvaluationSettings.overlap.
    """

    name: str
    task: str
    data: str
    train: str
    dev: str
    pruning: str
    sequence: int = 128
    rows: int | None = None
    batch: int = 40
    finetuning: str = ""
    start: str = ""
    windows: int | None = None

    def layers(self, shared: Path) -> str:
        """The checkpoint that fine-tuning takes the layers from."""
        return str(shared / "models" / self.start) if self.start else BUNDLED

    def finetuning_flags(self) -> list[str]:
        """Flags of examples/finetune.py behind task, data, model and folder."""
        return f"{FINETUNING} --max_seq_length {self.sequence} {self.finetuning}".split()

    def compression_flags(self) -> list[str]:
        """Flags of the compression script behind data, model and folder: INT8, pruned, and both, in one call."""
        return (
            f"--strategy ptq,dynabert,dynabert+ptq --width_mult_list {PRUNED_WIDTH} {CPU} "
            f"{TRAINING.replace('--max_seq_length 128', f'--max_seq_length {self.sequence}')} "
            f"--save_steps 20 --per_device_eval_batch_size 32 --report_to none {self.pruning}"
        ).split()


CASES: Mapping[str, TableCase] = {
    case.name: case
    for case in (
        TableCase(
            *("minilm-tnews", KINDS[0], "TNEWS", "tnews/train.json", "tnews/dev.json"),
            pruning="--per_device_train_batch_size 32 --learning_rate 2e-5 --max_steps 40 --max_eval_samples 150",
            finetuning="--per_device_train_batch_size 32 --max_steps 400",
            rows=2000,
        ),
        TableCase(
            *("minilm-mrpc", KINDS[0], "MRPC", "mrpc/train.tsv", "mrpc/dev.tsv"),
            pruning="--per_device_train_batch_size 16 --learning_rate 2e-5 --max_steps 40 --max_eval_samples 150",
        ),
        TableCase(
            *("minilm-msra", KINDS[1], "MSRA_NER", "msra_ner/train.txt", "msra_ner/test.txt"),
            pruning="--per_device_train_batch_size 32 --learning_rate 3e-5 --max_steps 40 --max_eval_samples 150",
            finetuning="--per_device_train_batch_size 32 --max_steps 200",
            rows=1000,
        ),
        TableCase(
            *("minilm-conll", KINDS[1], "CoNLL-2003", "conll2003/train.txt", "conll2003/valid.txt"),
            pruning="--per_device_train_batch_size 32 --learning_rate 3e-5 --max_steps 40 --max_eval_samples 150",
        ),
        TableCase(
            *("minilm-cmrc", KINDS[2], "CMRC2018", "cmrc2018/cmrc2018_trial.json", "cmrc2018/cmrc2018_dev.json"),
            pruning="--doc_stride 64 --per_device_train_batch_size 12 --learning_rate 3e-5 --max_steps 20 "
            "--max_eval_samples 50",
            finetuning="--doc_stride 64 --per_device_train_batch_size 16 --max_steps 80",
            start="minilm-squad",
            sequence=256,
            rows=300,
            batch=16,
            windows=64,
        ),
        TableCase(
            *("minilm-squad", KINDS[2], "SQuAD 1.1", "squad/squadshifts_new_wiki_v1.0.json", "squad/dev-v1.1.json"),
            pruning="--per_device_train_batch_size 12 --learning_rate 3e-5 --max_steps 20 "
            "--max_eval_samples 50 --max_train_samples 2000",
            sequence=384,
            rows=500,
            batch=12,
            windows=-1,
        ),
    )
}
