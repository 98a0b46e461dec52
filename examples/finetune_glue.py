"""Fine-tune a sentence or sentence-pair classifier on GLUE files: the walkthrough's first step.

    python examples/finetune_glue.py --model_type bert --model_name_or_path bert-base-uncased --task_name MRPC \\
        --do_train --do_eval --do_lower_case --data_dir glue_data/MRPC --max_seq_length 128 \\
        --per_gpu_eval_batch_size=8 --per_gpu_train_batch_size=8 --learning_rate 2e-5 --num_train_epochs 1.0 \\
        --output_dir finetuned

The flags are those of transformers' run_glue.py of 2019. `--data_dir` holds train.tsv and dev.tsv as GLUE ships them;
features are cached beside them.
`torchrun --nproc-per-node N examples/finetune_glue.py …` trains on N processes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import glue
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from qdq.base.artifacts import write_json, write_text
from qdq.base.edge import Parser, run_script
from qdq.errors import ConfigError
from qdq.loading.source import read_config, resolve
from qdq.tasks.labels import Classes


def parse(arguments: list[str] | None = None) -> Any:
    """Parse the flags. Raises ConfigError when neither training nor evaluation is asked for."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    # model and data
    add("--model_type", default="", help="checked against the checkpoint when given: bert, roberta, distilbert, albert")
    add("--model_name_or_path", default="all-MiniLM-L6-v2", help="hub id or folder (default: the bundled encoder)")
    add("--task_name", default="MRPC", help="GLUE's task, which orders the classes and chooses the metric")
    add("--data_dir", required=True, help="folder with train.tsv and dev.tsv")
    add("--output_dir", required=True)
    # what to do
    add("--do_train", action="store_true")
    add("--do_eval", action="store_true")
    add("--do_lower_case", action="store_true", help="the tokenizer's own setting is used; checked when given")
    add("--max_seq_length", type=int, default=128)
    add("--overwrite_cache", action="store_true", help="make the cached features anew")
    # training
    add("--per_gpu_train_batch_size", type=int, default=8)
    add("--per_gpu_eval_batch_size", type=int, default=8)
    add("--learning_rate", type=float, default=5e-5)
    add("--num_train_epochs", type=float, default=3.0)
    add("--max_steps", type=int, default=-1)
    add("--save_steps", type=int, default=50, help="steps between checkpoint-N folders; 0 for none")
    add("--seed", type=int, default=42)
    parsed = parser.parse_args(arguments)
    if not (parsed.do_train or parsed.do_eval):
        raise ConfigError("nothing to do; give --do_train, --do_eval or both")
    return parsed


