"""Several requests side by side, as a loaded server has them; throughput mode is measured with it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from engines.types import Runner
from qdq.base.types import Feeds, Outputs


class InFlight:
    """A runner that answers a batch by running it `streams` times side by side, each in a thread of its own.

    The runner must take that many callers at once. A call ends when the last request does; its outputs are one
    request's, since all of them are of the same batch.
    """

    def __init__(self, run: Runner, streams: int) -> None:
        self._run, self._streams = run, streams
        self._pool = ThreadPoolExecutor(streams, thread_name_prefix="stream")

    def __call__(self, feeds: Feeds) -> Outputs:
        """Feeds of one batch. Raises what the runner raises."""
        first, *_ = self._pool.map(self._run, [feeds] * self._streams)  # all of them: the last one ends the call
        return first
