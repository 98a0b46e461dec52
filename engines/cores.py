"""How many threads this process can run at once: CPU affinity, the cgroup's CPU quota, and the physical cores.

A container limited to two CPUs of a 64-core host still sees 64 in /proc/cpuinfo; a runtime that starts 64 threads there
is throttled for most of every scheduling period.
"""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def available_cores(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> int:
    """CPUs this process may use, at least one: the smaller of its affinity and its CPU quota, rounded up.

    Rounded up because a quota of 1.5 CPUs is used in full by two threads only. The arguments exist for tests.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(cgroup, membership)
    return max(1, allowed if quota is None else min(allowed, -int(-quota // 1)))


def cpu_quota(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> float | None:
    """CPUs the control groups of this process grant, the tightest of the whole path; None without a limit.

    Source: the kernel's cgroup-v2 (``cpu.max``) and cgroup-v1 (``cpu.cfs_quota_us``) documentation.
    """
    quotas = []
    for folder in _folders(cgroup, membership):
        words = _read(folder / "cpu.max").split() or [
            _read(folder / "cpu.cfs_quota_us").strip(),
            _read(folder / "cpu.cfs_period_us").strip(),
        ]
        if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):  # else "max" or -1: no limit
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _folders(cgroup: Path, membership: Path) -> list[Path]:
    """The process's own groups and all above them; inside a container the root is often its own already."""
    found = [cgroup, cgroup / "cpu"]
    for line in _read(membership).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        base = cgroup if not controllers else cgroup / "cpu"
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = base / path.strip("/")
        while base != group and base in group.parents:
            found.append(group)
            group = group.parent
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
