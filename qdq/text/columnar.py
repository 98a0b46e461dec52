"""Rows of Parquet and Arrow files and of the `datasets` package, with the class names that it stores in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qdq.base.config import nearest
from qdq.errors import ConfigError, DataError
from qdq.text.lines import Row

# Names of a split, for files of a folder and for data sets; the first that is there counts
SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "dev": ("dev", "valid", "validation", "validation_matched", "test"),
}


def read_parquet(path: Path) -> Iterator[Row]:
    """Stream the rows of a Parquet file. Raises DataError for a damaged one, ConfigError without `datasets`."""
    return _rows(path, _parquet)


def read_arrow(path: Path) -> Iterator[Row]:
    """Stream the rows of an Arrow file, in the stream format that `datasets` writes or the file format (Feather)."""
    return _rows(path, _arrow)


def _rows(path: Path, batches_of: Any) -> Iterator[Row]:
    try:
        import datasets  # noqa: F401  # names of classes are its own
        import pyarrow
    except ImportError:
        raise ConfigError(
            f"{path}: needs the datasets package; run pip install '.[train]', or save the file as JSON lines"
        ) from None
    number = 0
    faults = (pyarrow.ArrowException, ValueError, KeyError, TypeError, OverflowError, MemoryError)
    try:
        schema, batches = batches_of(path)
        names = class_names(_features(schema))
        for batch in batches:
            batch.validate(full=True)  # a damaged offset would otherwise be read as it stands
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path}, row {number}", values, names)
    except faults as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        kind = path.suffix.removeprefix(".").capitalize()
        raise DataError(
            f"{path}: cannot be read as {kind} behind row {number} ({reason}); it is damaged or of another kind: "
            "copy it again"
        ) from None


def _parquet(path: Path) -> tuple[Any, Iterator[Any]]:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    return file.schema_arrow, file.iter_batches(batch_size=256)


def _arrow(path: Path) -> tuple[Any, Iterator[Any]]:
    import pyarrow

    with path.open("rb") as handle:
        whole = handle.read(6) == b"ARROW1"
    if whole:
        reader = pyarrow.ipc.open_file(path)
        return reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
    stream = pyarrow.ipc.open_stream(pyarrow.OSFile(str(path)))
    return stream.schema, iter(stream)


def _features(schema: Any) -> Mapping[str, Any]:
    """Features that `datasets` wrote into the schema; {} for a file of another tool."""
    import datasets

    if b"huggingface" not in (schema.metadata or {}):
        return {}
    try:
        return dict(datasets.Features.from_arrow_schema(schema))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}  # of a version that is not known here: the numbers count as they stand


def class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Columns of class numbers, or of lists of them -> the names of the classes."""
    found: dict[str, tuple[str, ...]] = {}
    for column, feature in features.items():
        names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
        if names:
            found[column] = tuple(map(str, names))
    return found


def is_saved_dataset(folder: Path) -> bool:
    """True when `datasets` wrote this folder with save_to_disk."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def dataset_rows(spec: str) -> Iterator[Row]:
    """Rows of ``datasets:NAME_OR_FOLDER[:split]``; without a split "train", or the only or first one."""
    name, _, split = spec.removeprefix("datasets:").partition(":")
    try:
        import datasets  # optional: the extra "train"
    except ImportError:
        raise ConfigError(
            f"{spec}: needs the datasets package; run pip install '.[train]', or give JSON lines, TSV, CSV or text"
        ) from None
    # The data set, from disk or the hub
    saved = is_saved_dataset(Path(name))
    parts = [name] if Path(name).exists() else name.split()  # the hub's name, and a configuration
    _check_reachable(spec, parts[0])
    try:
        data = datasets.load_from_disk(name) if saved else datasets.load_dataset(*parts)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{spec}: cannot be loaded ({reason}); check the name, the split and the network") from error
    # One of its splits, when it has any
    if hasattr(data, "keys"):  # a DatasetDict: split name -> Dataset
        data = data[_split(spec, split, sorted(data.keys()))]
    elif split:
        raise DataError(f"{spec}: this dataset was saved without splits; leave ':{split}' away")
    names = class_names(getattr(data, "features", None) or {})
    return (Row(f"{spec}, row {number}", row, names) for number, row in enumerate(data, start=1))


def _split(spec: str, wanted: str, splits: Sequence[str]) -> str:
    """The split called `wanted`, dev also under its other names; without one, train, or the first."""
    if not wanted:
        return "train" if "train" in splits else splits[0]
    found = next((name for name in SPLITS.get(wanted, (wanted,)) if name in splits), None)
    if found is None:
        raise DataError(f"{spec}: no split '{wanted}'; {nearest(wanted, splits)}")
    return found


def _check_reachable(spec: str, name: str) -> None:
    """Raise DataError within five seconds where `datasets` would ask a silent hub again and again."""
    import datasets

    cached = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    if Path(name).exists() or cached.is_dir():
        return
    from qdq.loading.hub import silence

    if reason := silence(name):
        raise DataError(
            f"{spec}: is no folder here, and the hub cannot be reached ({reason}); save the data set on another "
            "machine with save_to_disk and give its folder"
        )
