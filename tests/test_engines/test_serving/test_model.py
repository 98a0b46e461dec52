"""The text model's part in a batch: who is refused hears of it first, and alone."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.serving import model as module
from engines.serving.backlog import Backlog
from engines.serving.form import FILE, TOKENIZER
from engines.serving.model import TextModel
from qdq.errors import BuildError

from .conftest import Forms

Events = list[tuple[str, Any]]


class Triton(SimpleNamespace):
    """Stand-in of the python backend's module; `events` are refusals and runs of the engine in their order."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

    class TritonError(SimpleNamespace):
        UNAVAILABLE, INTERNAL, INVALID_ARG = 503, 500, 400

        def __init__(self, message: str, code: int) -> None:
            super().__init__(message=message, code=code)

    class MetricFamily:
        COUNTER = 0

        def __init__(self, **_: Any) -> None:
            self.count = 0.0

        def Metric(self, labels: Any) -> Any:  # noqa: N802
            return SimpleNamespace(increment=lambda value: None)

    Tensor = staticmethod(lambda name, array: SimpleNamespace(name=name, array=array, as_numpy=lambda: array))

    def __init__(self, events: Events) -> None:
        super().__init__(events=events)

    @staticmethod
    def InferenceResponse(output_tensors: Any = (), error: Any = None) -> Any:  # noqa: N802
        return SimpleNamespace(tensors={one.name: one.array for one in output_tensors}, error=error)

    @staticmethod
    def get_input_tensor_by_name(request: Any, name: str) -> Any:
        return request.tensors.get(name)

    def request(self, *texts: str) -> Any:
        """A request of some rows."""

        def send(response: Any, flags: int) -> None:
            assert flags == self.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            self.events.append(("refused", response.error))

        return SimpleNamespace(
            tensors={"TEXT": self.Tensor("TEXT", np.array([[text.encode()] for text in texts], dtype=object))},
            parameters=lambda: "",
            requested_output_names=lambda: ["LABEL", "LOGITS", "TOKENS"],
            get_response_sender=lambda: SimpleNamespace(send=send),
        )


Opened = Callable[[], tuple[TextModel, Triton]]


@pytest.fixture
def opened(form: Forms, tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """`opened()`: a model whose engine answers a text's second id as its first logit, and 8 as the other."""
    triton = Triton([])

    def runner(feeds: Any) -> Any:
        ids = feeds["input_ids"]
        triton.events.append(("run", len(ids)))
        if (ids[:, 1] == 9).any():  # "small"
            raise BuildError("the engine is broken")
        return {"logits": np.stack([ids[:, 1], np.full(len(ids), 8)], axis=1).astype(np.float32)}

    def open_(*_: Any) -> Any:
        return runner

    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    monkeypatch.setattr(module, "open_runner", open_)
    (tmp_path / FILE).write_text(json.dumps(form(queue_size=0).as_json()), encoding="utf-8")
    shutil.copy(tokenizer_file, tmp_path / TOKENIZER)

    def made() -> tuple[TextModel, Triton]:
        found = TextModel(tmp_path, "tiny", {"parameters": {}, "max_batch_size": 4})
        triton.events.clear()  # the warm-up's
        return found, triton

    return made


def logits(answers: Sequence[Any]) -> list[Any]:
    return [None if answer is None else answer.tensors["LOGITS"][:, 0].tolist() for answer in answers]


def test_a_fault_is_told_before_the_engine_runs_for_the_others(opened: Opened) -> None:
    model, triton = opened()
    answers = model.execute([triton.request("the cat"), triton.request(""), triton.request("cat", "a dog")])
    (refused, error), *rest = triton.events
    assert (refused, error.code) == ("refused", 400) and "row 0: the text is empty" in error.message
    assert rest == [("run", 3)]
    assert logits(answers) == [[5], None, [6, 8]]
    assert answers[2].tensors["LABEL"].tolist() == [[b"yes"], [b"no"]]
    assert answers[2].tensors["TOKENS"].dtype == np.int32 and answers[2].tensors["TOKENS"].tolist() == [[3], [4]]


def test_requests_beyond_the_queue_are_told_so_before_the_engine_runs(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch that was more than half full, as many as wait too many; without any left the engine does not run."""
    model, triton = opened()
    requests = [triton.request("the cat") for _ in range(4)]
    for waiting, kept in ((1, 3), (9, 0)):
        monkeypatch.setattr(Backlog, "excess", lambda _, waiting=waiting: waiting)
        triton.events.clear()
        answers = model.execute(requests)
        refused = [error for kind, error in triton.events if kind == "refused"]
        assert [error.code for error in refused] == [503] * (4 - kept)
        assert triton.events[len(refused) :] == ([("run", kept)] if kept else [])
        assert logits(answers) == [[5]] * kept + [None] * (4 - kept)
    triton.events.clear()
    assert logits(model.execute(requests[:2])) == [[5], [5]]  # nobody was left waiting


def test_a_broken_engine_fails_those_only_who_were_not_refused(opened: Opened) -> None:
    model, triton = opened()
    answers = model.execute([triton.request("small"), triton.request("")])
    assert answers[0].error.code == 500 and "the engine is broken" in answers[0].error.message
    assert answers[1] is None and [kind for kind, _ in triton.events] == ["refused", "run"]
