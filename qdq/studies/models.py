"""Models and feeds that several studies share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qdq.base.artifacts import atomic_folder

if TYPE_CHECKING:
    from qdq.base.types import Feeds
    from qdq.calibrate.rebatch import MicroBatches
    from qdq.loading.model import LoadedModel
    from qdq.tasks.closeness import Scored
    from qdq.tasks.evaluation import Evaluation
    from qdq.text.data import Record


@dataclass(frozen=True)
class Case:
    """One model with its data, relative to the shared folder; training rows calibrate and decide, dev rows score."""

    model: str
    train: str
    dev: str
    samples: int | None = None  # development rows; None is all
    sequence: int = 128
    overlap: int | None = None  # tokens neighbouring windows share; -1 is one window
    texts: int = 128  # training rows that calibrate

    def typed(self, shared: Path) -> dict[str, Any]:
        """The options of a compile run."""
        return {
            "model": str(shared / "models" / self.model),
            "calibration": str(shared / "data" / self.train),
            "eval_data": str(shared / "data" / self.dev),
            "samples": self.texts,
            "sequence": self.sequence,
        }


MRPC = Case("minilm-mrpc", "mrpc/train.tsv", "mrpc/dev.tsv")
CONLL = Case("minilm-conll", "conll2003/train.txt", "conll2003/valid.txt")
SQUAD = Case("minilm-squad", "squad/squadshifts_new_wiki_v1.0.json", "squad/dev-v1.1.json", 2000, 384, overlap=-1)


def random_bert_base(folder: Path, classifier: bool = False) -> Path:
    """Write BERT-base with random weights (seed 0) and the default model's tokenizer to `folder`, if it is not there.

    A classifier of two classes has random biases and LayerNorms, too: a trained model's are, and tools leave zeros and
    ones out of their files. Good for latency and agreement at that shape; its accuracy means nothing.
    """
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

    from qdq.loading.source import default_folder

    if (folder / "config.json").is_file():
        return folder
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig()) if classifier else BertModel(BertConfig())
        for parameter in model.parameters():
            if classifier and parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=model.config.initializer_range)
    with atomic_folder(folder) as partial:
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(default_folder()).save_pretrained(partial)
    return folder


def batches(
    loaded: LoadedModel,
    records: Sequence[Record],
    shape: tuple[int, int],
    pad_to: Literal["max_length", "longest"] = "max_length",
) -> list[Feeds]:
    """Feeds of `records`, int64 [batch, sequence] for `shape`; the last ones hold what is left."""
    from qdq.text.encode import encode_batch

    batch, sequence = shape
    parts = (records[start : start + batch] for start in range(0, len(records), batch))
    return [encode_batch(loaded.tokenizer, part, loaded.inputs, sequence, pad_to) for part in parts]


def micro_batches(loaded: LoadedModel, calibration: str, samples: int, sequence: int) -> MicroBatches:
    """The first `samples` texts of a file as calibration runs them."""
    import torch

    from qdq.calibrate.rebatch import MicroBatches
    from qdq.text.data import TextSource, read_records

    records, _ = read_records(TextSource(calibration), samples)
    (feed,) = batches(loaded, records, (len(records), sequence), "longest")
    return MicroBatches.of([{name: torch.from_numpy(array) for name, array in feed.items()}], 4)


def scored_in_fp32(case: Case, shared: Path) -> tuple[LoadedModel, Evaluation, Scored]:
    """The floating-point model of a case, its development rows, and its own answers to them. Raises QdqError."""
    from qdq.loading.model import load_model
    from qdq.loading.runner import TorchRunner
    from qdq.tasks.closeness import scored
    from qdq.tasks.loading import EvaluationSettings, load_evaluation

    loaded = load_model(str(shared / "models" / case.model))
    settings = EvaluationSettings(case.sequence, overlap=case.overlap, required=True)
    evaluation = load_evaluation(str(shared / "data" / case.dev), loaded, settings, case.samples)
    return loaded, evaluation, scored(evaluation, TorchRunner(loaded.module()))


def run_stages(names: Sequence[str], typed: Mapping[str, Any]) -> None:
    """Run stages of `qdq` in their order: "calibrate" with the options typed, the others as it was calibrated.

    `typed`: CompileOptions by field name, with out and target. Raises QdqError.
    """
    from qdq.base.screen import Screen
    from qdq.pipeline.compile import run_stage

    for name in names:
        run_stage(name, typed if name == "calibrate" else {key: typed[key] for key in ("out", "target")}, Screen())
