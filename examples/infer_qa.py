"""Answer questions about a context with a compiled engine; one JSON line per question.

    python examples/infer_qa.py --engine build/my-squad --context "The Rhine rises in Switzerland." \\
        --question "Where does the Rhine rise?"
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import squad
from engine_files import arguments, open_engine

from qdq.errors import DataError


def main(words: list[str] | None = None) -> list[dict[str, Any]]:
    """Answer the command line; returns what is printed."""
    parser = arguments(__doc__)
    parser.add_argument("--question", nargs="+", required=True)
    parser.add_argument("--context", help="the text that holds the answers")
    parser.add_argument("--context_file", type=Path)
    parser.add_argument("--max_answer_length", type=int, default=30, help="tokens")
    options = parser.parse_args(words)
    context = options.context_file.read_text(encoding="utf-8") if options.context_file else options.context
    if not context or not context.strip():
        raise DataError("no context; give --context TEXT or --context_file FILE")
    engine = open_engine(options.engine, options.target, options.threads)
    rows = [{"question": question, "context": context} for question in options.question]
    longest = options.max_seq_length
    cut = squad.windows(engine.tokenizer, rows, longest, longest // 3)
    best: dict[int, tuple[float, str, tuple[int, int]]] = {}
    for start in range(0, len(cut), options.batch_size):
        batch = cut[start : start + options.batch_size]
        outputs = engine.run(padded(batch, engine.inputs, engine.tokenizer))
        for row, window in enumerate(batch):
            logits = outputs["start_logits"][row], outputs["end_logits"][row]
            answer = squad.best_answer(*logits, window, context, options.max_answer_length)
            best[window.question] = max(best.get(window.question, answer), answer)
    found = []
    for number, row in enumerate(rows):
        score, text, (first, last) = best[number]
        found.append(
            {"question": row["question"], "answer": text, "start": first, "end": last, "score": round(score, 4)}
        )
    for answer_row in found:
        sys.stdout.write(json.dumps(answer_row, ensure_ascii=False) + "\n")
    return found


def padded(batch: list[squad.Window], inputs: tuple[str, ...], tokenizer: Any) -> dict[str, Any]:
    """int64 [B, S] arrays of the windows' inputs."""
    length = max(len(window.inputs["input_ids"]) for window in batch)
    fill = {"input_ids": tokenizer.pad_token_id or 0}
    return {
        name: np.array([row + [fill.get(name, 0)] * (length - len(row)) for row in (w.inputs[name] for w in batch)])
        for name in inputs
    }


if __name__ == "__main__":
    main()
