"""The tokenizer of a checkpoint, and its ids, types and lengths against the model's tables."""

from __future__ import annotations

import logging as messages
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from qdq.errors import DataError, ModelError
from qdq.inject.families import family_of
from qdq.inject.relative import relative_kind
from qdq.loading.files import require_named

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = messages.getLogger(__name__)

FAILURES = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError)
# Packages that transformers' tokenizers ask for, by the words of its errors
PACKAGES = re.compile(
    r"\b(fugashi|ipadic|unidic_lite|unidic|sudachipy|rhoknp|jieba|sentencepiece|tiktoken|protobuf|mistral[-_]common|"
    r"sacremoses|pythainlp|vncorenlp|emoji|blobfile)\b",
    re.IGNORECASE,
)
RESIZE = "model.resize_token_embeddings(len(tokenizer)) and training make rows for them"


def load_tokenizer(folder: Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """Load the folder's tokenizer, in its fast form where transformers can make one.

    Raises ModelError for a missing or damaged one, naming the package where it needs one that is not installed.
    """
    from transformers import AutoTokenizer

    require_named(
        sorted(path for pattern in ("*.json", "*.txt", "*.model", "*.codes") for path in folder.glob(pattern))
    )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=False
        )
    except ImportError as error:
        raise ModelError(f"{folder}: {_needs(error)}") from error
    except Exception as error:  # the tokenizers package raises it as it is for what it cannot parse
        if PACKAGES.search(str(error)):
            raise ModelError(f"{folder}: {_needs(error)}") from error
        raise ModelError(
            f"{folder}: its tokenizer cannot be loaded ({one_line(error)}); copy tokenizer.json again"
        ) from error
    files = sorted(set(tokenizer.vocab_files_names.values()))
    if not any((folder / file).is_file() for file in files):  # transformers makes an empty tokenizer then
        raise ModelError(f"{folder}: has no tokenizer (none of {', '.join(files)}); copy its tokenizer files there")
    return tokenizer


def _needs(error: Exception) -> str:
    named = list(dict.fromkeys(name.lower() for name in PACKAGES.findall(str(error))))
    if not named:
        return f"its tokenizer needs a package that is not installed ({one_line(error)})"
    packages = " or ".join(named)
    return f"its tokenizer has no fast form here and needs {packages}, which is not installed; pip install {named[0]}"


def one_line(error: BaseException) -> str:
    """A library's error message, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__


def takes_types(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """True when the graph has a `token_type_ids` input: the family has one, or the checkpoint's own table uses it."""
    family = family_of(model.config.model_type)
    own = (_rows(model, "token_type_embeddings") or 0) > 1 and "token_type_ids" in tokenizer.model_input_names
    return family.token_types or own


def longest_sequence(model: PreTrainedModel) -> int:
    """Most tokens the table of positions holds; RoBERTa's begin behind the checkpoint's own padding id."""
    embeddings = cast(Any, model.base_model).embeddings
    most: int = model.config.max_position_embeddings
    if relative_kind(model.config) is None and family_of(model.config.model_type).offset_positions:
        if embeddings.padding_idx is None:
            raise ModelError(
                f"{model.name_or_path}: pad_token_id is null in config.json, and positions begin behind it"
            )
        most -= embeddings.padding_idx + 1
    return most


def check_ids(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return one line on a padding id that the two files give differently where positions depend on it, else "".

    Raises ModelError when an id or a type the tokenizer makes of a text is beyond the model's table.
    """
    # Every id of its vocabulary, and those it puts around a text
    vocabulary = tokenizer.get_vocab()
    try:
        around = tokenizer("a", verbose=False)
    except FAILURES as error:
        raise ModelError(
            f"{folder}: its tokenizer cannot encode a text ({one_line(error)}); copy its files again"
        ) from error
    rows = _rows(model, "word_embeddings") or 0
    beyond = {index: token for token, index in vocabulary.items() if index >= rows}
    beyond |= {index: f"id {index}" for index in around["input_ids"] if index >= rows and index not in beyond}
    if beyond:
        named = ", ".join(repr(beyond[index]) for index in sorted(beyond)[:3]) + (", ..." if len(beyond) > 3 else "")
        raise ModelError(
            f"{folder}: its tokenizer makes ids up to {max(beyond)} and the model's table has {rows} rows, so "
            f"{len(beyond)} tokens have none ({named}); give the tokenizer it was trained with ({RESIZE})"
        )
    # Types of a single text, and of padding
    if takes_types(model, tokenizer) and "token_type_ids" in tokenizer.model_input_names:
        types, made = _rows(model, "token_type_embeddings") or 0, around.get("token_type_ids") or [0]
        largest = max(*made, tokenizer.pad_token_type_id, 0)
        if largest >= types:
            raise ModelError(
                f"{folder}: its tokenizer makes token type {largest} and the model's table has {types} rows; give the "
                "tokenizer it was trained with"
            )
    padding = getattr(cast(Any, model.base_model).embeddings, "padding_idx", None)
    offset = family_of(model.config.model_type).offset_positions and relative_kind(model.config) is None
    if offset and tokenizer.pad_token_id is not None and tokenizer.pad_token_id != padding:
        return (
            f"{folder}: the model counts positions by padding id {padding} and the tokenizer pads with "
            f"{tokenizer.pad_token_id}; set pad_token_id in config.json to what it was trained with"
        )
    return ""


def check_batch(model: PreTrainedModel, input_ids: Tensor, token_type_ids: Tensor | None) -> None:
    """Raise DataError for ids, types or a length [B, S] (or [B, N, S]) beyond the tables they index."""
    longest = longest_sequence(model)
    if input_ids.shape[-1] > longest:
        raise DataError(
            f"a batch has {input_ids.shape[-1]} tokens and the model {longest} positions; give at most {longest}"
        )
    found = (("token id", input_ids, "word_embeddings"), ("token type", token_type_ids, "token_type_embeddings"))
    for what, values, table in found:
        rows = _rows(model, table)
        if values is None or rows is None or not values.numel():
            continue
        largest, smallest = int(values.max()), int(values.min())
        if largest >= rows or smallest < 0:
            hint = (
                "give single texts, not pairs"
                if what == "token type"
                else "encode with the tokenizer of its checkpoint"
            )
            wrong = largest if largest >= rows else smallest
            raise DataError(f"a batch has {what} {wrong} and the model's table {rows} rows; {hint}")


def _rows(model: PreTrainedModel, table: str) -> int | None:
    found = getattr(cast(Any, model.base_model).embeddings, table, None)
    return found.num_embeddings if isinstance(found, nn.Embedding) else None


def outside_traces() -> bool:
    """True where values may be looked at: not while torch traces or compiles, or its calls are recorded."""
    recorded = torch._C._len_torch_function_stack() > 0
    return not (recorded or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export())
