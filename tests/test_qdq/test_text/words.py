"""A BERT tokenizer with a handful of words, for tests of what texts become."""

from __future__ import annotations

from transformers import BertTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [c for c in map(chr, range(33, 127)) if not c.isupper()]
WORDS = ["the", "cat", "sat", "on", "mat", "dog", "ran", "far", "away"]
ALL = ("input_ids", "attention_mask", "token_type_ids")


def bert(extra: list[str]) -> BertTokenizer:
    """Of the special tokens, WORDS and `extra`."""
    vocabulary = dict.fromkeys([*SPECIAL, *WORDS, *extra])
    return BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})
