"""Threads never exceed what the machine, the affinity mask and the container's quota grant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.cores import available_cores, cpu_quota


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
