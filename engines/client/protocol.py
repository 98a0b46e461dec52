"""The client side of the KServe v2 protocol with Triton's extensions: types that both transports share.

Tensors travel as raw bytes in both: little-endian numbers, and strings as UTF-8 behind their length in four bytes
(github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from qdq.errors import ServeError

Array = NDArray[Any]
Parameter = str | int | bool
STRING = "BYTES"
UNREACHABLE, TIMED_OUT = 0, 504  # of `Refused.status`: no server answered, and one did not answer in time
DTYPES: Mapping[str, str] = {
    "BOOL": "?",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}


class Refused(ServeError):
    """A request without an answer; `status` is HTTP's, in gRPC the one that Triton's HTTP would have given.

    400 the request is wrong, 404 no such model, 503 the queue is full or the model is away, 500 a fault of the server,
    TIMED_OUT, and UNREACHABLE when the connection was refused or broke.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Tensor:
    """An input or output of a served model. `shape` is the request's, batch included; -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelInfo:
    """A served model as its metadata describe it."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def input(self, name: str) -> Tensor | None:
        """The input of that name."""
        return next((tensor for tensor in self.inputs if tensor.name == name), None)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of all outputs."""
        return tuple(tensor.name for tensor in self.outputs)


class Client(Protocol):
    """A connection to one server, for one thread at a time. Every method raises Refused."""

    def ready_models(self) -> tuple[str, ...]:
        """Names of the models that are loaded and ready, sorted."""
        ...

    def describe(self, model: str) -> ModelInfo:
        """Inputs and outputs of a model."""
        ...

    def infer(
        self,
        model: ModelInfo,
        feeds: Mapping[str, Array],
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
    ) -> dict[str, Array]:
        """Outputs by name (all of them when none is named) for one request; strings are arrays of str."""
        ...

    def statistics(self, model: str) -> dict[str, Any]:
        """The server's statistics of a model, as its HTTP interface writes them."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def to_bytes(array: Array, datatype: str) -> bytes:
    """A tensor's raw bytes in row-major order. Raises ServeError for a type the protocol lacks."""
    if datatype == STRING:
        texts = [str(item).encode("utf-8", "surrogatepass") for item in array.reshape(-1).tolist()]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return np.ascontiguousarray(array, dtype=_dtype(datatype)).tobytes()


def from_bytes(data: bytes, datatype: str, shape: Sequence[int]) -> Array:
    """An array of `shape` from its raw bytes. Raises ServeError when they do not fit."""
    if datatype == STRING:
        found, at = [], 0
        while at < len(data):
            (size,) = struct.unpack_from("<I", data, at)
            found.append(data[at + 4 : at + 4 + size].decode("utf-8"))
            at += 4 + size
        values: Array = np.array(found, dtype=object)
    else:
        values = np.frombuffer(data, dtype=_dtype(datatype))
    if values.size != prod(shape):
        raise ServeError(f"the server sent {values.size} values for a {datatype} tensor of shape {list(shape)}")
    return values.reshape(tuple(shape))


def _dtype(datatype: str) -> str:
    if datatype not in DTYPES:
        raise ServeError(f"tensors of type {datatype} cannot be sent or read; known are {', '.join(DTYPES)}, {STRING}")
    return DTYPES[datatype]
