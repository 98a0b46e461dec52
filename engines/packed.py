"""A runner whose graph has a form without padding, called with padded batches like every other."""

from __future__ import annotations

from pathlib import Path

from engines import packing as module
from engines.packing import Batch, Packing, PackingError
from engines.types import Runner
from qdq.base.artifacts import write_text
from qdq.base.types import Feeds, Outputs
from qdq.errors import BuildError


class PackedRunner:
    """Packs a batch, runs it, and reads the outputs in the order of the texts. Raises BuildError as `pack`."""

    def __init__(self, run: Runner, packing: Packing) -> None:
        self._run, self._packing = run, packing

    def __call__(self, feeds: Feeds) -> Outputs:
        """Outputs of a padded batch by name; padded places are zero."""
        batch = pack(self._packing, feeds)
        return batch.unpack(self._run(batch.feeds))


def packing_beside(file: Path) -> Packing | None:
    """The form of a graph or plan, None for a padded one. Raises BuildError when packing.json cannot be read."""
    try:
        return Packing.beside(file)
    except PackingError as error:
        raise BuildError(str(error)) from error


def pack(packing: Packing, feeds: Feeds) -> Batch:
    """The inputs of a graph for a padded batch. Raises BuildError for one that the form cannot take."""
    try:
        return packing.pack(feeds)
    except PackingError as error:
        raise BuildError(f"the batch does not fit the engine's {packing.form} form: {error}") from error


def copy_into(folder: Path, packing: Packing | None) -> list[Path]:
    """Write packing.py for who feeds an engine without this project; for a padded one an earlier copy goes.

    Returns the file that was written. Raises DeployError when the folder cannot be written.
    """
    copy = folder / Path(module.__file__).name
    if packing is None:
        copy.unlink(missing_ok=True)
        return []
    return [write_text(copy, Path(module.__file__).read_text(encoding="utf-8"))]
