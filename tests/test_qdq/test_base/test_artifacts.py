"""Files are whole or absent, whatever stops the writer: an exception, SIGKILL, a full disk, a read-only place."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdq.base.artifacts import (
    PARTIAL_PREFIX,
    atomic_folder,
    atomic_path,
    read_json,
    sha256_file,
    sha256_json,
    sha256_tree,
    sweep_partials,
    to_json,
    write_json,
    write_text,
)
from qdq.errors import DeployError, QdqError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Content


@given(JSON)
def test_json_text_reads_back_and_does_not_depend_on_key_order(value: Any) -> None:
    text = to_json(value)
    assert json.loads(text) == value
    assert text.endswith("\n")
    if isinstance(value, dict):
        assert to_json(dict(reversed(value.items()))) == text


def test_json_is_readable() -> None:
    assert to_json({"b": 1, "a": ["é"]}) == '{\n  "a": [\n    "é"\n  ],\n  "b": 1\n}\n'


def test_write_and_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    assert write_json(path, {"x": [1, 2.5]}) == path
    assert read_json(path) == {"x": [1, 2.5]}
    assert write_text(path, "{}") == path
    assert path.read_text() == "{}"
    assert names(path.parent) == ["a.json"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_result_that_is_not_a_number_is_refused(tmp_path: Path, value: float) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(DeployError, match=r"cannot write .*a\.json: .*NaN or infinite"):
        write_json(tmp_path / "a.json", {"cosine": value})
    assert read_json(tmp_path / "a.json") == 1


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe{}", b"[" * 100_000])
def test_damaged_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "build.json").write_bytes(content)
    with pytest.raises(DeployError, match=r"build\.json cannot be read as JSON .*delete it and run again"):
        read_json(tmp_path / "build.json")


def test_missing_json_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"build\.json does not exist; run the stage that writes it first"):
        read_json(tmp_path / "build.json")


# Interrupted writers


def test_exception_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyError), atomic_path(path) as partial:
        partial.write_text("ne")
        raise KeyError
    assert (path.read_text(), names(tmp_path)) == ("old", ["a.txt"])


def test_exception_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    with atomic_folder(folder) as partial:
        (partial / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder) as partial:
        (partial / "a").write_text("new")
        raise KeyboardInterrupt
    assert ((folder / "a").read_text(), names(tmp_path)) == ("old", ["checkpoint"])


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    for name in ("first", "second"):
        with atomic_folder(folder) as partial:
            (partial / name).write_text(name)
    assert names(folder) == ["second"]
    assert names(tmp_path) == ["checkpoint"]
    assert folder.stat().st_mode & 0o777 == 0o755  # readable by the server that will load it


def test_a_failing_swap_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint"
    with atomic_folder(folder) as partial:
        (partial / "a").write_text("old")
    replace = os.replace

    def fails_for_the_new_one(source: Path, target: Path) -> None:
        if target == folder and "retired" not in Path(source).name:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_for_the_new_one)
    with pytest.raises(DeployError, match="Input/output error"), atomic_folder(folder) as partial:
        (partial / "a").write_text("new")
    assert ((folder / "a").read_text(), names(tmp_path)) == ("old", ["checkpoint"])


KILLED = """
import sys, time
from pathlib import Path
from qdq.base.artifacts import atomic_folder, atomic_path
with {opened} as partial:
    with ({file}).open("w") as handle:
        handle.write("half")
        handle.flush()
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize(
    ("opened", "file"),
    [("atomic_path(Path(sys.argv[1]))", "partial"), ("atomic_folder(Path(sys.argv[1]))", "partial / 'weights'")],
)
def test_sigkill_leaves_what_was_there_and_sweep_removes_the_rest(tmp_path: Path, opened: str, file: str) -> None:
    target = tmp_path / "model"
    if "folder" in opened:
        target.mkdir()
        (target / "old").write_text("whole")
    else:
        target.write_text("whole")
    before = sha256_tree(tmp_path)
    code = KILLED.format(opened=opened, file=file)
    with subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGKILL)
    leftovers = [name for name in names(tmp_path) if name != "model"]
    assert len(leftovers) == 1
    assert leftovers[0].startswith(PARTIAL_PREFIX)
    assert sweep_partials(tmp_path) == 1
    assert sha256_tree(tmp_path) == before


def test_sweep_reaches_below_and_spares_the_rest(tmp_path: Path) -> None:
    (tmp_path / "openvino" / f"{PARTIAL_PREFIX}1-x").mkdir(parents=True)
    (tmp_path / "openvino" / f"{PARTIAL_PREFIX}1-x" / f"{PARTIAL_PREFIX}y").write_text("")
    (tmp_path / f"{PARTIAL_PREFIX}2-model.onnx").write_text("")
    (tmp_path / "model.onnx").write_text("")
    sweep_partials(tmp_path)
    assert names(tmp_path) == ["model.onnx", "openvino"]
    assert names(tmp_path / "openvino") == []
    assert sweep_partials(tmp_path / "nowhere") == 0


# Places that cannot be written


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, which root cannot write either")
def test_a_place_that_cannot_be_written() -> None:
    message = r"cannot write /proc/nowhere/a: .*choose a writable folder with --out"
    with pytest.raises(DeployError, match=message):
        write_json(Path("/proc/nowhere/a"), 1)
    with pytest.raises(DeployError, match=message), atomic_folder(Path("/proc/nowhere/a")):
        pass


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for inside in (tmp_path / "file" / "a.json", tmp_path / "file" / "b" / "a.json"):
        with pytest.raises(DeployError, match=r"cannot write .*file.*a\.json"):
            write_json(inside, 1)
        with pytest.raises(DeployError, match=r"cannot write .*file.*a\.json"), atomic_folder(inside):
            pass
    assert (tmp_path / "file").read_text() == "x"


FULL = """
import resource, sys
from pathlib import Path
from qdq.base.artifacts import atomic_folder, write_text
from qdq.errors import DeployError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as a disk with room for 1000 more bytes; fails with EFBIG
try:
    if sys.argv[2] == "file":
        write_text(Path(sys.argv[1]), "x" * 5000)
    else:
        with atomic_folder(Path(sys.argv[1])) as partial:
            (partial / "a").write_text("fits")
            (partial / "b").write_text("x" * 5000)
except DeployError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_full_disk(tmp_path: Path, kind: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "out"), kind], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith(f"cannot write {tmp_path / 'out'}: File too large; free space or choose")
    assert ran.stderr == ""
    assert names(tmp_path) == []


# Hashes


def test_hashes_follow_content_and_names_only(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "sub" / "x").write_bytes(b"1" * 3_000_000)
        (tmp_path / folder / "y").write_bytes(b"")
    first = sha256_tree(tmp_path / "a")
    assert first == sha256_tree(tmp_path / "b")
    assert sha256_file(tmp_path / "a" / "sub" / "x") == sha256_file(tmp_path / "b" / "sub" / "x")
    (tmp_path / "b" / "y").rename(tmp_path / "b" / "z")
    assert sha256_tree(tmp_path / "b") != first
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1}) != sha256_json({"a": 1, "b": 3})


def test_errors_are_of_the_tree() -> None:
    assert issubclass(DeployError, QdqError)
