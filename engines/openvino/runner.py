"""Run an OpenVINO engine (IR or ONNX file)."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from engines.cores import available_cores
from engines.interface import feeds_for
from engines.openvino.build import OpenVINOSettings, open_core, reason
from engines.openvino.reading import read_network
from qdq.base.types import Feeds, Outputs
from qdq.errors import BuildError

PIECE_TOKENS = 1280  # of a batch that is cut: the activations of one block then stay near a core's own cache


class OpenVINORunner:
    """A compiled model on this CPU; call it with feeds of any batch and sequence, from as many threads at a time as
    `OpenVINOSettings.streams` says (from one when it is 0).

    With `OpenVINOSettings.shape` it compiles a static variant for that shape, and cuts a large batch into equal pieces
    that run side by side, one per core: the cores then never wait for each other inside a layer, and what a layer
    writes is still in the cache when the next one reads it. With streams, the cores run whole requests instead.
    """

    def __init__(self, model: Path, settings: OpenVINOSettings) -> None:
        """Raises BuildError when OpenVINO cannot load `model` or the CPU it was built for sums in another way, and
        Unavailable when openvino is not installed.
        """
        self._core, self._model, self._settings = open_core(), model, settings
        try:
            self._network = read_network(self._core, model, settings.sums).model
        except RuntimeError as error:
            raise BuildError(f"OpenVINO cannot load {model}: {reason(error)}; build it again") from error
        self._ranks = {port.get_any_name(): len(port.get_partial_shape()) for port in self._network.inputs}
        # Named before compiling, which gives an output the names of inner tensors too, in no fixed order.
        self._outputs = tuple(port.get_any_name() for port in self._network.outputs)
        self._compiled: dict[tuple[int, ...] | None, _Whole | _Pieces] = {}
        self._compiling = threading.Lock()
        self._requests(settings.shape)

    def __call__(self, feeds: Feeds) -> Outputs:
        """Feeds as the graph names them; returns float32 copies. Raises BuildError when the batch cannot be run."""
        wanted = feeds_for(self._ranks, feeds)
        shape = next(iter(wanted.values())).shape
        requests = self._requests(shape if shape == self._settings.shape else None)
        try:
            results = requests.infer(wanted)
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in wanted.items())
            raise BuildError(f"OpenVINO cannot run a batch of {shapes}: {reason(error)}") from error
        return dict(zip(self._outputs, results, strict=True))

    def _requests(self, shape: tuple[int, ...] | None) -> _Whole | _Pieces:
        """Requests for the settings' shape, or for all other shapes (None); compiled when first needed."""
        with self._compiling:
            if shape not in self._compiled:
                try:
                    self._compiled[shape] = self._compile(shape)
                except RuntimeError as error:
                    raise BuildError(f"OpenVINO cannot load {self._model}: {reason(error)}; build it again") from error
            return self._compiled[shape]

    def _compile(self, shape: tuple[int, ...] | None) -> _Whole | _Pieces:
        network, properties = self._network, self._settings.properties()
        piece, count = 0, max(1, self._settings.streams)
        # A known shape without streams: one piece per core at a time.
        if shape is not None and not self._settings.streams:
            threads = self._settings.threads or available_cores()
            piece = piece_of(shape, threads)
            count = min(threads, shape[0] // piece)
            properties["NUM_STREAMS"] = count
        if shape is not None:
            network = network.clone()
            network.reshape({name: [piece or shape[0], *shape[1:]] for name in self._ranks})
        compiled = self._core.compile_model(network, "CPU", properties)
        requests = [compiled.create_infer_request() for _ in range(count)]
        return _Pieces(requests, piece) if shape is not None and 0 < piece < shape[0] else _Whole(requests)


def piece_of(shape: tuple[int, ...], threads: int) -> int:
    """Rows of the pieces a batch of `shape` is cut into: the most that share it evenly among `threads` and hold at
    most PIECE_TOKENS tokens; the whole batch when no size does.
    """
    batch, tokens = shape[0], int(np.prod(shape[1:]))
    fitting = [rows for rows in range(1, batch + 1) if batch % (rows * threads) == 0 and rows * tokens <= PIECE_TOKENS]
    return max(fitting, default=batch) if threads > 1 else batch


class _Whole:
    """Infer requests that take whole batches, for callers in as many threads; each call takes a free one."""

    def __init__(self, requests: Iterable[Any]) -> None:
        self._free: SimpleQueue[Any] = SimpleQueue()
        for request in requests:
            self._free.put(request)

    def infer(self, wanted: Mapping[str, Any]) -> list[Any]:
        """Every output as a float32 array of its own."""
        request = self._free.get()
        try:
            request.infer(wanted)
            return _results(request)
        finally:
            self._free.put(request)


@dataclass(frozen=True)
class _Pieces:
    """Infer requests that run side by side, each on `piece` rows of the batch at a time."""

    requests: Sequence[Any]
    piece: int

    def infer(self, wanted: Mapping[str, Any]) -> list[Any]:
        """Every output as a float32 array of its own."""
        starts = range(0, len(next(iter(wanted.values()))), self.piece)
        parts: list[list[Any]] = []
        for turn, start in enumerate(starts):
            request = self.requests[turn % len(self.requests)]
            if turn >= len(self.requests):  # it still holds an earlier piece
                request.wait()
                parts.append(_results(request))
            request.start_async({name: array[start : start + self.piece] for name, array in wanted.items()})
        for turn in range(len(parts), len(starts)):
            request = self.requests[turn % len(self.requests)]
            request.wait()
            parts.append(_results(request))
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def _results(request: Any) -> list[Any]:
    return [np.array(tensor.data, dtype=np.float32) for tensor in request.output_tensors]
