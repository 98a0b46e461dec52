"""Run an OpenVINO engine (IR or ONNX file)."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines.cores import available_cores
from engines.interface import feeds_for
from engines.openvino.build import OpenVINOSettings, open_core, reason
from engines.openvino.packing import is_packed, take_out_packing, token_outputs
from engines.openvino.reading import read_network
from engines.pieces import MASK, Piece, equal_pieces, filled, piece_of, sorted_pieces
from qdq.base.types import Feeds, Outputs
from qdq.errors import BuildError

Form = Literal["static", "pieces", "whole"]


class OpenVINORunner:
    """A compiled model on this CPU; call it with feeds of any batch and sequence, from as many threads at a time as
    `OpenVINOSettings.streams` says (from one when it is 0).

    It runs a batch in the form that was measured to be fastest for its kind (`engines.crossover`), and compiles each
    form when the first such batch comes:

    * *whole*: the graph as it is, of any shape, on all threads.
    * *static*: compiled for `OpenVINOSettings.shape`; a large batch is cut into equal pieces that run side by side, one
      per core. The cores then never wait for each other inside a layer, and what a layer writes is still in the cache
      when the next one reads it. A packed graph runs so without its packing, when hardly anything is padding.
    * *pieces*: a batch of a packed graph, sorted by length and cut into pieces that each end with their own longest
      text and run side by side.

    With streams, the cores run whole requests instead.
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
        self._packed = is_packed(self._network) and MASK in self._ranks
        self._by_token = token_outputs(self._network)
        self._threads = settings.threads or available_cores()
        self._compiled: dict[Form, _Whole | _Pieces] = {}
        self._compiling = threading.Lock()
        if not (self._packed and settings.shape):  # else the first batch shows which form is needed
            self._requests("static" if settings.shape else "whole")

    def __call__(self, feeds: Feeds) -> Outputs:
        """Feeds as the graph names them; returns float32 copies. Raises BuildError when the batch cannot be run."""
        wanted = feeds_for(self._ranks, feeds)
        form = self._form(wanted)
        requests = self._requests(form)
        try:
            results = requests.infer(wanted, self._cut(form, wanted))
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in wanted.items())
            raise BuildError(f"OpenVINO cannot run a batch of {shapes}: {reason(error)}") from error
        return dict(zip(self._outputs, results, strict=True))

    def _form(self, wanted: Mapping[str, NDArray[Any]]) -> Form:
        """The form that is fastest for a batch."""
        shape = next(iter(wanted.values())).shape
        if shape == self._settings.shape and (not self._packed or filled(wanted[MASK]) >= self._settings.full):
            return "static"
        many = shape[0] >= 2 * self._threads and self._threads > 1
        return "pieces" if self._packed and many and not self._settings.streams else "whole"

    def _cut(self, form: Form, wanted: Mapping[str, NDArray[Any]]) -> Sequence[Piece]:
        if form == "pieces":
            return sorted_pieces(wanted[MASK], self._threads)
        shape = next(iter(wanted.values())).shape
        return equal_pieces(shape, self._piece() if form == "static" else shape[0])

    def _piece(self) -> int:
        """Rows of a static piece: those of the whole batch, when callers run several at once."""
        shape = self._settings.shape or (0,)
        return shape[0] if self._settings.streams else piece_of(shape, self._threads)

    def _requests(self, form: Form) -> _Whole | _Pieces:
        """Requests for one form; compiled when first needed."""
        with self._compiling:
            if form not in self._compiled:
                try:
                    self._compiled[form] = self._compile(form)
                except RuntimeError as error:
                    raise BuildError(f"OpenVINO cannot load {self._model}: {reason(error)}; build it again") from error
            return self._compiled[form]

    def _compile(self, form: Form) -> _Whole | _Pieces:
        network, properties, shape = self._network, self._settings.properties(), self._settings.shape
        count = max(1, self._settings.streams)
        # Without streams, one piece per core at a time.
        if form == "pieces":
            count = self._threads
        elif form == "static" and shape is not None:
            piece = self._piece()
            if not self._settings.streams:
                count = min(self._threads, shape[0] // piece)
            network = network.clone()
            network.reshape({name: [piece, *shape[1:]] for name in self._ranks})
            if self._packed:
                take_out_packing(network, (piece, *shape[1:]))
        if form != "whole" and not self._settings.streams:
            properties["NUM_STREAMS"] = count
        compiled = self._core.compile_model(network, "CPU", properties)
        requests = [compiled.create_infer_request() for _ in range(count)]
        whole = form == "whole" or (form == "static" and shape is not None and self._piece() == shape[0])
        return _Whole(requests) if whole else _Pieces(requests, self._by_token)


class _Whole:
    """Infer requests that take whole batches, for callers in as many threads; each call takes a free one."""

    def __init__(self, requests: Iterable[Any]) -> None:
        self._free: SimpleQueue[Any] = SimpleQueue()
        for request in requests:
            self._free.put(request)

    def infer(self, wanted: Mapping[str, Any], _pieces: Sequence[Piece]) -> list[Any]:
        """Every output as a float32 array of its own."""
        request = self._free.get()
        try:
            request.infer(wanted)
            return _results(request)
        finally:
            self._free.put(request)


@dataclass(frozen=True)
class _Pieces:
    """Infer requests that run side by side, each on one piece of the batch at a time."""

    requests: Sequence[Any]
    by_token: frozenset[int]  # places of outputs whose second axis is the sequence

    def infer(self, wanted: Mapping[str, NDArray[Any]], pieces: Sequence[Piece]) -> list[Any]:
        """Every output as a float32 array of its own, rows in the order of the batch."""
        shape = next(iter(wanted.values())).shape
        busy: dict[int, Piece] = {}  # request -> the piece it holds
        until = [0] * len(self.requests)  # tokens each has had: who has had the fewest is free first
        outputs: list[NDArray[Any]] = []
        for piece in pieces:
            turn = until.index(min(until))
            self._collect(turn, busy, shape, outputs)
            self.requests[turn].start_async({name: piece.of(array) for name, array in wanted.items()})
            busy[turn] = piece
            until[turn] += piece.tokens
        for turn in sorted(busy, key=until.__getitem__):
            self._collect(turn, busy, shape, outputs)
        return outputs

    def _collect(self, turn: int, busy: dict[int, Piece], shape: tuple[int, ...], outputs: list[NDArray[Any]]) -> None:
        """Wait for a request, and put the results of the piece it held where they belong."""
        piece = busy.pop(turn, None)
        if piece is None:
            return
        self.requests[turn].wait()
        for place, tensor in enumerate(self.requests[turn].output_tensors):
            values, by_token = tensor.data, place in self.by_token
            if place == len(outputs):
                whole = (shape[0], shape[-1], *values.shape[2:]) if by_token else (shape[0], *values.shape[1:])
                outputs.append(np.zeros(whole, np.float32))
            if by_token:
                outputs[place][piece.rows, : piece.columns] = values
            else:
                outputs[place][piece.rows] = values


def _results(request: Any) -> list[Any]:
    return [np.array(tensor.data, dtype=np.float32) for tensor in request.output_tensors]
