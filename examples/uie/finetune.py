"""Fine-tune a UIE on prompt files, evaluate it, export it and compress it.

    python examples/uie/finetune.py --model_name_or_path uie-base --train_path data/train.txt --dev_path data/dev.txt \\
        --output_dir checkpoint/model_best --max_seq_length 512 --per_device_train_batch_size 16 \\
        --per_device_eval_batch_size 16 --num_train_epochs 20 --learning_rate 1e-5 --seed 42 --logging_steps 10 \\
        --eval_strategy steps --eval_steps 100 --save_steps 100 --label_names start_positions end_positions \\
        --do_train --do_eval --do_export --export_model_dir checkpoint/model_best --load_best_model_at_end True \\
        --metric_for_best_model eval_f1 --save_total_limit 1

The flags are those of PaddleNLP's finetune.py, beside every flag of CompressionArguments: --do_compress --strategy qat
compresses the model that was trained. A bare encoder gets new heads. --do_export writes an ONNX file.
"""

# No `from __future__ import annotations`: HfArgumentParser reads the annotations as objects.

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, set_seed

from qdq.base.artifacts import write_json
from qdq.base.edge import run_script
from qdq.compress import CompressionArguments, CompressionTrainer
from qdq.errors import ConfigError
from qdq.loading.model import load_model
from qdq.loading.source import resolve
from qdq.loading.tokenizer import takes_types
from qdq.loading.uie import UIE
from qdq.tasks.spans import SpanEvaluator
from qdq.uie.rows import LABELS, MarksCollator, prompt_rows

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where command_line lies
from command_line import ScriptParser, WithDefaults


@dataclass
class UIEArguments:
    """Model and data."""

    train_path: str | None = field(default=None, metadata={"help": "prompt file to train on"})
    dev_path: str | None = field(default=None, metadata={"help": "prompt file to evaluate on"})
    model_name_or_path: str = field(
        default="uie-base", metadata={"help": "a UIE checkpoint, or an encoder that gets new heads: hub id or folder"}
    )
    max_seq_length: int = field(default=512, metadata={"help": "tokens; longer contents become several rows"})
    export_model_dir: str | None = field(default=None, metadata={"help": "folder of the exported ONNX file"})
    do_export: bool = field(default=False, metadata={"help": "export the model as ONNX"})
    do_compress: bool = field(default=False, metadata={"help": "compress the model by --strategy"})
    multilingual: bool = field(default=False, metadata={"help": "for uie-m; the checkpoint says it itself, so unused"})


def main(arguments: Sequence[str] | None = None) -> Any:
    """Do what the flags ask for; returns the evaluation's metrics, or the CompressionResult of --do_compress."""
    both = (UIEArguments, CompressionArguments)
    data, args = ScriptParser(dataclass_types=both, description=__doc__, formatter_class=WithDefaults).read(arguments)
    _check(data, args)
    set_seed(args.seed)
    # The model, with new heads where the checkpoint is an encoder
    folder, _ = resolve(data.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = UIE.from_pretrained(folder)
    inputs = ("input_ids", "attention_mask", *(("token_type_ids",) if takes_types(model, tokenizer) else ()))
    sequence = min(data.max_seq_length, int(tokenizer.model_max_length))
    train, dev = (
        prompt_rows(path, tokenizer, inputs, sequence) if path else None for path in (data.train_path, data.dev_path)
    )
    args.label_names = args.label_names or list(LABELS)
    trainer = CompressionTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=dev,
        tokenizer=tokenizer,
        data_collator=MarksCollator(tokenizer),
        compute_metrics=span_metrics,
    )
    # What was asked for, in this order
    found: Any = None
    if args.do_train:
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        trainer.save_model(args.output_dir)
        tokenizer.save_pretrained(args.output_dir)
    if args.do_eval:
        found = trainer.evaluate()
        write_json(Path(args.output_dir) / "eval_results.json", found)
        sys.stdout.write("".join(f"{name}: {found[f'eval_{name}']:.5f}\n" for name in ("precision", "recall", "f1")))
    if data.do_export:
        export(Path(args.output_dir if args.do_train else folder), Path(data.export_model_dir or args.output_dir))
    return trainer.compress() if data.do_compress else found


def _check(data: UIEArguments, args: CompressionArguments) -> None:
    if not (args.do_train or args.do_eval or data.do_export or data.do_compress):
        raise ConfigError("nothing to do; give --do_train, --do_eval, --do_export or --do_compress")
    if args.do_train and not data.train_path:
        raise ConfigError("--do_train needs --train_path")
    if (args.do_eval or data.do_compress) and not data.dev_path:
        raise ConfigError("--do_eval and --do_compress need --dev_path")


def span_metrics(found: Any) -> dict[str, float]:
    """Precision, recall and F1 of a Trainer's predictions, padded with -100."""
    sides = [np.where(side == -100, 0, side) for side in (*found.predictions, *found.label_ids)]
    metric = SpanEvaluator()
    metric.update(*metric.compute(*sides))
    return dict(zip(("precision", "recall", "f1"), metric.accumulate(), strict=True))


def export(folder: Path, target: Path) -> Path:
    """The checkpoint in `folder` as ``target/model.onnx``, float32, with dynamic batch and sequence."""
    from export.to_onnx import export_onnx
    from qdq.inject import inject
    from qdq.inject.quantizer import folded
    from qdq.inject.spec import named_spec
    from qdq.pipeline.stages.export import export_example

    loaded = load_model(str(folder))
    inject(loaded.model, named_spec("linear", linear=False))
    target.mkdir(parents=True, exist_ok=True)
    with folded(loaded.model):
        export_onnx(loaded.module(), export_example(loaded), loaded.outputs, target / "model.onnx")
    sys.stdout.write(f"{target / 'model.onnx'}: {', '.join(loaded.outputs)}\n")
    return target / "model.onnx"


if __name__ == "__main__":
    sys.exit(run_script(main))
