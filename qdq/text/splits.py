"""The train and dev parts of a data set: files of a folder in the published layout, or splits of a hub data set."""

from __future__ import annotations

from pathlib import Path

from qdq.errors import DataError
from qdq.text.columnar import SPLITS, is_saved_dataset
from qdq.text.files import SUFFIXES


def split_path(dataset: str, split: str) -> str:
    """The path of one split, train or dev, as `TextSource` takes it.

    `dataset` is a file (itself), a folder with ``train.*`` and ``dev.*`` files (or valid, validation, test), or a name
    as `datasets.load_dataset` takes it: "clue tnews", "conll2003". Raises DataError for a folder without such a file.
    """
    place = Path(dataset).expanduser()
    if place.is_file():
        return str(place)
    if not place.is_dir() or is_saved_dataset(place):
        return f"datasets:{dataset}:{split}"
    # A folder: the file whose name holds the split's word and whose suffix is known
    files = sorted(path for path in place.iterdir() if path.suffix.lower() in (*SUFFIXES, ".annotated"))
    for word in SPLITS[split]:
        for path in files:
            if word in path.stem.lower():
                return str(path)
    found = ", ".join(path.name for path in files) or "none"
    raise DataError(f"{place}: no file for '{split}' (one of {', '.join(SPLITS[split])}.*; there are: {found})")
