"""Launchers: local processes, scripts for accelerate and SLURM, and Ray's job API."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest

from qdq.auto.search import launch as launching
from qdq.auto.search.launch import launch
from qdq.base.artifacts import read_json, write_json
from qdq.base.screen import Screen
from qdq.errors import BuildError, ConfigError, Unavailable


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "jobs" / name for name in ("ptq", "width 1of2")]
    for folder in found:
        folder.mkdir(parents=True)
    return found


def test_finished_jobs_are_not_run_again(folders: list[Path]) -> None:
    for folder in folders:
        write_json(folder / "result.json", {"seconds": 1.0})
    launch("ray", folders, Screen())


def test_a_script_has_a_command_for_every_open_job(folders: list[Path]) -> None:
    write_json(folders[0] / "result.json", {})
    with pytest.raises(Unavailable, match=r"1 jobs are written out; run bash .*, then the same search again"):
        launch("accelerate", folders, Screen())
    lines = (folders[0].parent / "run.sh").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == f"accelerate launch --num_processes 1 -m qdq.auto.search.job '{folders[1]}'"


def test_a_slurm_array_starts_the_job_of_its_number(folders: list[Path]) -> None:
    with pytest.raises(Unavailable, match="sbatch"):
        launch("slurm", folders, Screen())
    script = folders[0].parent / "array.sbatch"
    text = script.read_text(encoding="utf-8")
    assert "#SBATCH --array=0-1" in text
    # As SLURM would run it, with echo in place of the interpreter
    plain = text.replace(f"exec {sys.executable}", "exec echo")
    ran = subprocess.run(
        ["bash", "-c", plain], env={"SLURM_ARRAY_TASK_ID": "1"}, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split(maxsplit=2)[-1].strip() == str(folders[1])


class Process:
    def __init__(self, code: int, said: str = "") -> None:
        self.code, self.said = code, said

    def __call__(self, command: Any, stdout: Any, **others: Any) -> Any:
        stdout.write(self.said)
        stdout.flush()
        return types.SimpleNamespace(returncode=self.code)


def test_a_failed_job_is_a_result_with_its_message(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    said = "calibrate 3 s\nqdq: model.onnx: cannot be built;\n  build it again\n"
    monkeypatch.setattr(launching.subprocess, "run", Process(1, said))
    launch("local", folders[:1], Screen())
    assert read_json(folders[0] / "result.json")["failed"] == "model.onnx: cannot be built; build it again"


def test_a_mistake_of_the_user_and_a_signal_end_the_search(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching.subprocess, "run", Process(2, "qdq: dev.tsv: has 3 rows"))
    with pytest.raises(ConfigError, match="has 3 rows"):
        launch("local", folders, Screen())
    for code, number in ((-9, 9), (130, 2)):  # killed, and Ctrl-C
        monkeypatch.setattr(launching.subprocess, "run", Process(code))
        with pytest.raises(BuildError, match=f"ended by signal {number}; start the same search again"):
            launch("local", folders, Screen())
    assert not (folders[0] / "result.json").exists()


def test_ray_is_refused_with_the_line_that_installs_it(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.job_submission", None)
    with pytest.raises(ConfigError, match=r"pip install 'ray\[default\]'"):
        launch("ray", folders, Screen())


def test_ray_gets_every_job_and_is_waited_for(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Status:
        def __init__(self, ended: bool) -> None:
            self.ended = ended

        def is_terminal(self) -> bool:
            return self.ended

    class Client:
        submitted: ClassVar[list[str]] = []
        asked = 0

        def __init__(self, address: str) -> None:
            assert address == "http://head:8265"

        def submit_job(self, entrypoint: str) -> str:
            self.submitted.append(entrypoint)
            return f"job{len(self.submitted)}"

        def get_job_status(self, number: str) -> Status:
            Client.asked += 1
            if Client.asked > 2 and number == "job1":
                write_json(folders[0] / "result.json", {"seconds": 1.0})
            return Status(Client.asked > 2)

        def get_job_logs(self, number: str) -> str:
            return "qdq: no memory"

    monkeypatch.setitem(sys.modules, "ray.job_submission", types.SimpleNamespace(JobSubmissionClient=Client))
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    monkeypatch.setattr(launching, "RAY_SECONDS", 0.0)
    launch("ray", folders, Screen())
    assert [words.split(" -m ")[1].split()[0] for words in Client.submitted] == ["qdq.auto.search.job"] * 2
    assert read_json(folders[0] / "result.json") == {"seconds": 1.0}
    assert read_json(folders[1] / "result.json")["failed"] == "no memory"
