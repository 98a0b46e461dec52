"""Answer questions about a context with a compiled engine; one JSON line per question.

    python examples/infer_qa.py --engine build/my-squad --context "The Rhine rises in Switzerland." \\
        --question "Where does the Rhine rise?"
"""

import json
import sys
from pathlib import Path
from typing import Any

from engine_files import arguments, open_engine

from qdq.base.edge import run_script
from qdq.errors import DataError
from qdq.tasks.extraction import Span, Window, best_span, windows
from qdq.text.data import Record
from qdq.text.encode import pad


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
    # Run batches of real length: the engine takes any shape up to the one it was built for.
    engine = open_engine(options.engine, options.target, options.threads)
    records = [Record(question, context) for question in options.question]
    longest = options.max_seq_length
    cut = windows(engine.tokenizer, records, longest, longest // 3, "token_type_ids" in engine.inputs)
    best: dict[int, Span] = {}
    for start in range(0, len(cut), options.batch_size):
        batch = cut[start : start + options.batch_size]
        feed = pad(engine.tokenizer, [part.tokens for part in batch], engine.inputs, max(map(size, batch)))
        outputs = engine.run(feed)
        for row, part in enumerate(batch):
            logits = {name: outputs[name][row][: size(part)] for name in ("start_logits", "end_logits")}
            span = best_span(part, logits, options.max_answer_length)
            best[part.sample] = max(best.get(part.sample, span), span)
    # The best span of all windows of a question is its answer.
    found = []
    for number, record in enumerate(records):
        score, first, last, _ = best[number]
        answer = {"answer": context[first:last], "start": first, "end": last, "score": round(score, 4)}
        found.append({"question": record.text, **answer})
    for answer_row in found:
        sys.stdout.write(json.dumps(answer_row, ensure_ascii=False) + "\n")
    return found


def size(window: Window) -> int:
    """Number of tokens of a window."""
    return len(window.offsets)


if __name__ == "__main__":
    sys.exit(run_script(main))
