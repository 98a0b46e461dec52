"""The lock of a folder that one process at a time works in."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from qdq.base.artifacts import write_failure
from qdq.errors import WorkError

LOCK = ".lock"


@contextlib.contextmanager
def hold(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of a folder, which is made; the kernel releases it however the process ends.

    Raises WorkError while another process holds it, which is called `what`, DeployError when it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise write_failure(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkError(f"{folder}: {what} is working here; wait for it, or choose another folder") from None
        yield
