"""Files that are whole or absent: atomic writes, canonical JSON, content hashes.

Every file the project writes goes through here, so a killed run never leaves a half file that
looks whole, and the same content always gives the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qdq.errors import DeployError

PARTIAL_PREFIX = ".partial-"  # leftovers of a killed run carry this name and are swept by `sweep_partials`


def to_json(value: Any) -> str:
    """Canonical JSON text: sorted keys, two-space indent, no NaN, trailing newline."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as canonical JSON, atomically.

    Raises DeployError when the folder cannot be written, or when `value` holds NaN or infinity, which JSON has not.
    """
    try:
        text = to_json(value)
    except ValueError as error:
        raise DeployError(
            f"cannot write {path}: {error}; a result is NaN or infinite, check the model's outputs"
        ) from error
    return write_text(path, text)


def read_json(path: Path) -> Any:
    """Read a JSON artifact. Raises DeployError naming the file when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DeployError(f"{path} does not exist; run the stage that writes it first") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DeployError(f"{path} cannot be read as JSON ({error}); delete it and run again") from error


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file path in the same folder; rename it to `path` when the block succeeds.

    The temporary file keeps the final suffix, because several libraries choose their format by it.
    Raises DeployError for a read-only folder or a full disk, after removing the partial file.
    """
    partial = path.parent / f"{PARTIAL_PREFIX}{os.getpid()}-{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if partial.is_file():
            _sync(partial)
        os.replace(partial, path)
    except OSError as error:
        raise write_failure(path, error) from error
    finally:
        _remove(partial)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success it replaces `path` as a whole, on failure nothing changes.

    Raises DeployError for a read-only parent or a full disk.
    """
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL_PREFIX}{path.name}-", dir=path.parent))
        partial.chmod(0o755)
        yield partial
        _swap(partial, path)
    except OSError as error:
        raise write_failure(path, error) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, path: Path) -> None:
    """Put `partial` in the place of `path`, which moves away first: no single step replaces a folder."""
    retired = path.parent / f"{PARTIAL_PREFIX}retired-{os.getpid()}-{path.name}"
    if not path.exists():
        os.replace(partial, path)
        return
    os.replace(path, retired)
    try:
        os.replace(partial, path)
    except OSError:
        os.replace(retired, path)
        raise
    _remove(retired)


def _remove(path: Path) -> None:
    """Remove a file or folder if it is there; an error here would hide the one that led to the removal."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def write_failure(path: Path, error: OSError) -> DeployError:
    """Return the one error for "this could not be written", with its way out."""
    reason = error.strerror or str(error)
    return DeployError(f"cannot write {path}: {reason}; free space or choose a writable folder with --out (OUT=)")


def _sync(path: Path) -> None:
    """Flush to disk before the rename, so a full disk fails here and not after the name exists."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def sweep_partials(folder: Path) -> int:
    """Remove partial files of killed runs from `folder` (call only while holding its lock); return how many."""
    found = list(folder.rglob(f"{PARTIAL_PREFIX}*")) if folder.is_dir() else []
    for partial in found:
        _remove(partial)
    return len(found)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_tree(folder: Path) -> str:
    """Hex SHA-256 over the relative names and bytes of every file below `folder`, in sorted order.

    Bytecode is left out: a server that runs a repository's Python writes it there.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.parent.name != "__pycache__"):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(to_json(value).encode()).hexdigest()
