"""Cores that this process may use: CPU affinity, the cgroup's CPU quota, NUMA nodes.

A container limited to two CPUs of a 64-core host still sees 64 in /proc/cpuinfo; a runtime that starts 64 threads there
is throttled for most of every scheduling period. Threads of one request that sit on two NUMA nodes wait for each
other's memory, so one request stays within a node.
"""

from __future__ import annotations

import os
from pathlib import Path

from qdq.errors import ConfigError

CGROUP = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
NODES = Path("/sys/devices/system/node")


def available_cores(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> int:
    """CPUs this process may use, at least one: the smaller of its affinity and its CPU quota, rounded up.

    Rounded up because a quota of 1.5 CPUs is used in full by two threads only. The arguments exist for tests.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(cgroup, membership)
    return max(1, allowed if quota is None else min(allowed, -int(-quota // 1)))


def numa_nodes(nodes: Path = NODES) -> tuple[tuple[int, ...], ...]:
    """CPUs this process may use by NUMA node, the node with most of them first; empty where the kernel names no nodes.

    Source: the kernel's Documentation/ABI/stable/sysfs-devices-node. The argument exists for tests.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    found = [_cpus(_read(node / "cpulist")) & allowed for node in sorted(nodes.glob("node[0-9]*"))]
    return tuple(tuple(sorted(cpus)) for cpus in sorted(found, key=len, reverse=True) if cpus)


def share_cores(
    mode: str, threads: int, streams: int, cores: int, nodes: tuple[tuple[int, ...], ...]
) -> tuple[int, int]:
    """(threads of a request, requests at once) in `mode` (latency or throughput); 0 asks for the default.

    Latency: one request on all cores of a NUMA node. Throughput: as many requests as fit, one core each unless told
    otherwise. Raises ConfigError when they would need more cores than there are.
    """
    largest = min(cores, len(nodes[0])) if nodes else cores
    if mode == "latency":
        if streams > 1:
            raise ConfigError(
                f"--streams: {streams} requests at once are --mode throughput; in latency mode one has all threads"
            )
        threads, streams = threads or largest, 1
    else:
        threads = threads or (min(largest, max(1, cores // streams)) if streams else 1)
        streams = streams or max(1, cores // threads)
    if threads * streams > cores:
        asked = f"--threads: {threads}" if streams == 1 else f"--streams: {streams} with {threads} thread(s) each"
        raise ConfigError(f"{asked} is more than the {cores} core(s) this process may use; give less, or leave it out")
    return threads, streams


def _cpus(text: str) -> set[int]:
    """The kernel's list format: ``0-3,8``."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            found |= set(range(int(first), int(last or first) + 1))
    return found


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
