"""A Triton repository of a plan without padding: two models, and what the one in front does with requests."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.packing import FILE
from engines.triton import TritonSettings, write_repository
from engines.triton.model_config import read_config
from engines.types import BuiltEngine, TensorInfo
from qdq.errors import DeployError

from .test_packing import ROWS, echo

VOCABULARY = 1000
SETTINGS = TritonSettings("tiny", "tensorrt", max_batch_size=8, tables={"input_ids": VOCABULARY})
FEEDS = {"input_ids": np.array([[5, 6, 7]]), "attention_mask": np.array([[1, 1, 1]])}
pytest.importorskip("tritonclient.grpc")
MessageToDict = pytest.importorskip("google.protobuf.json_format").MessageToDict


@pytest.fixture
def engine(tmp_path: Path) -> BuiltEngine:
    (tmp_path / "model.plan").write_bytes(b"plan")
    (tmp_path / FILE).write_text(json.dumps(asdict(ROWS)), encoding="utf-8")
    rows = {name: TensorInfo(name, "int32", ("rows", "sequence")) for name in ("input_ids", "segments", "positions")}
    texts = {name: TensorInfo(name, "int32", ("texts", "length")) for name in ("cells", "attention_mask")}
    inputs = {**rows, **texts, "first": TensorInfo("first", "int32", ("texts",))}
    outputs = (TensorInfo("ids", "float32", ("rows", "sequence")), TensorInfo("first_id", "float32", ("texts", 1)))
    return BuiltEngine("tensorrt", (tmp_path / "model.plan",), tuple(inputs[n] for n in ROWS.inputs), outputs, None, {})


@pytest.fixture
def repository(engine: BuiltEngine, tmp_path: Path) -> Path:
    write_repository(engine, SETTINGS, [FEEDS], tmp_path / "repository")
    return tmp_path / "repository"


def test_clients_see_a_padded_batch(repository: Path) -> None:
    front = read_config(repository / "tiny" / "config.pbtxt")
    assert (front.backend, front.platform, front.max_batch_size) == ("python", "", 8)
    assert {tensor.name: list(tensor.dims) for tensor in front.input} == {"input_ids": [-1], "attention_mask": [-1]}
    assert all(tensor.allow_ragged_batch for tensor in front.input)
    assert {tensor.name: list(tensor.dims) for tensor in front.output} == {"ids": [-1], "first_id": [1]}
    assert len(front.model_warmup) == 2 and front.HasField("dynamic_batching")
    assert sorted(path.name for path in (repository / "tiny" / "1").iterdir()) == [
        "ids.py",
        "model.py",
        FILE,
        "packing.py",
    ]


def test_the_plan_takes_rows_as_they_are(repository: Path) -> None:
    plan = read_config(repository / "tiny_plan" / "config.pbtxt")
    assert (plan.backend, plan.max_batch_size, plan.HasField("dynamic_batching")) == ("tensorrt", 0, False)
    dims = {tensor.name: list(tensor.dims) for tensor in plan.input}
    assert dims["input_ids"] == [-1, -1] and dims["first"] == [-1]
    assert (repository / "tiny_plan" / "1" / "model.plan").read_bytes() == b"plan"


def test_a_repository_is_replaced_but_no_foreign_one(engine: BuiltEngine, repository: Path) -> None:
    write_repository(engine, SETTINGS, [FEEDS], repository)
    (repository / "other").mkdir()
    with pytest.raises(DeployError, match="holds 'other'"):
        write_repository(engine, SETTINGS, [FEEDS], repository)


class Triton(SimpleNamespace):
    """Stand-in of Triton's module in which the plan's model echoes ids; it keeps what the plan was called with."""

    TRITONSERVER_MEMORY_CPU = 0

    def __init__(self) -> None:
        super().__init__(calls=[], failure="")

    @staticmethod
    def Tensor(name: str, array: Any) -> Any:  # noqa: N802
        return SimpleNamespace(name=name, as_numpy=lambda: array)

    @staticmethod
    def PreferredMemory(*_: Any) -> None:  # noqa: N802
        return None

    class TritonError:
        INVALID_ARG = 400

        def __init__(self, message: str, code: int = 500) -> None:
            self.code, self._message = code, message

        def message(self) -> str:
            return self._message

    @staticmethod
    def InferenceResponse(output_tensors: Any = (), error: Any = None) -> Any:  # noqa: N802
        return SimpleNamespace(tensors=output_tensors, error=lambda: error, has_error=lambda: error is not None)

    @staticmethod
    def get_input_tensor_by_name(request: Any, name: str) -> Any:
        return Triton.Tensor(name, request[name])

    @staticmethod
    def get_output_tensor_by_name(response: Any, name: str) -> Any:
        return next(tensor for tensor in response.tensors if tensor.name == name)

    def InferenceRequest(self, model_name: str, inputs: Any, **_: Any) -> Any:  # noqa: N802
        def run() -> Any:
            feeds = {tensor.name: tensor.as_numpy() for tensor in inputs}
            self.calls.append((model_name, feeds))
            if self.failure:
                return self.InferenceResponse(error=self.TritonError(self.failure))
            return self.InferenceResponse([self.Tensor(name, array) for name, array in echo(feeds).items()])

        return SimpleNamespace(exec=run)


@pytest.fixture
def front(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Triton]]:
    """The model in front, started by the stand-in."""
    triton, file = Triton(), repository / "tiny" / "1" / "model.py"
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    monkeypatch.setattr(sys, "path", list(sys.path))
    space: dict[str, Any] = {"__name__": "model", "__file__": str(file)}
    exec(compile(file.read_text(encoding="utf-8"), file.name, "exec"), space)
    model = space["TritonPythonModel"]()
    config = MessageToDict(read_config(file.parents[1] / "config.pbtxt"), preserving_proto_field_name=True)
    model.initialize({"model_name": "tiny", "model_config": json.dumps(config)})
    yield model, triton
    for name in ("packing", "ids"):
        sys.modules.pop(name, None)


def request(*lengths: int, width: int) -> dict[str, Any]:
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": np.arange(1, mask.size + 1).reshape(mask.shape) * mask, "attention_mask": mask}


def test_requests_of_all_lengths_share_one_call(front: tuple[Any, Triton]) -> None:
    model, triton = front
    requests = [request(3, 5, width=6), request(9, width=10), request(2, width=4)]
    answers = model.execute(requests)
    assert [(name, feeds["input_ids"].shape) for name, feeds in triton.calls] == [("tiny_plan", (2, 16))]
    assert all(array.dtype == np.int32 for array in triton.calls[0][1].values())
    for asked, answer in zip(requests, answers, strict=True):
        found = {tensor.name: tensor.as_numpy() for tensor in answer.tensors}
        np.testing.assert_array_equal(found["ids"], asked["input_ids"])
        np.testing.assert_array_equal(found["first_id"], asked["input_ids"][:, :1])


def test_more_texts_than_the_plan_takes_become_several_calls(front: tuple[Any, Triton]) -> None:
    model, triton = front
    assert len(model.execute([request(*[2] * 7, width=4)] * 3)) == 3
    assert [feeds["first"].shape for _, feeds in triton.calls] == [(7,)] * 3  # 12 at most


def test_a_request_that_does_not_fit_spoils_no_other(front: tuple[Any, Triton]) -> None:
    model, triton = front
    good, bad = model.execute([request(3, width=4), request(17, width=20)])
    assert not good.has_error() and "text 0 has 17 tokens, a row holds 16" in bad.error().message()
    assert bad.error().code == triton.TritonError.INVALID_ARG


@pytest.mark.parametrize("wrong", [-1, VOCABULARY])
def test_an_id_without_a_row_fails_alone(front: tuple[Any, Triton], wrong: int) -> None:
    model, triton = front
    requests = [request(3, 2, width=4) for _ in range(3)]
    requests[1]["input_ids"][1, 0] = wrong
    first, bad, last = model.execute(requests)
    assert not first.has_error() and not last.has_error() and len(triton.calls) == 1
    assert bad.error().message() == f"input_ids holds {wrong} at [1, 0]; the model has 0 to {VOCABULARY - 1}"
    assert bad.error().code == triton.TritonError.INVALID_ARG


def test_what_triton_says_of_the_plan_reaches_the_client(front: tuple[Any, Triton]) -> None:
    model, triton = front
    triton.failure = "out of memory"
    assert model.execute([request(3, width=4)])[0].error().message() == "tiny_plan: out of memory"


def test_an_engine_file_that_is_gone_is_named(engine: BuiltEngine, tmp_path: Path) -> None:
    gone = replace(engine, files=(engine.files[0].with_name("lost.plan"),))
    with pytest.raises(DeployError, match=r"lost\.plan is missing"):
        write_repository(gone, SETTINGS, [FEEDS], tmp_path / "repository")
