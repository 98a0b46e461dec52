"""Output of a compression: a checkpoint of every model, calibrated when it is quantized, and the table of all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rich.table import Table

from qdq.base.artifacts import atomic_folder
from qdq.base.screen import Screen
from qdq.calibrate.checkpoint import TOKENIZER_FILES, write_quant_spec
from qdq.compress.method import CompressedModel, CompressionResult, Session
from qdq.errors import ModelError
from qdq.loading.kinds import detect_task
from qdq.loading.model import quiet_transformers
from qdq.loading.own_class import record_class


def save(session: Session, made: CompressedModel, folder: Path) -> None:
    """Write `made` to `folder`, as a whole or not at all. Raises DeployError when the place cannot be written."""
    with atomic_folder(folder) as partial:
        if made.save is not None:
            made.save(partial)
        else:
            with quiet_transformers():
                made.model.save_pretrained(partial)
            record_class(partial, type(made.model))
        save_tokenizer(session.trainer.processing_class, session.screen, partial)
        if made.spec is not None and made.table is not None:
            write_quant_spec(partial, made.spec, task_name(made), made.table)


def task_name(made: CompressedModel) -> str:
    """Name of the task its class is for; a class of the user's own counts as the bare encoder."""
    try:
        return detect_task([type(made.model).__name__], made.name).name
    except ModelError:
        return "feature-extraction"


def save_tokenizer(tokenizer: Any, screen: Screen, folder: Path) -> None:
    """Copy the tokenizer's files where they are known, else save it, which stores its last call's truncation too."""
    if tokenizer is None:
        screen.warn("no tokenizer was given: the candidates are written without one")
        return
    source = Path(str(getattr(tokenizer, "name_or_path", "")))
    names = sorted({*getattr(tokenizer, "vocab_files_names", {}).values(), *TOKENIZER_FILES})
    present = [name for name in names if (source / name).is_file()]
    for name in present:
        shutil.copyfile(source / name, folder / name)
    if not present:
        tokenizer.save_pretrained(folder)


def show(screen: Screen, result: CompressionResult) -> None:
    """Print every candidate with its metric, its change in points against the given model, and its stored weights."""
    table = Table(box=None, pad_edge=False)
    for column in ("candidate", "metric", "points", "M parameters", "MB"):
        table.add_column(column, justify="left" if column == "candidate" else "right", no_wrap=True)
    table.add_row("as given", f"{result.baseline:.4f}", "", "", "")
    for row in result.as_json()["candidates"]:
        mark = " *" if row["name"] == result.best.name else ""
        numbers = (f"{row['metric']:.4f}", f"{-100 * row['drop']:+.2f}", f"{row['parameters'] / 1e6:.2f}")
        table.add_row(row["name"] + mark, *numbers, "–" if row["weights_mb"] is None else f"{row['weights_mb']:.1f}")
    screen.console.print(table)
    screen.line(f"* best: {result.folders[result.best.name]}")
