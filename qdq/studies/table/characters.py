"""An encoder for Chinese to start a fine-tuning from, where no Chinese checkpoint is at hand.

    python -m qdq.studies.table.characters OUT --model MODEL --layers 3 TRAIN...

The layers are the first ones of `MODEL`, an English one; the vocabulary is of single characters, built from the
training files. Characters that MODEL's vocabulary has keep their embeddings, the others get random ones of the same
spread. What such a model learns from a few thousand sentences is far below a model that was trained on Chinese; the
speed of a layer is the same.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qdq.studies.study import exit_code, parser
from qdq.text.data import TextSource, read_records

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SEED = 0
TWICE = 2  # occurrences from which a character has an embedding of its own
LONGEST = 512  # tokens; MiniLM's positions


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the encoder as the command line says."""
    command = parser("table.characters", __doc__)
    command.add_argument("out", type=Path, help="folder of the new encoder")
    command.add_argument("train", nargs="+", help="training files, as `qdq compile --calibration` takes them")
    command.add_argument("--model", required=True, help="checkpoint whose layers are taken")
    command.add_argument("--layers", type=int, help="how many of them (default: all)")
    options = command.parse_args(arguments)
    write_encoder(options.out, options.model, vocabulary(texts(options.train)), options.layers)


def texts(paths: Iterable[str]) -> Iterable[str]:
    """Every text of the files."""
    for path in paths:
        for record in read_records(TextSource(path))[0]:
            yield record.text
            yield record.pair or ""


def vocabulary(lines: Iterable[str]) -> list[str]:
    """Special tokens, then every lower-case character seen twice, as first of a word and as its continuation.

    Chinese characters are words by themselves and have no continuation.
    """
    counts = Counter(character for line in lines for character in line.lower() if not character.isspace())
    kept = sorted(character for character, count in counts.items() if count >= TWICE)
    continued = [f"##{character}" for character in kept if character.isalnum() and not _is_word(character)]
    return [*SPECIAL, *kept, *continued]


def _is_word(character: str) -> bool:
    return "\u3400" <= character <= "\u9fff"


def write_encoder(folder: Path, model: str, tokens: Sequence[str], layers: int | None = None) -> Path:
    """Write the first `layers` of `model` with embeddings for `tokens`, and the tokenizer. Raises ModelError."""
    import torch
    from transformers import BertTokenizer

    from qdq.loading.model import load_model

    # The table of embeddings: rows of tokens that the model knows, and random ones with the same mean and spread.
    loaded = load_model(model)
    known = loaded.tokenizer.get_vocab()
    encoder: Any = loaded.model
    old = encoder.get_input_embeddings().weight.detach()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(SEED)
        table = torch.normal(old.mean(0).expand(len(tokens), -1), old.std(0).expand(len(tokens), -1))
        for row, token in enumerate(tokens):
            if token in known:
                table[row] = old[known[token]]
        encoder.resize_token_embeddings(len(tokens), mean_resizing=False)
        encoder.get_input_embeddings().weight.copy_(table)
    # Its layers, from the bottom
    if layers is not None:
        stack = encoder.base_model.encoder
        stack.layer = stack.layer[:layers]
        encoder.config.num_hidden_layers = len(stack.layer)
    encoder.config.pad_token_id = tokens.index(SPECIAL[0])
    encoder.save_pretrained(folder)
    names = {token: number for number, token in enumerate(tokens)}
    BertTokenizer(vocab=names, do_lower_case=True, model_max_length=LONGEST).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    sys.exit(exit_code(main))
