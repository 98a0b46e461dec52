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

import squad
import torch
from command_line import parse
from compress_seq_cls import trains
from task_data import read

from qdq.compress import CompressionTrainer
from qdq.errors import ConfigError
from qdq.model import load_model

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
    words = list(sys.argv[1:] if arguments is None else arguments)
    recipe: dict[str, Any] = {"max_seq_length": 384}
    if "--recipe" in words:
        place = words.index("--recipe")
        name = words[place + 1] if place + 1 < len(words) else ""
        if name not in RECIPES:
            raise ConfigError(f"--recipe: unknown recipe '{name}' (valid: {', '.join(RECIPES)})")
        recipe, words = RECIPES[name], words[:place] + words[place + 2 :]
    data, args = parse(recipe, words)
    loaded = load_model(data.model_name_or_path, task="question-answering")
    longest = min(data.max_seq_length, loaded.max_sequence)
    stride = min(data.doc_stride, longest // 2)
    dev = read(data.dataset, "dev", "answers")[: data.max_eval_samples or None]
    train = read(data.dataset, "train", "answers")[: data.max_train_samples or None] if trains(args) else []
    cut = squad.windows(loaded.tokenizer, dev, longest, stride)

    def evaluate(model: Any, loader: Any) -> float:
        return answered(model, loader, cut, dev, data.max_answer_length)["f1"] / 100

    samples = [squad.labelled(w, train[w.question]) for w in squad.windows(loaded.tokenizer, train, longest, stride)]
    trainer = CompressionTrainer(
        model=loaded.model,
        args=args,
        train_dataset=samples or None,
        eval_dataset=[squad.labelled(window, dev[window.question]) for window in cut],
        tokenizer=loaded.tokenizer,
    )
    return trainer.compress(custom_evaluate=evaluate)


def answered(
    model: Any, loader: Any, cut: Sequence[squad.Window], rows: Sequence[Any], longest: int
) -> dict[str, float]:
    """Exact match and F1 of the best answer over each question's windows."""
    found: dict[int, tuple[float, str]] = {}
    device = next(model.parameters()).device
    done = 0
    with torch.no_grad():
        for batch in loader:
            inputs = {k: v.to(device) for k, v in batch.items() if not k.endswith("_positions")}
            output = model(**inputs)
            starts, ends = output.start_logits.float().cpu().numpy(), output.end_logits.float().cpu().numpy()
            for start, end in zip(starts, ends, strict=True):
                window = cut[done]
                score, text, _ = squad.best_answer(start, end, window, rows[window.question]["context"], longest)
                found[window.question] = max(found.get(window.question, (float("-inf"), "")), (score, text))
                done += 1
    return squad.scores([found[number][1] for number in range(len(rows))], rows)


if __name__ == "__main__":
    main()
