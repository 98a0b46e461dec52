"""Compress a fine-tuned token classifier (NER, chunking, …).

    python examples/compress_token_cls.py --dataset msra_ner --model_name_or_path best_models/MSRA_NER \\
        --output_dir out --max_seq_length 128 --per_device_train_batch_size 32 --per_device_eval_batch_size 32 \\
        --learning_rate 0.00005 --remove_unused_columns False --num_train_epochs 3

A word's first token carries its tag; the others, and special tokens, do not count.
"""

import sys
from collections.abc import Sequence
from typing import Any

from command_line import parse
from compress_seq_cls import trains
from task_data import read, with_tags

from qdq.base.edge import run_script
from qdq.compress import CompressionTrainer
from qdq.loading.model import LoadedModel, load_model
from qdq.text.data import Record

IGNORED = -100  # torch's cross-entropy and the evaluators skip it


def main(arguments: Sequence[str] | None = None) -> Any:
    """Compress as the flags say; returns the CompressionResult."""
    data, args = parse({"num_train_epochs": 3, "learning_rate": 5e-5}, arguments, __doc__)
    loaded = load_model(data.model_name_or_path, task="token-classification")
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


def encoded(loaded: LoadedModel, records: Sequence[Record], where: str, longest: int) -> list[dict[str, Any]]:
    """Token ids and one label per token; words beyond `longest` tokens are cut."""
    samples = []
    for record, classes in with_tags(loaded, records, where) if records else ():
        words = list(record.words)
        tokens = loaded.tokenizer(words, is_split_into_words=True, truncation=True, max_length=longest)
        labels, last = [], None
        for word in tokens.word_ids():
            labels.append(IGNORED if word is None or word == last else classes[word])
            last = word
        samples.append({**tokens, "labels": labels})
    return samples


if __name__ == "__main__":
    sys.exit(run_script(main))
