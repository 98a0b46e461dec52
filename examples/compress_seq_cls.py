"""Compress a fine-tuned text or text-pair classifier.

    python examples/compress_seq_cls.py --dataset "clue tnews" --model_name_or_path best_models/TNEWS --output_dir out
    python examples/compress_seq_cls.py --dataset data/mrpc --model_name_or_path my-mrpc --output_dir out \\
        --strategy qat --num_train_epochs 1

Defaults come from config.yml by data set. Columns of a local file are found as `qdq compile` finds them.
"""

from collections.abc import Sequence
from typing import Any

from command_line import defaults_of, parse, typed
from task_data import label_map, read

from qdq.compress import CompressionTrainer
from qdq.errors import DataError
from qdq.load.model import LoadedModel, load_model
from qdq.text.columns import Columns, detect_columns


def main(arguments: Sequence[str] | None = None) -> Any:
    """Compress as the flags say; returns the CompressionResult."""
    data, args = parse(defaults_of(typed("dataset", arguments)), arguments)
    loaded = load_model(data.model_name_or_path, task="text-classification")
    dev = read(data.dataset, "dev", "classes")[: data.max_eval_samples or None]
    train = read(data.dataset, "train", "classes")[: data.max_train_samples or None] if trains(args) else []
    columns = detect_columns(dev[:100], data.dataset)
    if columns.label is None:
        raise DataError(f"{data.dataset}: no label column among {', '.join(dev[0])}; name it label")
    labels = label_map(loaded.model, [*train, *dev], columns.label)
    trainer = CompressionTrainer(
        model=loaded.model,
        args=args,
        train_dataset=encoded(loaded, train, columns, labels, data.max_seq_length) or None,
        eval_dataset=encoded(loaded, dev, columns, labels, data.max_seq_length),
        tokenizer=loaded.tokenizer,
    )
    return trainer.compress()


def trains(args: Any) -> bool:
    """True when the strategy needs training data."""
    return bool(args.chosen_strategy.trains)


def encoded(
    loaded: LoadedModel, rows: list[dict[str, Any]], columns: Columns, labels: dict[str, int], longest: int
) -> list[dict[str, Any]]:
    """Token ids and class index of every row."""
    samples = []
    for row in rows:
        pair = str(row[columns.pair]) if columns.pair else None
        tokens = loaded.tokenizer(str(row[columns.text]), pair, truncation=True, max_length=longest)
        samples.append({**tokens, "labels": labels[str(row[columns.label])]})
    return samples


if __name__ == "__main__":
    main()
