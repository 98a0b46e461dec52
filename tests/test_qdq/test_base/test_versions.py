"""The digest of the source files: the same wherever they lie, another one when any byte of them is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qdq.base.versions import ROOT, SOURCE, source_digest, versions


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for package in ("qdq", "export", "engines"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_a_copy_has_the_same_digest(copy: Path) -> None:
    assert source_digest(copy) == source_digest() == versions()[SOURCE]
    compiled = copy / "qdq" / "__pycache__" / "errors.cpython-311.pyc"
    compiled.parent.mkdir()
    compiled.write_bytes(b"code")
    assert source_digest.__wrapped__(copy) == source_digest()


def test_a_change_in_any_file_changes_the_digest(copy: Path) -> None:
    """Code and data of every package, one file at a time."""
    before = source_digest()
    files = [path for path in sorted(copy.rglob("*")) if path.is_file() and path.parent.name != "__pycache__"]
    assert {".py", ".json"} <= {path.suffix for path in files} and len(files) > 200
    for path in files[:: len(files) // 20]:
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        assert source_digest.__wrapped__(copy) != before, path
        path.write_bytes(content)
    files[-1].rename(files[-1].with_name("renamed.py"))
    assert source_digest.__wrapped__(copy) != before
