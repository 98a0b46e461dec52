"""Classify or score raw text with a compiled engine; one JSON line per text.

python examples/infer_seq_cls.py --engine build/my-bert --text "a first text" "another one"
python examples/infer_seq_cls.py --engine build/my-mrpc --text "one sentence" --pair "its paraphrase"
"""

import json
import sys
from pathlib import Path
from typing import Any

from engine_files import Engine, arguments, open_engine, texts_of

from qdq.base.edge import run_script
from qdq.errors import ConfigError
from qdq.tasks.problems import label_set
from qdq.text.data import Record
from qdq.text.encode import encode_batch


def main(words: list[str] | None = None) -> list[dict[str, Any]]:
    """Answer the command line; returns what is printed."""
    parser = arguments(__doc__)
    parser.add_argument("--text", nargs="+")
    parser.add_argument("--pair", nargs="+", help="second texts of a pair task, as many as --text")
    parser.add_argument("--file", type=Path, help="one text per line; a tab separates the two of a pair")
    options = parser.parse_args(words)
    if options.pair and len(options.pair) != len(options.text or []):
        raise ConfigError(f"--pair: {len(options.pair)} for {len(options.text or [])} --text; give as many of both")
    # Records from the flags or from the lines of a file.
    pairs = [tuple(line.split("\t", 1)) for line in texts_of(options.text, options.file)]
    records = [Record(pair[0], pair[1] if len(pair) > 1 else None) for pair in pairs]
    if options.pair:
        records = [Record(text, pair) for text, pair in zip(options.text, options.pair, strict=True)]
    # Run batches of real length: the engine takes any shape up to the one it was built for.
    engine = open_engine(options.engine, options.target, options.threads)
    found = []
    for start in range(0, len(records), options.batch_size):
        batch = records[start : start + options.batch_size]
        feed = encode_batch(engine.tokenizer, batch, engine.inputs, options.max_seq_length, pad_to="longest")
        values = engine.head.read(engine.run(feed)["logits"])
        for record, row in zip(batch, values, strict=True):
            texts = {"text": record.text} | ({"pair": record.pair} if record.pair else {})
            found.append({**texts, **answered(engine, row)})
    for answer in found:
        sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
    return found


def answered(engine: Engine, values: Any) -> dict[str, Any]:
    """The best class with its probability, all classes above the threshold with all probabilities, or the score."""
    if engine.head.kind == "multi-label":
        return label_set(values, [engine.label(index) for index in range(len(values))], engine.head)
    if engine.head.kind == "scores":
        scores = [round(float(value), 6) for value in values]
        return {"score": scores[0] if len(scores) == 1 else scores}
    best = int(values.argmax())
    return {"label": engine.label(best), "score": round(float(values[best]), 6)}


if __name__ == "__main__":
    sys.exit(run_script(main))
