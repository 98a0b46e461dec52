"""Models and feeds that several studies share."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qdq.base.artifacts import atomic_folder

if TYPE_CHECKING:
    from qdq.base.types import Feeds
    from qdq.calibrate.rebatch import MicroBatches
    from qdq.load.model import LoadedModel
    from qdq.text.data import Record


def random_bert_base(folder: Path, classifier: bool = False) -> Path:
    """Write BERT-base with random weights (seed 0) and the default model's tokenizer to `folder`, if it is not there.

    A classifier of two classes has random biases and LayerNorms, too: a trained model's are, and tools leave zeros and
    ones out of their files. Good for latency and agreement at that shape; its accuracy means nothing.
    """
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

    from qdq.load.source import default_folder

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


def calibration_inputs(options: Namespace) -> tuple[LoadedModel, MicroBatches]:
    """The floating-point model of a `calibration_parser`, and its texts as calibration runs them; torch is prepared."""
    import torch

    from qdq.calibrate.rebatch import MicroBatches
    from qdq.load.model import load_model
    from qdq.pipeline.options import available_cores
    from qdq.pipeline.run import prepare_torch
    from qdq.text.data import TextSource, read_records

    prepare_torch(options.threads or available_cores())
    loaded = load_model(options.model)
    records, _ = read_records(TextSource(options.calibration), options.samples)
    (feed,) = batches(loaded, records, (len(records), options.sequence), "longest")
    return loaded, MicroBatches.of([{name: torch.from_numpy(array) for name, array in feed.items()}], 4)


def run_stages(names: Sequence[str], typed: Mapping[str, Any]) -> None:
    """Run stages of `qdq` in their order: "calibrate" with the options typed, the others as it was calibrated.

    `typed`: CompileOptions by field name, with out and target. Raises QdqError.
    """
    from qdq.base.screen import Screen
    from qdq.pipeline.compile import run_stage

    for name in names:
        run_stage(name, typed if name == "calibrate" else {key: typed[key] for key in ("out", "target")}, Screen())
