"""Find entities in raw text with a compiled engine; one JSON line per text.

python examples/infer_token_cls.py --engine build/my-ner --text "Ada Lovelace was born in London."
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from engine_files import arguments, open_engine, texts_of


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
            tags = [engine.label(int(index)) for index in best[row]]
            found.append({"text": text, "entities": entities(text, tags, places, tokens.word_ids(row))})
    for answer in found:
        sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
    return found


def entities(text: str, tags: list[str], places: list[Any], words: list[int | None]) -> list[dict[str, Any]]:
    """Entities from B-/I- tags. A word has the tag of its first token; an I- without its B- starts an entity."""
    found: list[dict[str, Any]] = []
    last: int | None = None
    kind = ""
    for tag, place, word in zip(tags, places, words, strict=True):
        if place is None or word is None:
            continue
        if word == last:  # the rest of a word belongs to what its first token said
            if kind:
                found[-1]["end"] = place[1]
            continue
        last = word
        begins, _, name = tag.partition("-")
        if not name:
            kind = ""
        elif begins == "I" and kind == name:
            found[-1]["end"] = place[1]
        else:
            found.append({"label": name, "start": place[0], "end": place[1]})
            kind = name
    return [{**one, "text": text[one["start"] : one["end"]]} for one in found]


if __name__ == "__main__":
    main()
