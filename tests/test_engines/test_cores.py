"""Threads never exceed what the machine, the affinity mask and the container's quota grant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.cores import available_cores, cpu_quota, numa_nodes, share_cores
from qdq.errors import ConfigError


def groups(root: Path, files: dict[str, str], membership: str = "0::/\n") -> tuple[Path, Path]:
    for name, text in files.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "self").write_text(membership)
    return root / "cgroup", root / "self"


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({}, "", None),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "max 100000\n"}, "0::/a/b\n", 4.0),
        ({"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "200000 100000\n"}, "0::/a/b\n", 2.0),
        ({"a/cpu.max": "400000 100000\n"}, "0::/other\n", None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "3:cpu,cpuacct:/\n", 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "3:cpu,cpuacct:/\n", None),
        ({"cpu/x/cpu.cfs_quota_us": "300000\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, "3:cpu:/x\n4:memory:/y\n", 3.0),
        ({"cpu.max": "nonsense\n"}, "strange line\n", None),
    ],
)
def test_quota(tmp_path: Path, files: dict[str, str], membership: str, expected: float | None) -> None:
    assert cpu_quota(*groups(tmp_path, files, membership)) == expected


@pytest.mark.parametrize(("quota", "expected"), [("50000", 1), ("100000", 1), ("150000", 2), ("9000000", None)])
def test_quota_and_affinity_both_limit(tmp_path: Path, quota: str, expected: int | None) -> None:
    """Rounded up, never below one, never above the affinity mask."""
    allowed = len(os.sched_getaffinity(0))
    found = available_cores(*groups(tmp_path, {"cpu.max": f"{quota} 100000\n"}))
    assert found == min(allowed, expected or allowed)


def test_affinity_counts() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_numa_nodes_hold_the_cpus_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 5, 6, 9}, raising=False)
    for node, cpus in (("node0", "0-3,8\n"), ("node1", "4-7,9\n"), ("node2", "\n"), ("node10", "10-11\n")):
        (tmp_path / node).mkdir()
        (tmp_path / node / "cpulist").write_text(cpus)
    assert numa_nodes(tmp_path) == ((4, 5, 6, 9), (1,))
    assert numa_nodes(tmp_path / "none") == ()


TWO = (tuple(range(8)), tuple(range(8, 16)))


@pytest.mark.parametrize(
    ("mode", "threads", "streams", "cores", "nodes", "expected"),
    [
        ("latency", 0, 0, 4, (), (4, 1)),
        ("latency", 0, 0, 16, TWO, (8, 1)),  # one node
        ("latency", 0, 0, 3, TWO, (3, 1)),  # a quota below the node
        ("latency", 16, 1, 16, TWO, (16, 1)),  # asked for
        ("throughput", 0, 0, 4, (), (1, 4)),
        ("throughput", 4, 0, 16, TWO, (4, 4)),
        ("throughput", 0, 3, 16, TWO, (5, 3)),
        ("throughput", 0, 1, 16, TWO, (8, 1)),
        ("throughput", 3, 2, 6, (), (3, 2)),
    ],
)
def test_requests_and_their_threads_fit_the_cores(
    mode: str, threads: int, streams: int, cores: int, nodes: tuple[tuple[int, ...], ...], expected: tuple[int, int]
) -> None:
    assert share_cores(mode, threads, streams, cores, nodes) == expected


@pytest.mark.parametrize(
    ("mode", "threads", "streams", "message"),
    [
        ("latency", 5, 0, r"--threads: 5 is more than the 4 core\(s\)"),
        ("latency", 0, 2, "--streams: 2 requests at once are --mode throughput"),
        ("throughput", 2, 3, r"--streams: 3 with 2 thread\(s\) each is more than the 4 core\(s\)"),
        ("throughput", 0, 5, r"--streams: 5 with 1 thread\(s\) each is more than the 4 core\(s\)"),
    ],
)
def test_more_threads_than_cores_are_refused(mode: str, threads: int, streams: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        share_cores(mode, threads, streams, 4, ())
