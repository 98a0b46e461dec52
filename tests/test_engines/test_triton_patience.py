"""The wait for a server ends when nothing moves, not when the machine is slow."""

from __future__ import annotations

import pytest

from engines.triton.server import patience as module
from engines.triton.server.patience import Patience


class Machine:
    """A clock, and the CPU seconds of the process."""

    def __init__(self) -> None:
        self.now = self.worked = 0.0

    def passes(self, seconds: float, share: float = 0.0) -> None:
        """Let time pass, of which the process has a share of one core."""
        self.now += seconds
        self.worked += share * seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(module.time, "monotonic", lambda: found.now)
    monkeypatch.setattr(module, "cpu_seconds", lambda _: found.worked)
    return found


def test_a_process_that_does_nothing_is_given_up(machine: Machine) -> None:
    patience = Patience(1, 120)
    machine.passes(119)
    assert not patience.is_over()
    machine.passes(2, share=0.01)  # answers that it is not ready
    assert patience.is_over()


def test_one_that_gets_little_of_the_machine_is_not(machine: Machine) -> None:
    patience = Patience(1, 120)
    for _ in range(20):
        machine.passes(121, share=0.05)
        assert not patience.is_over()


def test_what_is_reached_begins_anew_and_work_without_it_ends(machine: Machine) -> None:
    patience = Patience(1, 120)
    machine.passes(119)
    patience.renew()
    machine.passes(119)
    assert not patience.is_over()
    for _ in range(4):
        machine.passes(121, share=1.0)
        assert not patience.is_over()
    machine.passes(121, share=1.0)  # 605 CPU seconds
    assert patience.is_over()
