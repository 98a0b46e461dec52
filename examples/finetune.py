"""Fine-tune an encoder for one of the three tasks of the compression scripts, on data as they read it.

    python examples/finetune.py --task token-classification --dataset data/msra_ner --model_name_or_path my-encoder \\
        --output_dir best_models/MSRA_NER --learning_rate 1e-4 --num_train_epochs 3

A new head names its classes after the labels of the training data, in order of numbers or of the alphabet and O first;
a model that has the task's head keeps it. `--embedding_learning_rate` is for embeddings that are new: those of a
vocabulary that the encoder has not been trained with.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import compress_seq_cls
import compress_token_cls
import torch
import transformers
from command_line import DataArguments, parse
from task_data import read
from transformers import (
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from qdq.base.config import choice
from qdq.base.edge import run_script
from qdq.errors import DataError
from qdq.loading.kinds import TASKS, detect_task
from qdq.loading.model import LoadedModel, load_model
from qdq.loading.source import read_config, resolve
from qdq.tasks.extraction import training_row, windows
from qdq.tasks.gold import NO_CONSENSUS
from qdq.text.data import Record

KINDS = ("text-classification", "token-classification", "question-answering")


@dataclass
class FinetuneArguments(TrainingArguments):
    """The task and its training, beside every flag of transformers' TrainingArguments."""

    task: str = field(default="text-classification", metadata={"help": ", ".join(KINDS)})
    embedding_learning_rate: float | None = field(default=None, metadata={"help": "of token embeddings (none: as all)"})


def main(arguments: Sequence[str] | None = None) -> LoadedModel:
    """Train as the flags say and write the model to `output_dir`; returns it."""
    defaults = {"report_to": "none", "save_strategy": "no", "logging_steps": 50, "dataloader_pin_memory": False}
    data, args = parse(defaults, arguments, __doc__, FinetuneArguments)
    choice(args.task, KINDS, "--task")
    records = read(data.dataset, "train", data)
    set_seed(args.seed)
    loaded = with_head(data.model_name_or_path, args, records)
    # Samples as the compression scripts make them; tags are padded along.
    tags = args.task == "token-classification"
    collator = DataCollatorForTokenClassification if tags else DataCollatorWithPadding
    trainer = Trainer(
        loaded.model,
        args,
        data_collator=collator(loaded.tokenizer),
        train_dataset=samples(loaded, records, args.task, data),
        optimizers=(optimizer(loaded.model, args), None),
    )
    trainer.train()
    trainer.save_model(args.output_dir)
    return loaded


def with_head(model: str, args: FinetuneArguments, records: Sequence[Record]) -> LoadedModel:
    """The encoder of `model` with the task's head, also written to `output_dir`. Raises DataError without labels."""
    folder = resolve(model)[0]
    stated = read_config(folder).get("architectures")
    has_head = bool(stated) and detect_task(stated, str(folder)).name == args.task
    named = {} if has_head or args.task == "question-answering" else heads_names(records, args.task)
    made = getattr(transformers, TASKS[args.task].auto_class).from_pretrained(folder, **named)
    made.save_pretrained(args.output_dir)
    AutoTokenizer.from_pretrained(folder).save_pretrained(args.output_dir)
    return load_model(args.output_dir, task=args.task)


def heads_names(records: Sequence[Record], task: str) -> dict[str, dict[Any, Any]]:
    """`id2label` and `label2id` of the classes in the data. Raises DataError when there are fewer than two."""
    if task == "token-classification":
        found = {tag for record in records for tag in record.tags}
    else:
        found = {record.label for record in records if record.label not in (None, NO_CONSENSUS)}
    whole = all(name.lstrip("-").isdigit() for name in found)
    names = sorted(found, key=int if whole else lambda name: (name != "O", name))
    names = list(records[0].classes) or names
    if len(names) < 2:
        raise DataError(f"the training data have the classes {', '.join(names) or 'none'}; at least two are needed")
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def samples(loaded: LoadedModel, records: Sequence[Record], task: str, data: DataArguments) -> list[dict[str, Any]]:
    """Token ids with labels, as the compression script of the task makes them."""
    if task != "question-answering":
        script = compress_seq_cls if task == "text-classification" else compress_token_cls
        return list(script.encoded(loaded, records, f"{data.dataset}, train", data.max_seq_length))
    longest = min(data.max_seq_length, loaded.max_sequence)
    cut = windows(
        loaded.tokenizer, records, longest, min(data.doc_stride, longest // 2), "token_type_ids" in loaded.inputs
    )
    return [training_row(part, records[part.sample], loaded.inputs) for part in cut]


def optimizer(model: Any, args: FinetuneArguments) -> Any:
    """AdamW with a learning rate of its own for the table of token embeddings; without one None, Trainer's own."""
    if args.embedding_learning_rate is None:
        return None
    table = model.get_input_embeddings().weight
    rest = [weight for weight in model.parameters() if weight is not table]
    groups = [{"params": rest}, {"params": [table], "lr": args.embedding_learning_rate}]
    return torch.optim.AdamW(groups, lr=args.learning_rate, weight_decay=args.weight_decay)


if __name__ == "__main__":
    sys.exit(run_script(main))
