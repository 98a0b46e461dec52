"""`python -m qdq.studies.uie`: span F1 of UIE in FP32 and as INT8 engines, on the prompt files of ../shared/data/uie.

For each set an encoder over single characters (`qdq.studies.uie_encoder`) is fine-tuned on the set's training prompts,
since no pretrained UIE is at hand. Then it is compiled for every CPU target, with those prompts as calibration text,
and scored on the development (and test) prompts. Writes docs/results/uie/SET.json and the table of docs/uie.md.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.targets import CPU_TARGETS
from qdq.base.artifacts import read_json, write_json
from qdq.studies import pages
from qdq.studies.study import RESULTS, add_places, exit_code, parser
from qdq.studies.uie_encoder import LAYERS, write_encoder

FOLDER = RESULTS / "uie"
MARK_WEIGHT = 8.0  # of a token that starts or ends an answer, in training


@dataclass(frozen=True)
class Recipe:
    """Training of one set: tokens of a row, passes over the prompts, prompts in a step, learning rate."""

    sequence: int
    epochs: int
    batch: int = 16
    rate: float = 1.5e-4


SETS: Mapping[str, Recipe] = {"product": Recipe(128, 60), "fund_manager": Recipe(384, 60, batch=8)}


def measured(name: str, data: Path, work: Path, recipe: Recipe) -> dict[str, Any]:
    """The content of SET.json: the recipe, and of every engine the metrics of both sides."""
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    train, scored = data / f"{name}_train.txt", folder / "scored.txt"
    parts = [path for path in (data / f"{name}_{split}.txt" for split in ("dev", "test")) if path.is_file()]
    folder.mkdir(parents=True)
    scored.write_text("".join(path.read_text(encoding="utf-8") for path in parts), encoding="utf-8")
    # An encoder over the characters of the training prompts, trained on these
    rows = [json.loads(line) for line in train.read_text(encoding="utf-8").splitlines()]
    encoder = write_encoder([row["content"] + row["prompt"] for row in rows], folder / "encoder")
    started = time.perf_counter()
    checkpoint = _trained(encoder, train, folder / "model", recipe)
    seconds = round(time.perf_counter() - started, 1)
    return {
        "set": name,
        "training": {"prompts": len(rows), "epochs": recipe.epochs, "seconds": seconds, "layers": LAYERS},
        "sequence": recipe.sequence,
        "scored_on": [path.name for path in parts],
        "engines": {target: _engine(checkpoint, train, scored, target, recipe) for target in CPU_TARGETS},
    }


def _trained(encoder: Path, train: Path, folder: Path, recipe: Recipe) -> Path:
    """The encoder of a folder fine-tuned on a prompt file, written to `folder`."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits
    from transformers import AutoTokenizer, Trainer, TrainingArguments, set_seed

    from qdq.loading.model import quiet_transformers
    from qdq.loading.uie import UIE
    from qdq.uie.rows import LABELS, MarksCollator, prompt_rows

    class Weighted(Trainer):
        """Trains with starts and ends counted more: one token of thirty is one, and a new encoder would give up."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """Mean binary cross-entropy over real tokens, marks weighted."""
            output = model(**inputs)
            sides = zip((output.start_prob, output.end_prob), (inputs[name] for name in LABELS), strict=True)
            mask = inputs["attention_mask"].bool()
            losses = [
                binary_cross_entropy_with_logits(
                    torch.logit(found[mask], 1e-6), marks[mask], pos_weight=torch.tensor(MARK_WEIGHT)
                )
                for found, marks in sides
            ]
            loss = torch.stack(losses).mean()
            return (loss, output) if return_outputs else loss

    # The model and its rows
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    with quiet_transformers():
        model = UIE.from_pretrained(encoder)
        trainer = Weighted(
            model=model,
            args=TrainingArguments(
                output_dir=str(folder / "training"),
                num_train_epochs=recipe.epochs,
                per_device_train_batch_size=recipe.batch,
                learning_rate=recipe.rate,
                warmup_steps=20,
                label_names=list(LABELS),
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                logging_steps=10,
            ),
            train_dataset=prompt_rows(train, tokenizer, inputs, recipe.sequence),
            data_collator=MarksCollator(tokenizer),
        )
        trainer.train()
        model.save_pretrained(folder)
    for file in encoder.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copyfile(file, folder / file.name)
    return folder


def _engine(checkpoint: Path, train: Path, scored: Path, target: str, recipe: Recipe) -> dict[str, Any]:
    """Metrics, agreement and INT8 share of one target's engine."""
    from qdq.base.screen import Screen
    from qdq.pipeline.compile import compile_model
    from qdq.pipeline.options import CompileOptions

    out = checkpoint.parent / "work"
    options = CompileOptions(
        model=str(checkpoint),
        calibration=str(train),
        eval_data=str(scored),
        target=target,
        sequence=recipe.sequence,
        batch=8,
        out=str(out),
        bench_seconds=5.0,
    )
    compile_model(options, Screen())
    accuracy, build = (read_json(out / target / f"{name}.json") for name in ("accuracy", "build"))
    kept = ("samples", "metrics", "agreement", "agreement_of", "cosine_mean")
    return {**{key: accuracy[key] for key in kept}, "int8": build["int8"]}


def main() -> None:
    """Measure the sets that are named, all without any."""
    options = parser("uie", __doc__)
    options.add_argument("sets", nargs="*", help=f"of {', '.join(SETS)} (default: all)")
    options.add_argument("--epochs", type=int, help="passes over the prompts (default: the set's)")
    add_places(options, "uie")
    given = options.parse_args()
    for name in given.sets or SETS:
        recipe = replace(SETS[name], epochs=given.epochs or SETS[name].epochs)
        write_json(FOLDER / f"{name}.json", measured(name, given.shared / "data" / "uie", given.work, recipe))
    pages.main()


if __name__ == "__main__":
    sys.exit(exit_code(main))
