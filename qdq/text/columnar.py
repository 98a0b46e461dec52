"""Rows of Parquet and Arrow files, with the class names that the `datasets` package stores in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qdq.errors import ConfigError, DataError
from qdq.text.lines import Row


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
