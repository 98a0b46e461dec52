"""Calibration on several processes: each runs a share of the forwards, and all end with everybody's statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import distributed

from qdq.calibrate.calibrators import HistogramCalibrator
from qdq.calibrate.rebatch import MicroBatches


def place() -> tuple[int, int]:
    """(rank, processes) of the running process group; (0, 1) without one."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def share(plan: MicroBatches) -> MicroBatches:
    """The forwards of this process: every n-th one, whole, so that its result does not depend on the processes."""
    rank, processes = place()
    return plan if processes == 1 else replace(plan, forwards=plan.forwards[rank::processes])


def merged(calibrators: Mapping[str, HistogramCalibrator]) -> dict[str, HistogramCalibrator]:
    """Return the statistics of all processes by point, the same on every process.

    Maxima and counts merge to exactly those of a single process, in any order.
    """
    _, processes = place()
    if processes == 1:
        return dict(calibrators)
    gathered: list[Any] = [None] * processes
    distributed.all_gather_object(gathered, dict(calibrators))
    first: dict[str, HistogramCalibrator] = gathered[0]
    for others in gathered[1:]:
        for name, calibrator in first.items():
            calibrator.merge(others[name])
    return first


def total(*counts: int) -> list[int]:
    """Sums of `counts` over all processes."""
    if place()[1] == 1:
        return list(counts)
    summed = torch.tensor(counts, dtype=torch.int64)
    distributed.all_reduce(summed)
    return [int(count) for count in summed]
