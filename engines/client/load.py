"""Load a server: several clients at once, each sending its next request when the last one is answered."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from engines.client.address import Address, connect
from engines.client.protocol import Array, Client, ModelInfo, Parameter, Refused
from qdq.errors import ServeError


@dataclass(frozen=True)
class LoadSettings:
    """Settings of one load.

    Attributes:
        clients: requests that are under way at once.
        seconds: no request is sent later than this; those under way are waited for.
        timeout: seconds after which a request counts as failed.
        requests: at most this many in all; None is as many as fit into the time.
    """

    clients: int
    seconds: float
    timeout: float = 60.0
    requests: int | None = None


@dataclass(frozen=True)
class Call:
    """One request: number of its row, second it was sent at, seconds it took, and its outputs or its refusal."""

    row: int
    sent: float
    seconds: float
    outputs: Mapping[str, Array] | None
    status: int = 200
    message: str = ""


def run_load(
    address: Address,
    model: ModelInfo,
    feeds: Sequence[Mapping[str, Array]],
    settings: LoadSettings,
    outputs: Sequence[str] = (),
    parameters: Mapping[str, Parameter] | None = None,
) -> list[Call]:
    """Send `feeds` (inputs of one request each) again and again from `settings.clients` threads; every call, by time.

    Clients share one sequence of rows in which all rows come once, in an order of chance that is the same every time,
    before any comes again. Raises what a client raised that is no refusal.
    """
    turn = _turns(len(feeds), settings)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(address, settings.timeout)) for _ in range(settings.clients)]
        pool = stack.enter_context(ThreadPoolExecutor(settings.clients))
        started = time.perf_counter()

        def work(client: Client) -> list[Call]:
            mine = []
            while (row := turn(time.perf_counter() - started)) is not None:
                mine.append(_ask(client, model, feeds[row], (outputs, parameters), (row, started)))
            return mine

        found = list(pool.map(work, clients))
    return sorted((call for mine in found for call in mine), key=lambda call: call.sent)


def _turns(rows: int, settings: LoadSettings) -> Callable[[float], int | None]:
    """A function of the second that gives the next row to send, None when there is none."""
    lock, order, chance = threading.Lock(), list(range(rows)), random.Random(0)
    count = 0

    def turn(second: float) -> int | None:
        nonlocal count
        with lock:
            if second >= settings.seconds or (settings.requests is not None and count >= settings.requests):
                return None
            if count % rows == 0:
                chance.shuffle(order)
            count += 1
            return order[(count - 1) % rows]

    return turn


def _ask(
    client: Client,
    model: ModelInfo,
    feeds: Mapping[str, Array],
    wanted: tuple[Sequence[str], Mapping[str, Any] | None],
    when: tuple[int, float],
) -> Call:
    """One call; `when`: number of the row, and the load's start."""
    row, started = when
    sent = time.perf_counter()
    try:
        outputs = client.infer(model, feeds, *wanted)
    except Refused as error:
        return Call(row, sent - started, time.perf_counter() - sent, None, error.status, str(error))
    except ServeError as error:  # an answer that cannot be read
        return Call(row, sent - started, time.perf_counter() - sent, None, 500, str(error))
    return Call(row, sent - started, time.perf_counter() - sent, outputs)
