"""Text of a program's token rows, where it can be had back: a search reads files of text, and builds engines with them.

A row's ids are cut at the special tokens into one text or two and decoded. The rows of a loader count as text only if
each of them is encoded to its own ids again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qdq.base.artifacts import write_text
from qdq.compress.datasets import Labels
from qdq.loading.model import LoadedModel
from qdq.tasks.heads import head_of_model
from qdq.tasks.labels import Classes

TEXTS, LABEL = ("text", "pair"), "label"
CLASSIFICATION = "text-classification"


class NoText(Exception):
    """There is no text of these rows; the message is the reason."""


def write_texts(
    rows: Any, labels: Labels, loaded: LoadedModel, folder: Path, name: str
) -> tuple[Path, tuple[str, ...]]:
    """Write the text and the class of every row to ``folder/<name>-<hash>.jsonl``, whose name tells its content.

    Returns the file and its columns of text, one or two. Raises NoText for another task, rows without one class each,
    and the first row that is no text.
    """
    if loaded.task.name != CLASSIFICATION or head_of_model(loaded.model).kind != "classes":
        raise NoText(f"{loaded.name} does not give each text one class")
    lines = [_line(rows[index], labels, loaded, f"{name} row {index}") for index in range(len(rows))]
    columns = tuple(lines[0])[:-1]
    if odd := next((number for number, line in enumerate(lines) if tuple(line) != (*columns, LABEL)), None):
        raise NoText(f"{name} row {odd} has not the {len(columns)} texts of the first")
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path = folder / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.jsonl"
    return path if path.is_file() else write_text(path, content), columns


def _line(row: Mapping[str, Any], labels: Labels, loaded: LoadedModel, where: str) -> dict[str, str]:
    """One line of the file."""
    texts = texts_of(row, loaded.tokenizer, where)
    columns = labels.columns(row)
    value = np.asarray(row[columns[0]]) if len(columns) == 1 else np.zeros(2)
    if value.size != 1 or value.dtype.kind not in "iu":
        raise NoText(f"{where} has no class")
    names, number = loaded.labels, int(value.reshape(()))
    label = str(number) if Classes(names, len(names)).unnamed else names[number]
    return {**dict(zip(TEXTS, texts, strict=False)), LABEL: label}


def texts_of(row: Mapping[str, Any], tokenizer: Any, where: str) -> list[str]:
    """One text, or two, whose tokens are those of the row. Raises NoText."""
    # The ids without padding, between the special tokens
    ids = np.asarray(row["input_ids"]).reshape(-1)
    mask = np.asarray(row.get("attention_mask", ids != tokenizer.pad_token_id)).reshape(-1).astype(bool)
    real: list[int] = ids[mask].tolist()
    marks = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    parts: list[list[int]] = [[]]
    for token in real:
        if token in marks:
            parts.append([])
        else:
            parts[-1].append(token)
    texts = [tokenizer.decode(part, clean_up_tokenization_spaces=False).strip() for part in parts if part]
    # The same tokens again
    if not 1 <= len(texts) <= len(TEXTS) or not all(texts) or tokenizer(*texts)["input_ids"] != real:
        raise NoText(f"{where} is no text of this tokenizer")
    return texts
