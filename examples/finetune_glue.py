"""Fine-tune a sentence or sentence-pair classifier on GLUE files: the walkthrough's first step.

    python examples/finetune_glue.py --model_type bert --model_name_or_path bert-base-uncased --task_name MRPC \\
        --do_train --do_eval --do_lower_case --data_dir glue_data/MRPC --max_seq_length 128 \\
        --per_gpu_eval_batch_size=8 --per_gpu_train_batch_size=8 --learning_rate 2e-5 --num_train_epochs 1.0 \\
        --output_dir finetuned

The flags are those of transformers' run_glue.py of 2019. `--data_dir` holds train.tsv and dev.tsv as GLUE ships them.
`torchrun --nproc-per-node N examples/finetune_glue.py …` trains on N processes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from qdq.base.artifacts import write_json
from qdq.cli.main import run_script
from qdq.errors import ConfigError, DataError
from qdq.load.source import resolve
from qdq.text.data import Record, TextSource, read_records


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the flags. Raises ConfigError when neither training nor evaluation is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    # model and data
    add("--model_type", default="", help="checked against the checkpoint when given: bert, roberta, distilbert, albert")
    add("--model_name_or_path", default="all-MiniLM-L6-v2", help="hub id or folder (default: the bundled encoder)")
    add("--task_name", default="MRPC", help="name of the task, for the report")
    add("--data_dir", required=True, help="folder with train.tsv and dev.tsv")
    add("--output_dir", required=True)
    # what to do
    add("--do_train", action="store_true")
    add("--do_eval", action="store_true")
    add("--do_lower_case", action="store_true", help="the tokenizer's own setting is used; checked when given")
    add("--max_seq_length", type=int, default=128)
    # training
    add("--per_gpu_train_batch_size", type=int, default=8)
    add("--per_gpu_eval_batch_size", type=int, default=8)
    add("--learning_rate", type=float, default=5e-5)
    add("--num_train_epochs", type=float, default=3.0)
    add("--max_steps", type=int, default=-1)
    add("--seed", type=int, default=42)
    parsed = parser.parse_args(arguments)
    if not (parsed.do_train or parsed.do_eval):
        raise ConfigError("nothing to do; give --do_train, --do_eval or both")
    return parsed


def read(data_dir: str, name: str) -> list[Record]:
    """Labelled records of ``name.tsv`` in the folder."""
    path = Path(data_dir) / f"{name}.tsv"
    records, _ = read_records(TextSource(str(path)))
    if any(record.label is None for record in records):
        raise DataError(f"{path}: has rows without a label; give the labelled file of the task")
    return records


def encoded(tokenizer: Any, records: list[Record], labels: list[str], longest: int) -> list[dict[str, Any]]:
    """Token ids, cut at `longest`, and the label's index."""
    rows = []
    for record in records:
        if record.label not in labels:
            raise DataError(f"label '{record.label}' is not one of the training labels ({', '.join(labels)})")
        tokens = tokenizer(record.text, record.pair, truncation=True, max_length=longest)
        rows.append({**tokens, "labels": labels.index(record.label)})
    return rows


def scores(prediction: Any) -> dict[str, float]:
    """acc, F1 of class 1 and their mean, as GLUE reports MRPC; accuracy alone for more than two classes."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return class_scores(logits.argmax(-1).tolist(), prediction.label_ids.tolist(), logits.shape[-1])


def class_scores(predicted: list[int], expected: list[int], classes: int = 2) -> dict[str, float]:
    """The metrics of `scores` from class indices."""
    acc = sum(map(int.__eq__, predicted, expected)) / len(expected)
    if classes > 2:
        return {"acc": acc}
    both = sum(guess == label == 1 for guess, label in zip(predicted, expected, strict=True))
    f1 = 2 * both / max(predicted.count(1) + expected.count(1), 1)
    return {"acc": acc, "f1": f1, "acc_and_f1": (acc + f1) / 2}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train and evaluate as the flags say; returns the scores (empty without --do_eval)."""
    # The labels of the training file are the classes of the model's head.
    options = parse(arguments)
    folder = str(resolve(options.model_name_or_path)[0])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    train = read(options.data_dir, "train")
    labels = sorted({str(record.label) for record in train})
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(labels), **names)
    if options.model_type and options.model_type != model.config.model_type:
        raise ConfigError(f"--model_type {options.model_type}: {folder} is {model.config.model_type}; correct the flag")
    # The flags by the names that transformers' Trainer has for them.
    settings = TrainingArguments(
        output_dir=options.output_dir,
        per_device_train_batch_size=options.per_gpu_train_batch_size,
        per_device_eval_batch_size=options.per_gpu_eval_batch_size,
        learning_rate=options.learning_rate,
        num_train_epochs=options.num_train_epochs,
        max_steps=options.max_steps,
        seed=options.seed,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    dev = encoded(tokenizer, read(options.data_dir, "dev"), labels, options.max_seq_length)
    trainer = Trainer(
        model,
        settings,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=encoded(tokenizer, train, labels, options.max_seq_length),  # type: ignore[arg-type]
        eval_dataset=dev,  # type: ignore[arg-type]
        compute_metrics=scores,
    )
    # Train, then evaluate; of several processes only the first one writes.
    if options.do_train:
        trainer.train()
        trainer.save_model(options.output_dir)
        if trainer.is_world_process_zero():
            tokenizer.save_pretrained(options.output_dir)
    if not options.do_eval:
        return {}
    found = trainer.evaluate()
    result = {key.removeprefix("eval_"): value for key, value in found.items() if "acc" in key or "f1" in key}
    if trainer.is_world_process_zero():
        write_json(Path(options.output_dir) / "eval_results.json", {"task": options.task_name, **result})
        sys.stdout.write(json.dumps(result) + "\n")
    return result


if __name__ == "__main__":
    sys.exit(run_script(main))
