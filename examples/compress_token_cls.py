"""Compress a fine-tuned token classifier (NER, chunking, …).

    python examples/compress_token_cls.py --dataset msra_ner --model_name_or_path best_models/MSRA_NER \\
        --output_dir out --max_seq_length 128 --per_device_train_batch_size 32 --per_device_eval_batch_size 32 \\
        --learning_rate 0.00005 --remove_unused_columns False --num_train_epochs 3

A word's first token carries its tag; the others, and special tokens, do not count.
"""

from collections.abc import Sequence
from typing import Any

from command_line import parse
from compress_seq_cls import trains
from task_data import label_map, read

from qdq.compress import CompressionTrainer
from qdq.load.model import LoadedModel, load_model

IGNORED = -100  # torch's cross-entropy and the evaluators skip it


def main(arguments: Sequence[str] | None = None) -> Any:
    """Compress as the flags say; returns the CompressionResult."""
    data, args = parse({"num_train_epochs": 3, "learning_rate": 5e-5}, arguments)
    loaded = load_model(data.model_name_or_path, task="token-classification")
    dev = read(data.dataset, "dev", "tokens")[: data.max_eval_samples or None]
    train = read(data.dataset, "train", "tokens")[: data.max_train_samples or None] if trains(args) else []
    tags = label_map(loaded.model, [*train, *dev], "tags")
    trainer = CompressionTrainer(
        model=loaded.model,
        args=args,
        train_dataset=encoded(loaded, train, tags, data.max_seq_length) or None,
        eval_dataset=encoded(loaded, dev, tags, data.max_seq_length),
        tokenizer=loaded.tokenizer,
    )
    return trainer.compress()


def encoded(
    loaded: LoadedModel, rows: list[dict[str, Any]], tags: dict[str, int], longest: int
) -> list[dict[str, Any]]:
    """Token ids and one label per token; words beyond `longest` tokens are cut."""
    samples = []
    for row in rows:
        tokens = loaded.tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=longest)
        labels, last = [], None
        for word in tokens.word_ids():
            labels.append(IGNORED if word is None or word == last else tags[row["tags"][word]])
            last = word
        samples.append({**tokens, "labels": labels})
    return samples


if __name__ == "__main__":
    main()
