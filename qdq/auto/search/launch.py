"""Launchers of jobs: this machine, one after another, or an engine that is there already.

There is no scheduler of our own. `accelerate` and `slurm` write a script of commands, to be started by hand; the same
search, started again, goes on with their results. `ray` submits to Ray's job API and waits.
"""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdq.auto.search.job import RESULT
from qdq.base.artifacts import write_json, write_text
from qdq.base.edge import INTERRUPTED, USAGE
from qdq.base.screen import Screen
from qdq.errors import BuildError, ConfigError, Unavailable

LOG = "log.txt"
MODULE = "qdq.auto.search.job"
SAID = "qdq: "  # begins the message of an error of ours
LAST_LINES = 12  # of the log of a job that failed without one
RAY_SECONDS = 5.0  # between two questions for a job's state
RAY_MISSING = "--launcher ray: Ray's job API is not installed; run: pip install 'ray[default]', or use another launcher"
ARRAY = """#!/bin/bash
#SBATCH --job-name=qdq-auto
#SBATCH --array=0-{last}
#SBATCH --output={folder}/%a.out
# Submit with: sbatch {script}
jobs=({jobs})
exec {python} -m {module} "${{jobs[$SLURM_ARRAY_TASK_ID]}}"
"""


def launch(launcher: str, folders: Sequence[Path], screen: Screen) -> None:
    """Run the jobs of `folders` whose result is not there; a failed one gets a result that says so.

    Raises Unavailable naming the script for jobs that have to be started by hand, ConfigError without Ray, and what
    the interruption of a job is.
    """
    open_jobs = [folder.resolve() for folder in folders if not (folder / RESULT).is_file()]
    if not open_jobs:
        return
    if launcher == "local":
        for folder in open_jobs:
            _local(folder, screen)
    elif launcher == "ray":
        _ray(open_jobs)
    else:
        script = (_slurm if launcher == "slurm" else _accelerate)(open_jobs)
        command = f"sbatch {script}" if launcher == "slurm" else f"bash {script}"
        raise Unavailable(f"{len(open_jobs)} jobs are written out; run {command}, then the same search again")


def _local(folder: Path, screen: Screen) -> None:
    """A process of this machine; what it prints goes to log.txt."""
    command = [sys.executable, "-m", MODULE, str(folder), "--with-parent", "--since", str(time.monotonic())]
    with screen.stage(folder.name) as stage, (folder / LOG).open("a", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False).returncode
        stage.say("" if code == 0 else f"failed, see {folder / LOG}")
    if code < 0 or code == INTERRUPTED:
        raise BuildError(
            f"{folder.name}: was ended by signal {abs(code) % 128}; start the same search again, it continues"
        )
    if code:
        failed(folder, code)


def failed(folder: Path, code: int) -> None:
    """Write the result of a job that ended with an error. Raises ConfigError for one of usage."""
    log = folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    said = [number for number, line in enumerate(lines) if line.startswith(SAID)]
    lines = lines[said[-1] :] if said else lines[-LAST_LINES:]
    reason = " ".join(line.strip() for line in lines if line.strip()).removeprefix(SAID) or f"exit code {code}"
    if code == USAGE:
        raise ConfigError(reason)
    write_json(folder / RESULT, {"failed": reason, "seconds": 0.0})


def _accelerate(folders: Sequence[Path]) -> Path:
    """A shell script with one ``accelerate launch`` per job, each a single process: candidates are what is parallel."""
    lines = [f"accelerate launch --num_processes 1 -m {MODULE} {shlex.quote(str(folder))}" for folder in folders]
    return write_text(folders[0].parent / "run.sh", "\n".join(["#!/bin/bash", "set -e", *lines, ""]))


def _slurm(folders: Sequence[Path]) -> Path:
    """A SLURM array script with one task per job."""
    script = folders[0].parent / "array.sbatch"
    jobs = " ".join(shlex.quote(str(folder)) for folder in folders)
    names = {"last": len(folders) - 1, "folder": folders[0].parent, "script": script, "jobs": jobs}
    return write_text(script, ARRAY.format(**names, python=shlex.quote(sys.executable), module=MODULE))


def _ray(folders: Sequence[Path]) -> None:
    """Submit every job to the cluster at RAY_ADDRESS, and wait for all."""
    try:
        api: Any = importlib.import_module("ray.job_submission")
    except ImportError as error:
        raise ConfigError(RAY_MISSING) from error
    client = api.JobSubmissionClient(os.environ.get("RAY_ADDRESS", "http://127.0.0.1:8265"))
    running = {
        client.submit_job(entrypoint=shlex.join([sys.executable, "-m", MODULE, str(folder)])): folder
        for folder in folders
    }
    while running:
        for number, folder in list(running.items()):
            status = client.get_job_status(number)
            if not status.is_terminal():
                continue
            del running[number]
            if not (folder / RESULT).is_file():
                write_text(folder / LOG, str(client.get_job_logs(number)))
                failed(folder, 1)
        if running:
            time.sleep(RAY_SECONDS)
