"""The server's own account: batches it formed, and, where it runs on this machine, the CPU time it spent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engines.client.address import Address

PROC = Path("/proc")
LISTEN = "0A"  # state of a listening socket in /proc/net/tcp
LOCAL = ("localhost", "127.0.0.1", "::1")
TICKS = os.sysconf("SC_CLK_TCK")


def batches_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Rows and executions between two statistics of a model, rows by batch size, and the mean batch (None for none)."""
    rows = _count(after, "inference_count") - _count(before, "inference_count")
    executions = _count(after, "execution_count") - _count(before, "execution_count")
    sizes = {size: count - _sizes(before).get(size, 0) for size, count in _sizes(after).items()}
    return {
        "rows": rows,
        "executions": executions,
        "mean_batch": rows / executions if executions else None,
        "executions_by_batch": {str(size): count for size, count in sorted(sizes.items()) if count},
    }


def _count(statistics: Mapping[str, Any], name: str) -> int:
    return int(statistics.get(name, 0))  # gRPC's JSON writes 64-bit numbers as text and leaves zeros out


def _sizes(statistics: Mapping[str, Any]) -> dict[int, int]:
    """Executions by batch size."""
    found = statistics.get("batch_stats", ())
    return {int(one["batch_size"]): int(one["compute_infer"].get("count", 0)) for one in found}


def local_server(address: Address) -> int | None:
    """Process id of the server behind an address of this machine; None for another machine, user or container."""
    if address.host not in LOCAL:
        return None
    wanted = {f"socket:[{inode}]" for inode in _listening(address.port)}
    if not wanted:
        return None
    for process in PROC.iterdir():
        if process.name.isdigit() and wanted & set(_open_files(process)):
            return int(process.name)
    return None


def _listening(port: int) -> Iterator[str]:
    """Inodes of the sockets that listen on a port."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (PROC / "net" / table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == LISTEN and int(words[1].rpartition(":")[2], 16) == port:
                    yield words[9]


def _open_files(process: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(entry.readlink())


def cpu_seconds(process: int) -> float | None:
    """CPU seconds that a process and all its descendants have used so far; None when it is gone."""
    if (own := _stat(process)) is None:
        return None
    return own[1] + sum(cpu_seconds(child) or 0.0 for child in _children(process))


def _children(process: int) -> list[int]:
    found = [(int(entry.name), _stat(int(entry.name))) for entry in PROC.iterdir() if entry.name.isdigit()]
    return [number for number, stat in found if stat is not None and stat[0] == process]


def _stat(process: int) -> tuple[int, float] | None:
    """Parent, and CPU seconds with those of children that have ended."""
    try:
        words = (PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(words[1]), sum(map(int, words[11:15])) / TICKS
