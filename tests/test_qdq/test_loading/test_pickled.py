"""Paddle's pickled weights: read without executing anything, or refused."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdq.errors import ModelError
from qdq.loading.convert.pickled import read_pdparams

Array = np.ndarray[Any, Any]


class Named:
    """Pickled as newer Paddle pickles a tensor: ``tuple((name, array))``."""

    def __init__(self, name: str, array: Array) -> None:
        self.name, self.array = name, array

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, ((self.name, self.array),)


class Evaluated:
    """Pickled as Paddle pickles a LoDTensor: ``eval("data", {"data": array})``."""

    def __init__(self, array: Array, expression: str = "data") -> None:
        self.array, self.expression = array, expression

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (self.expression, {"data": self.array})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_both_layouts_of_every_protocol_are_read(protocol: int, tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        "c": np.array([1.5, -2], np.float16),
        "d": np.array(3.0, np.float32),
        "e": np.zeros((0, 4), np.float32),
        "f": np.arange(3, dtype=">f4"),
    }
    for number, wrap in enumerate((lambda name, array: array, Named, lambda name, array: Evaluated(array))):
        path = tmp_path / f"{number}.pdparams"
        state: dict[str, Any] = {name: wrap(name, array) for name, array in arrays.items()}
        path.write_bytes(pickle.dumps({**state, "step": 3, "names": ["x"]}, protocol=protocol))
        found = read_pdparams(path)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
    path.write_bytes(pickle.dumps({"a": np.array([0x3FC0, 0xC000], np.uint16)}, protocol=protocol))  # bfloat16
    np.testing.assert_array_equal(read_pdparams(path)["a"], np.array([1.5, -2], np.float32))


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def evil(trace: Path) -> Iterator[tuple[str, Any, str]]:
    code = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    yield "call", {"a": Command(trace)}, "it names pathlib"
    yield "eval", {"a": Evaluated(np.zeros(2), code)}, "it evaluates"
    yield "objects", {"a": np.array([Command(trace)], dtype=object)}, "it names pathlib"
    yield "strings", {"a": np.array(["x"])}, "an array of other things than numbers"
    yield "list", [np.zeros(2)], "it holds a list in place of names and arrays"
    yield "sliced", {"UnpackBigParamInfor@@": {}}, "parameters above 4 GB"


def test_a_file_that_runs_code_or_is_damaged_is_refused_and_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "ran", tmp_path / "model_state.pdparams"
    for _, value, message in evil(trace):
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(ModelError, match=message):
            read_pdparams(path)
        assert not trace.exists()
    whole = pickle.dumps({"a": np.zeros(64, np.float32)})
    for cut in range(0, len(whole) - 1, 3):
        path.write_bytes(whole[:cut])
        with pytest.raises(ModelError, match=r"is not what paddle\.save writes.*with Paddle: from safetensors"):
            read_pdparams(path)
    path.write_bytes(pickle.dumps({"step": 1}))
    with pytest.raises(ModelError, match="holds no weights"):
        read_pdparams(path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_mutated_file_is_read_or_refused(protocol: int, tmp_path: Path) -> None:
    whole = pickle.dumps({"a": np.zeros(4, np.float32), "b": Named("x", np.ones((2, 3)))}, protocol=protocol)
    path, random, refused = tmp_path / "model_state.pdparams", np.random.default_rng(protocol), 0
    for _ in range(400):
        mutated = bytearray(whole)
        for place in random.integers(len(whole), size=random.integers(1, 4)):
            mutated[place] = random.integers(256)
        path.write_bytes(mutated)
        try:
            read_pdparams(path)
        except ModelError:
            refused += 1
    assert refused > 100
