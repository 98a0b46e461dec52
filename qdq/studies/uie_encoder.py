"""A small encoder over single characters: what the UIE study starts from, since no Chinese encoder is at hand.

It is the first layers of the bundled all-MiniLM-L6-v2 with a table of other tokens: the characters of given texts. They
keep MiniLM's vectors where it knows them, and get random ones of the same spread where it does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qdq.base.artifacts import write_json, write_text

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LAYERS = 2


def characters_of(texts: Iterable[str]) -> list[str]:
    """Word pieces that are single characters: every character of the texts, and Latin ones inside words."""
    found = sorted({character for text in texts for character in text.lower() if not character.isspace()})
    return [*SPECIAL, *found, *(f"##{one}" for one in found if one.isalnum() and one.isascii())]


def write_encoder(texts: Iterable[str], folder: Path, seed: int = 0) -> Path:
    """Write the encoder to `folder` as a BertModel with its tokenizer; returns the folder."""
    import torch
    from transformers import AutoTokenizer, BertModel

    from qdq.loading.model import quiet_transformers
    from qdq.loading.source import resolve

    source, _ = resolve(None)
    with quiet_transformers():
        model = BertModel.from_pretrained(source, num_hidden_layers=LAYERS)
        vocabulary = AutoTokenizer.from_pretrained(source).get_vocab()
    # The table of characters
    words, known = characters_of(texts), model.embeddings.word_embeddings.weight.detach()
    generator = torch.Generator().manual_seed(seed)
    table = known.mean(0) + known.std(0) * torch.randn((len(words), known.shape[1]), generator=generator)
    rows = [(place, vocabulary[word]) for place, word in enumerate(words) if word in vocabulary]
    for place, row in rows:
        table[place] = known[row]
    model.resize_token_embeddings(len(words), mean_resizing=False)
    model.embeddings.word_embeddings.weight.data.copy_(table)
    # Files
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        model.save_pretrained(folder)
    write_text(folder / "vocab.txt", "\n".join(words) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    write_json(folder / "tokenizer_config.json", settings)
    return folder
