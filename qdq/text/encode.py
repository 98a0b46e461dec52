"""Turn text records into model feeds: int64 arrays with the tokenizer's own special tokens, padding and truncation.

Records are tokenized one by one and padded here, so that texts and text pairs may be mixed and the arrays do not
depend on how records are batched.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qdq.base.config import nearest
from qdq.errors import ConfigError, DataError
from qdq.loading.pooling import PROMPT
from qdq.text.data import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Feed: TypeAlias = dict[str, NDArray[np.int64]]
PadTo = Literal["max_length", "longest"]
TokenRow: TypeAlias = Mapping[str, list[int]]  # one tokenized text (pair): input name -> ids, not padded
# Where "clearly not English" begins; bert-base-chinese has a CJK share of 35 %, multilingual BERT of about 7 %.
_UNKNOWN_SHARE, _TOKENS_PER_WORD, _CJK_SHARE, _ENGLISH_SHARE = 0.20, 3.0, 0.15, 0.30
_ENGLISH_WORD = re.compile(r"[\u2581\u0120]?[a-z]{3,}")  # with the word-start marks of SentencePiece and byte-level BPE
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def encode_batch(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    inputs: Sequence[str],
    sequence: int,
    pad_to: PadTo = "max_length",
    choices: int | None = None,
) -> Feed:
    """Feeds of shape [len(records), S] int64, one array for each name in `inputs`.

    With `choices` [len(records), choices, S] for multiple choice; see `choice_records` for the choices. S is `sequence`
    for "max_length", else the longest record's length; longer records are truncated to `sequence` (of a pair, the
    longer text first). `token_type_ids` are zeros when the tokenizer knows none.
    Raises ConfigError for an input name no tokenizer supplies or a `sequence` without room for text, DataError for no
    records or a tokenizer without padding token.
    """
    if not records:
        raise DataError("there are no records to tokenize; read at least one text")
    texts = itertools.chain.from_iterable(samples_of(records, choices))
    rows = [tokenize(tokenizer, text, inputs, sequence) for text in texts]
    feed = pad(tokenizer, rows, inputs, sequence if pad_to == "max_length" else longest(rows))
    return shaped(feed, len(records), choices)


def samples_of(records: Sequence[Record], choices: int | None) -> list[list[Record]]:
    """The texts of every sample: the record itself, or its `choice_records`."""
    return [[record] for record in records] if choices is None else choice_records(records, choices)


def choice_records(records: Sequence[Record], choices: int) -> list[list[Record]]:
    """`choices` records per record: its own (text, pair) first, then its text with the following records' pairs.

    The distractors serve calibration and benchmarks, where any plausible text does; they are no test questions.
    A record without a pair takes the following records' texts, and the list is read as a circle.
    """
    endings = [record.pair or record.text for record in records]
    first = [0 if record.pair else 1 for record in records]
    return [
        [Record(record.text, endings[(i + first[i] + k) % len(records)]) for k in range(choices)]
        for i, record in enumerate(records)
    ]


def calibration_batches(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    inputs: Sequence[str],
    sequence: int,
    micro_batch: int = 8,
    choices: int | None = None,
) -> Iterator[Feed]:
    """Feeds of up to `micro_batch` records, [b, S] or [b, choices, S], each padded to its longest record only.

    Records are sorted by token length (stable), so the batches do not depend on the batch size the user runs
    with, and little is padding; the last one holds the remaining records.
    """
    if micro_batch < 1:
        raise ConfigError(f"a calibration batch cannot hold {micro_batch} records; give at least one")
    rows = [[tokenize(tokenizer, r, inputs, sequence) for r in sample] for sample in samples_of(records, choices)]
    for feed, _ in batched(tokenizer, rows, inputs, micro_batch, choices is not None):
        yield feed


def batched(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[TokenRow]],
    inputs: Sequence[str],
    batch: int,
    choices: bool = False,
) -> Iterator[tuple[Feed, tuple[int, ...]]]:
    """Yield feeds of `batch` rows, sorted by length so that little is padding, each with the numbers of its rows.

    A row is one token sequence, or several (`choices`); a feed is padded to its longest one.
    """
    by_length = sorted(range(len(rows)), key=lambda index: longest(rows[index]))
    for start in range(0, len(rows), batch):
        chosen = tuple(by_length[start : start + batch])
        flat = [row for index in chosen for row in rows[index]]
        feed = pad(tokenizer, flat, inputs, longest(flat))
        yield shaped(feed, len(chosen), len(rows[0]) if choices else None), chosen


def tokenize(tokenizer: PreTrainedTokenizerBase, record: Record, inputs: Sequence[str], sequence: int) -> TokenRow:
    """One record's ids per input, truncated to `sequence` and to what the tokenizer takes, not padded."""
    sequence = min(sequence, tokenizer.model_max_length)
    # A wrong input name, and a sequence the tokenizer would silently not truncate to
    for name in inputs:
        if name not in _INPUTS:
            raise ConfigError(f"model input '{name}' cannot be made from text; {nearest(name, _INPUTS)}")
    texts = 1 if record.pair is None else 2
    special = tokenizer.num_special_tokens_to_add(pair=texts == 2)
    if sequence < special + texts:
        raise ConfigError(
            f"sequence {sequence} leaves no room for {'a text pair' if texts == 2 else 'a text'} beside {special} "
            f"special tokens; give --sequence {special + texts} or more"
        )
    typed = has_types(tokenizer, inputs)
    encoding = tokenizer(
        getattr(tokenizer, PROMPT, "") + record.text,
        record.pair,
        truncation=True,
        max_length=sequence,
        return_attention_mask=False,
        return_token_type_ids=typed,
        verbose=False,
    )
    # Nothing is padded here, so every token counts
    ids: list[int] = encoding["input_ids"]
    types: list[int] = encoding["token_type_ids"] if typed else [0] * len(ids)
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": types}


