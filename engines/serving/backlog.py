"""Limit of the requests that wait for a model, read from the server's own count of them.

Triton has such a limit (`default_queue_policy.max_queue_size`), but with it, or with a timeout, its batcher no longer
prepares a batch while the only instance is busy: it waits for the instance on a condition that nobody but a new request
signals, and looks by itself every half second (triton-inference-server/core, r24.10 and 26.05:
`PriorityQueue::SupportPrefetching`, `DynamicBatchScheduler::WaitForPayloadSlotAvailable`). When all clients wait for an
answer, none comes for half a second. So the queue has no limit of Triton's, and the model keeps it.
"""

from __future__ import annotations

import os
import re
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.serving.fault import Fault

WAITING = "nv_inference_pending_request_count"
SECONDS = 1.0  # for one reading, which takes a millisecond
ANY = ("", "0.0.0.0", "::", "[::]")  # addresses a server listens at, but that nobody can ask


class Busy(Fault):
    """A request that is refused because too many wait; the server says so with UNAVAILABLE (HTTP 503)."""


class Backlog:
    """The requests that wait at this process's server for one model."""

    def __init__(self, triton: Any, model: str, most: int, server: Sequence[str] | None = None) -> None:
        """Keep the limit `most`, 0 for none; `server` is the server's command line, by default the parent process's."""
        self._triton, self._most = triton, most
        self._count = re.compile(rf'^{WAITING}{{[^}}]*model="{re.escape(model)}"[^}}]*}} (\S+)$', re.MULTILINE)
        self._url = metrics_url(_parent() if server is None else server)

    def excess(self) -> int:
        """Requests that wait beyond the limit. 0 without a limit, and, said once, where the server has no metrics."""
        if not self._most or self._url is None:
            return 0
        try:
            with urllib.request.urlopen(self._url, timeout=SECONDS) as answer:  # our own server's http address
                text = answer.read().decode()
        except (OSError, ValueError) as error:
            self._triton.Logger.log_warn(f"no limit of the queue: {self._url} says nothing of requests ({error})")
            self._url = None
            return 0
        return max(0, int(sum(map(float, self._count.findall(text)))) - self._most)

    def refuse(self, waiting: int) -> Busy:
        """The refusal of one of `waiting` requests that are too many."""
        return Busy(
            f"the queue is full: {self._most + waiting} requests wait, {self._most} may (parameter queue_size of "
            "config.pbtxt); send it again later"
        )


def metrics_url(server: Sequence[str]) -> str | None:
    """Address of the metrics of a tritonserver by its command line, None when it gives none."""
    options = _options(server)
    if options.get("allow-metrics", "true").lower() in ("false", "0"):
        return None
    host = options.get("metrics-address", options.get("http-address", ""))
    return f"http://{'127.0.0.1' if host in ANY else host}:{options.get('metrics-port', '8002')}/metrics"


def _options(words: Sequence[str]) -> dict[str, str]:
    """Values of ``--name=value`` and of ``--name value``."""
    found = {}
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name] = value if equals else after
    return found


def _parent() -> Sequence[str]:
    """Command line of the process that started this one: the server, whose python backend it is."""
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8").split("\0")
    except OSError:
        return ()
