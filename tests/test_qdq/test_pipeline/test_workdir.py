"""The work directory: one run at a time, stages that are skipped only when nothing changed, and what a kill leaves."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qdq.base.artifacts import PARTIAL_PREFIX, write_text
from qdq.errors import DeployError, WorkError
from qdq.pipeline.workdir import LOCK, MANIFEST, WorkDirectory, fingerprint

INPUTS = {"model": "abc", "spec": {"bits": 8}}

HOLD = """
import sys, time
from pathlib import Path
from qdq.pipeline.workdir import WorkDirectory
with WorkDirectory(Path(sys.argv[1])) as work:
    work.complete("inject", {}, [])
    print("locked", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the directory."""
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "locked\n"
    return child


def test_a_second_run_is_refused_and_a_kill_releases_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path / "work") as child:
        manifest = (tmp_path / "work" / MANIFEST).read_bytes()
        with pytest.raises(WorkError, match=r"work: another qdq run is working here; wait for it, or choose another"):
            WorkDirectory(tmp_path / "work").__enter__()
        assert (tmp_path / "work" / MANIFEST).read_bytes() == manifest
        child.send_signal(signal.SIGKILL)
    with WorkDirectory(tmp_path / "work") as work:
        assert work.fresh("inject", {})


def test_two_in_one_process_and_the_refused_one_does_not_unlock(tmp_path: Path) -> None:
    with WorkDirectory(tmp_path):
        for _ in range(2):
            with pytest.raises(WorkError, match="another qdq run"):
                WorkDirectory(tmp_path).__enter__()
    with WorkDirectory(tmp_path):
        pass


def test_the_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), WorkDirectory(tmp_path):
        raise KeyError
    (tmp_path / MANIFEST).write_text("{")
    for _ in range(2):  # the second time: the failed entry did not keep the lock
        with pytest.raises(DeployError, match=r"manifest\.json cannot be read as JSON .*delete it"):
            WorkDirectory(tmp_path).__enter__()


def test_leftovers_are_swept_by_whoever_holds_the_lock(tmp_path: Path) -> None:
    (tmp_path / "openvino" / f"{PARTIAL_PREFIX}9-model").mkdir(parents=True)
    (tmp_path / f"{PARTIAL_PREFIX}9-model.onnx").write_text("half")
    with WorkDirectory(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, "openvino"]
        assert list((tmp_path / "openvino").iterdir()) == []


def test_a_stage_is_fresh_until_inputs_or_outputs_change(tmp_path: Path) -> None:
    output, folder = tmp_path / "placement.json", tmp_path / "checkpoint"
    with WorkDirectory(tmp_path) as work:
        assert not work.fresh("inject", INPUTS)
        write_text(output, "{}")
        write_text(folder / "config.json", "{}")
        work.complete("inject", INPUTS, [output, folder])
    with WorkDirectory(tmp_path) as work:  # read back from the file
        assert work.fresh("inject", INPUTS)
        assert work.fresh("inject", {"spec": {"bits": 8}, "model": "abc"})  # the order of keys means nothing
        assert not work.fresh("inject", INPUTS | {"model": "other"})
        assert not work.fresh("calibrate", INPUTS)
        for path in (output, folder / "config.json"):
            write_text(path, "changed")
            assert not work.fresh("inject", INPUTS)
            write_text(path, "{}")
            assert work.fresh("inject", INPUTS)
        write_text(folder / "extra", "")
        assert not work.fresh("inject", INPUTS)
        (folder / "extra").unlink()
        output.unlink()
        assert not work.fresh("inject", INPUTS)


def test_varying_outputs_only_have_to_exist(tmp_path: Path) -> None:
    timing = tmp_path / "benchmark.json"
    with WorkDirectory(tmp_path) as work:
        write_text(timing, "1")
        work.complete("bench", INPUTS, [], [timing])
        write_text(timing, "2")
        assert work.fresh("bench", INPUTS)
        timing.unlink()
        assert not work.fresh("bench", INPUTS)


def test_a_forgotten_stage_stays_forgotten_after_a_kill(tmp_path: Path) -> None:
    with WorkDirectory(tmp_path) as work:
        work.complete("inject", INPUTS, [])
        work.complete("export", INPUTS, [])
        work.forget("export")
        work.forget("never run")
    with WorkDirectory(tmp_path) as work:
        assert work.fresh("inject", INPUTS)
        assert not work.fresh("export", INPUTS)


def test_the_manifest_is_the_same_for_the_same_work(tmp_path: Path) -> None:
    for folder, order in (("a", ("inject", "export")), ("b", ("export", "inject"))):
        with WorkDirectory(tmp_path / folder) as work:
            write_text(work.path / "x", "content")
            for stage in order:
                work.complete(stage, INPUTS, [work.path / "x"])
    assert (tmp_path / "a" / MANIFEST).read_bytes() == (tmp_path / "b" / MANIFEST).read_bytes()
    assert json.loads((tmp_path / "a" / MANIFEST).read_text())["seed"] == 0


@pytest.mark.parametrize("content", [{"qdq": "0.0.0-other"}, {"stages": []}, {"stages": None}])
def test_a_manifest_of_another_version_or_shape_is_ignored(tmp_path: Path, content: dict[str, Any]) -> None:
    with WorkDirectory(tmp_path) as work:
        work.complete("inject", INPUTS, [])
    found = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(found | content))
    with WorkDirectory(tmp_path) as work:
        assert not work.fresh("inject", INPUTS)
        assert work.manifest["stages"] == {}


def test_fingerprint(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "x", "1")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "a" / "x")
    with pytest.raises(WorkError, match=r"model\.onnx does not exist; run the stage that writes it first"):
        fingerprint(tmp_path / "model.onnx")


# Places that cannot be written


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, which root cannot write either")
def test_read_only_place() -> None:
    with pytest.raises(DeployError, match=r"cannot write /proc/build: .*choose a writable folder with --out \(OUT=\)"):
        WorkDirectory(Path("/proc/build")).__enter__()


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(WorkError, match=r"/out: is a file; name a folder with --out"):
        WorkDirectory(tmp_path / "out").__enter__()
    assert (tmp_path / "out").read_text() == "mine"


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(DeployError, match="No locks available"):
        WorkDirectory(tmp_path).__enter__()


FULL = """
import resource, sys
from pathlib import Path
from qdq.errors import DeployError, WorkError
from qdq.pipeline.workdir import WorkDirectory
with WorkDirectory(Path(sys.argv[1])) as work:
    work.complete("inject", {}, [])
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))  # as a full disk, with EFBIG for ENOSPC
    try:
        work.complete("export", {}, [])
    except DeployError as error:
        print(error)
"""


def test_a_full_disk_keeps_the_last_whole_manifest(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(f"cannot write {tmp_path / MANIFEST}: File too large; free space")
    with WorkDirectory(tmp_path) as work:
        assert list(work.manifest["stages"]) == ["inject"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, MANIFEST]
