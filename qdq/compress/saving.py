"""Writing candidates: a calibrated checkpoint when it is quantized, a plain transformers one when it is not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from qdq.base.artifacts import atomic_folder
from qdq.calibrate.checkpoint import TOKENIZER_FILES, write_quant_spec
from qdq.compress.step import Candidate
from qdq.errors import ModelError
from qdq.load.kinds import detect_task
from qdq.load.model import quiet_transformers

if TYPE_CHECKING:
    from qdq.compress.step import Session


def save_candidate(session: Session, candidate: Candidate, folder: Path) -> None:
    """Write `candidate` to `folder`, as a whole or not at all. Raises DeployError when the place cannot be written."""
    with atomic_folder(folder) as partial:
        if candidate.save is not None:
            candidate.save(partial)
        else:
            with quiet_transformers():
                candidate.model.save_pretrained(partial)
        _save_tokenizer(session, partial)
        if candidate.spec is not None and candidate.table is not None:
            write_quant_spec(partial, candidate.spec, task_name(candidate), candidate.table)


def task_name(candidate: Candidate) -> str:
    """Name of the task its class is for; a class of the user's own counts as the bare encoder."""
    try:
        return detect_task([type(candidate.model).__name__], candidate.name).name
    except ModelError:
        return "feature-extraction"


def _save_tokenizer(session: Session, folder: Path) -> None:
    """The tokenizer's own files where they are known, else what it saves: saving stores its last call's truncation."""
    tokenizer = session.trainer.processing_class
    if tokenizer is None:
        session.screen.warn("no tokenizer was given: the candidates are written without one")
        return
    source = Path(str(getattr(tokenizer, "name_or_path", "")))
    names = sorted({*getattr(tokenizer, "vocab_files_names", {}).values(), *TOKENIZER_FILES})
    present = [name for name in names if (source / name).is_file()]
    for name in present:
        shutil.copyfile(source / name, folder / name)
    if not present:
        tokenizer.save_pretrained(folder)