def classes_of(options: Any, config: dict[str, Any], folder: str) -> tuple[str, ...]:
    """Names of the classes in their order, () for a task with scores; those of a classifier stay.

    Raises ConfigError for a checkpoint without a classifier that is only to be evaluated.
    """
    task = options.task_name.lower()
    if any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or []):
        stated = {int(number): str(name) for number, name in (config.get("id2label") or {0: "0", 1: "1"}).items()}
        own = tuple(stated[number] for number in sorted(stated))
        known = glue.LABELS.get(task, ())
        if task in glue.LABELS and len(own) != max(len(known), 1):
            raise ConfigError(f"{folder}: is a classifier of {len(own)} classes, no model for {task}; give its encoder")
        unnamed = Classes(own, len(own)).unnamed
        return () if len(own) == 1 else known if unnamed and len(known) == len(own) else own
    if not options.do_train:
        raise ConfigError(f"{folder}: is no classifier yet, so there is nothing to evaluate; give --do_train, too")
    if task in glue.LABELS:
        return glue.LABELS[task]
    return tuple(sorted({str(record.label) for record in glue.read(options.data_dir, "train")}))


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train and evaluate as the flags say; returns the scores (empty without --do_eval)."""
    # Data first: what is wrong with them is said before a model is loaded.
    options = parse(arguments)
    folder = str(resolve(options.model_name_or_path)[0])
    config, task = read_config(Path(folder)), options.task_name.lower()
    if options.model_type and options.model_type != (stated := config.get("model_type")):
        raise ConfigError(f"--model_type {options.model_type}: {folder} is {stated}; correct the flag")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    labels = classes_of(options, config, folder)
    wanted = [split for split, asked in (("train", options.do_train), ("dev", options.do_eval)) if asked]
    data: dict[str, Any] = {split: features(options, split, tokenizer, labels) for split in wanted}
    # The model, its head drawn by the seed and named as the task orders its classes.
    set_seed(options.seed)
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}
    head = {"num_labels": len(labels), **names} if labels else {"num_labels": 1, "problem_type": "regression"}
    trainer = Trainer(
        AutoModelForSequenceClassification.from_pretrained(folder, **head),
        settings(options),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=data.get("train"),
        eval_dataset=data.get("dev"),
        compute_metrics=lambda prediction: scores(task, prediction),
    )
    # Train, then evaluate; of several processes only the first one writes.
    if options.do_train:
        trainer.train()
        trainer.save_model(options.output_dir)
        if trainer.is_world_process_zero():
            save_tokenizer(tokenizer, Path(options.output_dir))
    if not options.do_eval:
        return {}
    found = {key.removeprefix("eval_"): value for key, value in trainer.evaluate().items()}
    result = {name: found[name] for name in found if name.rpartition("/")[2] in REPORTED}
    if trainer.is_world_process_zero():
        out = Path(options.output_dir)
        write_json(out / "eval_results.json", {"task": options.task_name, **result})
        write_text(out / "eval_results.txt", "".join(f"{name} = {result[name]}\n" for name in sorted(result)))
        sys.stdout.write(json.dumps(result) + "\n")
    return result


def features(options: Any, split: str, tokenizer: Any, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Token ids and labels of a split, from the cache beside its file where there is one."""
    task = options.task_name.lower()
    examples = glue.read(options.data_dir, glue.FILES.get(task, split) if split == "dev" else split)
    place = glue.cache_of(options.data_dir, split, options.model_name_or_path, options.max_seq_length, task)
    mode = "classification" if labels else "regression"
    given = {"label_list": tuple(labels), "max_length": options.max_seq_length, "output_mode": mode}
    found = glue.load_features(examples, tokenizer, place, options.overwrite_cache, **given)
    taken = (*tokenizer.model_input_names, "labels")
    return [{name: value for name, value in one.sample.items() if name in taken} for one in found]


REPORTED = ("acc", "f1", "acc_and_f1", "mcc", "pearson", "spearmanr", "corr")


def settings(options: Any) -> TrainingArguments:
    """The flags by the names that transformers' Trainer has for them."""
    return TrainingArguments(
        output_dir=options.output_dir,
        per_device_train_batch_size=options.per_gpu_train_batch_size,
        per_device_eval_batch_size=options.per_gpu_eval_batch_size,
        learning_rate=options.learning_rate,
        num_train_epochs=options.num_train_epochs,
        max_steps=options.max_steps,
        seed=options.seed,
        save_strategy="steps" if options.save_steps else "no",
        save_steps=options.save_steps or 50,
        save_only_model=True,  # as run_glue.py's: to evaluate, not to continue from
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def scores(task: str, prediction: Any) -> dict[str, float]:
    """The metrics that GLUE reports for the task; accuracy for a task of one's own."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    answers = logits[:, 0] if logits.shape[-1] == 1 else logits.argmax(-1)
    task = "sts-b" if logits.shape[-1] == 1 else task
    return glue.glue_compute_metrics(task, answers, prediction.label_ids)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer, and beside tokenizer.json the files that older releases and other tools read."""
    tokenizer.save_pretrained(folder)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"] if tokenizer.is_fast else {}
    if backend.get("type") in ("WordPiece", "WordLevel"):
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        write_text(folder / "vocab.txt", "".join(f"{token}\n" for token, _ in vocabulary))
    write_json(folder / "special_tokens_map.json", {k: str(v) for k, v in tokenizer.special_tokens_map.items()})


if __name__ == "__main__":
    sys.exit(run_script(main))
