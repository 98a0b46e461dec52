"""Find entities in raw text with a compiled engine; one JSON line per text.

python examples/infer_token_cls.py --engine build/my-ner --text "Ada Lovelace was born in London."
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from engine_files import arguments, open_engine, texts_of

from qdq.base.edge import run_script
from qdq.tasks import schemes
from qdq.tasks.schemes import has_entities


def main(words: list[str] | None = None) -> list[dict[str, Any]]:
    """Answer the command line; returns what is printed."""
    parser = arguments(__doc__)
    parser.add_argument("--text", nargs="+")
    parser.add_argument("--file", type=Path, help="one text per line")
    options = parser.parse_args(words)
    texts = texts_of(options.text, options.file)
    # Run batches of real length: the engine takes any shape up to the one it was built for.
    engine = open_engine(options.engine, options.target, options.threads)
    found = []
    for start in range(0, len(texts), options.batch_size):
        batch = texts[start : start + options.batch_size]
        tokens = engine.tokenizer(
            batch, truncation=True, max_length=options.max_seq_length, padding=True, return_offsets_mapping=True
        )
        feed = {name: np.array(tokens[name], np.int64) for name in engine.inputs}
        best = engine.run(feed)["logits"].argmax(-1)
        for row, text in enumerate(batch):
            # Special tokens and padding have no place in the text.
            places = [
                place if side is not None else None
                for place, side in zip(tokens["offset_mapping"][row], tokens.sequence_ids(row), strict=True)
            ]
            names = tuple(engine.labels.values())
            tags = [engine.label(int(index)) for index in best[row]]
            found.append({"text": text, "entities": entities(text, tags, places, tokens.word_ids(row), names)})
    for answer in found:
        sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
    return found


def entities(
    text: str, tags: list[str], places: list[Any], words: list[int | None], names: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Entities from tags of any scheme (BIO, BIOES, BILOU, IO). A word has the tag of its first token.

    The words of a model whose classes, `names`, are no tags of entities (parts of speech) come one by one.
    """
    found: dict[int, tuple[str, list[int]]] = {}  # word -> its tag, and first and last character
    for tag, place, word in zip(tags, places, words, strict=True):
        if place is not None and word is not None:
            first = found.setdefault(word, (tag, list(place)))
            first[1][1] = place[1]
    of_words = [tag for tag, _ in found.values()]
    spans = [span for _, span in found.values()]
    if has_entities(names or of_words):
        parts = schemes.entities(of_words)
    else:
        parts = [(tag, number, number) for number, tag in enumerate(of_words)]
    answers = [{"label": kind, "start": spans[first][0], "end": spans[last][1]} for kind, first, last in parts]
    return [{**one, "text": text[int(one["start"]) : int(one["end"])]} for one in answers]


if __name__ == "__main__":
    sys.exit(run_script(main))
