"""Traces that a killed server leaves, found by its prefix: processes of its models, shared memory, its folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

PREFIX = "qdq_serve_"  # of shared memory and folders; 8 random hex digits follow, one server's own
PROCESS = "server.pid"
SHARED = Path("/dev/shm")
PROC = Path("/proc")


def note(folder: Path, pid: int) -> None:
    """Write down which process is the server of `folder`: its number and when the kernel started it."""
    (folder / PROCESS).write_text(f"{pid} {started(pid)}", encoding="utf-8")


def sweep() -> list[str]:
    """Clean away what servers of this user left that are no longer there; returns their prefixes."""
    gone = []
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError, ValueError):
            if folder.stat().st_uid != os.getuid():
                continue
            pid, since = (folder / PROCESS).read_text(encoding="utf-8").split()
            if started(int(pid)) != since:
                clean(folder.name)
                shutil.rmtree(folder, ignore_errors=True)
                gone.append(folder.name)
    return gone


def clean(prefix: str, seconds: float = 2.0) -> None:
    """End the model processes of the server with `prefix`, which has ended, and remove its shared memory.

    They end by themselves when they see that the server is gone; whoever has not after `seconds` is killed.
    """
    until = time.monotonic() + seconds
    while (left := processes(prefix)) and time.monotonic() < until:
        time.sleep(0.05)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for region in SHARED.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def processes(prefix: str) -> list[int]:
    """Model processes of the server with `prefix`: their command line names its shared memory."""
    found = []
    for folder in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            stub = words and words[0].endswith(b"triton_python_backend_stub")
            if stub and any(word.startswith(prefix.encode()) for word in words):
                found.append(int(folder.name))
    return found


def started(pid: int) -> str:
    """Clock ticks at which the kernel started a process, "" for one that is not there; proc(5), field 22 of stat."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
