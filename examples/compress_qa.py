"""Compress a fine-tuned extractive question-answering model.

    python examples/compress_qa.py --dataset "clue cmrc2018" --model_name_or_path best_models/CMRC2018 \\
        --output_dir out --max_seq_length 512 --learning_rate 0.00003 --num_train_epochs 8 \\
        --per_device_train_batch_size 24 --per_device_eval_batch_size 24 --max_answer_length 50

QDQBERT's SQuAD recipe, all twenty points a layer calibrated (percentile 99.99 over 128 windows) and then fine-tuned:

    python examples/compress_qa.py --recipe qdqbert --dataset squad --model_name_or_path my-squad-bert --output_dir out
    qdq compile --model out/BEST --target tensorrt          # export, and the engine where there is a GPU
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from command_line import parse, typed
from compress_seq_cls import trains
from task_data import read

from qdq.base.config import choice
from qdq.base.edge import run_script
from qdq.compress import CompressionTrainer
from qdq.loading.model import load_model
from qdq.tasks.answers import detect_scoring
from qdq.tasks.extraction import Extraction, Window, training_row, windows
from qdq.text.data import Record

# transformers/examples/research_projects/quantization-qdqbert: calibrate, fine-tune with fixed ranges, export.
RECIPES = {
    "qdqbert": {
        "strategy": "qat",
        "placement": "qdqbert",
        "algo_list": ["hist"],
        "batch_size_list": [16],
        "batch_num_list": [8],
        "use_pact": False,
        "freeze_observers": 0.0,
        "learning_rate": 4e-5,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 12,
        "max_seq_length": 128,
        "doc_stride": 32,
    }
}


def main(arguments: Sequence[str] | None = None) -> Any:
    """Compress as the flags say; returns the CompressionResult, whose metric is SQuAD's F1."""
    # A recipe is a set of defaults, so its flag is taken out before the others are parsed.
    words = list(sys.argv[1:] if arguments is None else arguments)
    recipe: dict[str, Any] = {"max_seq_length": 384}
    if any(word.partition("=")[0] == "--recipe" for word in words):
        name = typed("recipe", words)
        recipe = RECIPES[choice(name, RECIPES, "--recipe")]
        place = next(n for n, word in enumerate(words) if word.partition("=")[0] == "--recipe")
        words = words[:place] + words[place + (1 if "=" in words[place] else 2) :]
    data, args = parse(recipe, words, __doc__)
    loaded = load_model(data.model_name_or_path, task="question-answering")
    # Contexts become overlapping windows; the training split is read only when something is trained.
    longest = min(data.max_seq_length, loaded.max_sequence)
    stride = min(data.doc_stride, longest // 2)
    types = "token_type_ids" in loaded.inputs

    def cut(split: str) -> tuple[list[Record], list[Window]]:
        found = read(data.dataset, split, data)
        return found, windows(loaded.tokenizer, found, longest, stride, types)

    dev, dev_windows = cut("dev")
    train, train_windows = cut("train") if trains(args) else ([], [])
    # The score is of answers, not of windows, so it is computed here and handed to `compress`.
    scoring = detect_scoring([record.pair or "" for record in dev])
    problem = Extraction(dev, dev_windows, scoring, longest=data.max_answer_length)
    trainer = CompressionTrainer(
        model=loaded.model,
        args=args,
        train_dataset=[training_row(part, train[part.sample], loaded.inputs) for part in train_windows] or None,
        eval_dataset=[training_row(part, dev[part.sample], loaded.inputs) for part in dev_windows],
        tokenizer=loaded.tokenizer,
    )
    return trainer.compress(custom_evaluate=lambda model, loader: answered(model, loader, problem)["f1"])


def answered(model: Any, loader: Any, problem: Extraction) -> dict[str, float]:
    """exact_match and f1 of the best answer over each question's windows, by the official scorer."""
    kept = []
    device = next(model.parameters()).device
    with torch.no_grad():
        for batch in loader:
            inputs = {k: v.to(device) for k, v in batch.items() if not k.endswith("_positions")}
            output = model(**inputs)
            logits = {name: output[name].double().cpu().numpy() for name in ("start_logits", "end_logits")}
            for row, mask in enumerate(batch["attention_mask"].bool().numpy()):
                kept.append(problem.keep(len(kept), {name: values[row][mask] for name, values in logits.items()}))
    return {name: metric() for name, metric in problem.metrics(kept).items()}


if __name__ == "__main__":
    sys.exit(run_script(main))