def has_types(tokenizer: PreTrainedTokenizerBase, inputs: Sequence[str]) -> bool:
    """True when the model reads token types and the tokenizer makes them."""
    return "token_type_ids" in inputs and "token_type_ids" in tokenizer.model_input_names


def longest(rows: Sequence[TokenRow]) -> int:
    """Tokens of the longest row."""
    return max(len(row["input_ids"]) for row in rows)


def pad(tokenizer: PreTrainedTokenizerBase, rows: Sequence[TokenRow], inputs: Sequence[str], width: int) -> Feed:
    """Arrays [len(rows), width] on the side and with the ids the tokenizer was trained to pad with."""
    if tokenizer.pad_token_id is None:
        raise DataError("the tokenizer has no padding token; set pad_token in its tokenizer_config.json")
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    feed = {}
    for name in inputs:
        array = np.full((len(rows), width), fill.get(name, 0), dtype=np.int64)
        for target, row in zip(array, rows, strict=True):
            ids = row[name]
            target[slice(width - len(ids), None) if tokenizer.padding_side == "left" else slice(len(ids))] = ids
        feed[name] = array
    return feed


def shaped(feed: Feed, batch: int, choices: int | None) -> Feed:
    """The arrays [rows, S] as [batch, choices, S]; as they are without choices."""
    if choices is None:
        return feed
    return {name: array.reshape(batch, choices, -1) for name, array in feed.items()}


def check_language(tokenizer: PreTrainedTokenizerBase, records: Sequence[Record]) -> str | None:
    """A warning when the tokenizer is clearly not English, for use with the bundled English text; None when it is fine.

    Clearly not English: over 20 % unknown tokens, over 3.0 tokens per word, or a vocabulary of CJK characters with few
    lowercase ASCII words. English WordPiece and BPE models need 1.1 to 1.6 tokens per word of ordinary text.
    """
    if (reason := _foreign_vocabulary(tokenizer.get_vocab()) or _poor_split(tokenizer, records)) is None:
        return None
    return (
        f"the model's tokenizer does not look English ({reason}), but the bundled calibration text is; "
        "bring text in the model's language: --calibration FILE (CALIB=FILE)"
    )


def _poor_split(tokenizer: PreTrainedTokenizerBase, records: Sequence[Record]) -> str | None:
    words = tokens = unknown = 0
    for record in records:
        ids = tokenizer(record.text, add_special_tokens=False, verbose=False)["input_ids"]
        words += len(record.text.split())
        tokens += len(ids)
        unknown += ids.count(tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else 0
    if tokens and unknown / tokens > _UNKNOWN_SHARE:
        return f"{unknown / tokens:.0%} of the English tokens are unknown to it"
    if words and tokens / words > _TOKENS_PER_WORD:
        return f"{tokens / words:.1f} tokens per English word"
    return None


def _foreign_vocabulary(vocabulary: Mapping[str, int]) -> str | None:
    """Chinese and Japanese character models split English into known pieces, so only the vocabulary gives them away."""
    cjk = sum(len(token) == 1 and "\u3400" <= token <= "\u9fff" for token in vocabulary) / max(len(vocabulary), 1)
    english = sum(map(bool, map(_ENGLISH_WORD.fullmatch, vocabulary))) / max(len(vocabulary), 1)
    if cjk > _CJK_SHARE and english < _ENGLISH_SHARE:
        return f"{cjk:.0%} of its vocabulary are single Chinese or Japanese characters"
    return None
