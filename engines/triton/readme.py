"""README.md of a served model: its tensors, and what a client has to know of them beyond config.pbtxt's fields."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engines.targets import TARGETS
from engines.triton.interface import LABELS_FILE, data_type, spell
from engines.triton.settings import TritonSettings
from engines.types import BuiltEngine, TensorInfo

README_FILE = "README.md"  # Triton reads config.pbtxt, the label file and the folders it knows, and no other file


def write_readme(engine: BuiltEngine, settings: TritonSettings, folder: Path) -> None:
    """Write `folder`/README.md for the model with this engine's tensors, as clients see them."""
    labels = f"Class names are in {LABELS_FILE}, one a line, in the order of the logits." if settings.labels else ""
    parts = [
        f"# {settings.name}",
        f"Served by Triton's {settings.backend} backend.",
        _table("input", engine.inputs),
        _table("output", engine.outputs),
        "\n".join(f"- {line}" for line in (*settings.about, labels) if line),
        _batches(settings),
    ]
    (folder / README_FILE).write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _table(kind: str, tensors: Sequence[TensorInfo]) -> str:
    rows = [f"| {info.name} | {data_type(info.name, info.dtype)} | {spell(info.shape)} |" for info in tensors]
    return "\n".join([f"| {kind} | type | shape |", "|---|---|---|", *rows])


def _batches(settings: TritonSettings) -> str:
    if TARGETS[settings.backend].batches:
        return f"The server forms batches of up to {settings.max_batch_size} from requests of equal length."
    return "The server forms no batches: a request holds one."
