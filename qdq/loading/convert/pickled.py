"""Arrays out of a pickle that ``paddle.save`` wrote, without running anything of it.

A pickle calls what it names. Here it can name a dozen things, and each name leads to a stand-in of this file that takes
notes: not even numpy's own functions are called with what the file says.
"""

from __future__ import annotations

import pickle
import struct
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from qdq.errors import ModelError

NAMES = "StructuredToParameterName@@"  # a table of Paddle's own names beside the weights
SLICED = "UnpackBigParamInfor@@"  # parameters above 4 GB, in parts
BFLOAT16 = "u2"  # as Paddle hands it to numpy
KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", BFLOAT16, "b1")
DAMAGES = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError),
    *(MemoryError, RecursionError, ImportError, AssertionError, struct.error),
)
PADDLE = (
    "with Paddle: from safetensors.numpy import save_file; "
    "save_file({name: value.numpy() for name, value in paddle.load('model_state.pdparams').items()}, "
    "'model.safetensors')"
)


class _Type:
    """Notes on a numpy.dtype: its code such as f4, and its byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """Notes on a numpy.ndarray."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state[1:]  # shape, type, Fortran order, bytes

    def read(self) -> np.ndarray[Any, Any]:
        """Return the array, bfloat16 as float32. Raises ValueError unless the notes are those of plain numbers."""
        shape, kind, fortran, data = self.state
        if not isinstance(kind, _Type) or kind.code not in KINDS or kind.order not in "<>|=":
            raise ValueError("an array of other things than numbers")
        if not isinstance(data, bytes) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError("an array without bytes or with an impossible shape")
        flat = np.frombuffer(data, np.dtype((">" if kind.order == ">" else "<") + kind.code), prod(shape))
        array = flat.reshape(shape, order="F" if fortran else "C")
        if kind.code != BFLOAT16:
            return array.astype(kind.code)
        return (array.astype(np.uint32) << 16).view(np.float32)


def _buffer(data: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.state = (shape, kind, order == "F", bytes(data))
    return array


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes as {encoding}")
    return text.encode("latin1")


def _no_bytes(*arguments: object) -> bytes:
    """Protocol 2's form of no bytes at all: ``bytes()``."""
    if arguments:
        raise pickle.UnpicklingError("it calls bytes with arguments")
    return b""


def _tensor(name: str, values: dict[str, Any]) -> Any:
    """Paddle's form of a LoDTensor: the expression ``data``, evaluated among ``{"data": array}``."""
    if name != "data":
        raise pickle.UnpicklingError(f"it evaluates {name!r}")
    return values["data"]


# What a pickle may name -> what it gets
STAND_INS: dict[tuple[str, str], Any] = {
    ("builtins", "tuple"): tuple,
    ("__builtin__", "tuple"): tuple,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "eval"): _tensor,
    ("__builtin__", "eval"): _tensor,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _encoded,
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _buffer for core in ("core", "_core")},
}


class _Reader(pickle._Unpickler):
    """The unpickler in Python: the one in C takes all memory for a number that a file makes up (LONG_BINPUT)."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of saved weights")
        return STAND_INS[module, name]


def read_pdparams(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a ``.pdparams`` file by name, in both layouts of ``paddle.save``: plain, and (name, array).

    Raises ModelError for a file that names anything else than arrays, is damaged, or was not written by paddle.save.
    """
    try:
        with path.open("rb") as file:
            state = _Reader(file).load()
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__} in place of names and arrays")
        if SLICED in state:
            raise ValueError("it holds parameters above 4 GB, cut into parts")
        found = {}
        # Either the array itself, or a pair of Paddle's name for it and the array
        for name, value in state.items():
            if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
                value = value[1]
            if name != NAMES and isinstance(value, _Array):
                found[str(name)] = value.read()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
    except DAMAGES as error:
        raise ModelError(
            f"{path}: is not what paddle.save writes of a state_dict ({error}); save it again, or {PADDLE}"
        ) from error
    if not found:
        raise ModelError(f"{path}: holds no weights; give the model_state.pdparams of a model")
    return found
