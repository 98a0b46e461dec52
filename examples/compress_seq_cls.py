"""Compress a fine-tuned text or text-pair classifier.

    python examples/compress_seq_cls.py --dataset "clue tnews" --model_name_or_path best_models/TNEWS --output_dir out
    python examples/compress_seq_cls.py --dataset data/mrpc --model_name_or_path my-mrpc --output_dir out \\
        --strategy qat --num_train_epochs 1

Defaults come from config.yml by data set. Columns and labels of a local file are found as `qdq compile` finds them; the
model's head says whether they are classes, lists of classes (multi-label) or scores.
"""

import sys
from collections.abc import Sequence
from typing import Any

from command_line import defaults_of, parse, typed
from task_data import read, with_classes

from qdq.base.edge import run_script
from qdq.compress import CompressionTrainer
from qdq.loading.model import LoadedModel, load_model
from qdq.text.data import Record


def main(arguments: Sequence[str] | None = None) -> Any:
    """Compress as the flags say; returns the CompressionResult."""
    data, args = parse(defaults_of(typed("dataset", arguments)), arguments, __doc__)
    loaded = load_model(data.model_name_or_path, task="text-classification")
    dev = read(data.dataset, "dev", data)
    train = read(data.dataset, "train", data) if trains(args) else []
    trainer = CompressionTrainer(
        model=loaded.model,
        args=args,
        train_dataset=encoded(loaded, train, f"{data.dataset}, train", data.max_seq_length) or None,
        eval_dataset=encoded(loaded, dev, f"{data.dataset}, dev", data.max_seq_length),
        tokenizer=loaded.tokenizer,
    )
    return trainer.compress()


def trains(args: Any) -> bool:
    """True when the strategy needs training data."""
    return bool(args.chosen_strategy.trains)


def encoded(loaded: LoadedModel, records: Sequence[Record], where: str, longest: int) -> list[dict[str, Any]]:
    """Token ids of every record, with its class, one float per class, or its score."""
    samples = []
    for record, label in with_classes(loaded, records, where) if records else ():
        tokens = loaded.tokenizer(record.text, record.pair, truncation=True, max_length=longest)
        samples.append({**tokens, "labels": label})
    return samples


if __name__ == "__main__":
    sys.exit(run_script(main))
