"""The text model of a Triton repository: requests of strings in, answers out, batched over all requests at hand."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.serving import requests as reading
from engines.serving.answers import STRING, Answer, answer, outputs_of, runs_of
from engines.serving.backlog import Backlog, Busy
from engines.serving.batches import Row, run
from engines.serving.fault import Fault
from engines.serving.form import FILE, TOKENIZER, TextForm
from engines.serving.metrics import Metrics
from engines.serving.requests import Asked, inputs_of
from engines.serving.runner import PlanRunner, open_runner
from engines.serving.tokens import Tokenizer as Tokenizer
from engines.serving.tokens import Tokens
from qdq.errors import QdqError

NUMPY = {"TYPE_FP32": np.float32, "TYPE_INT32": np.int32}


class TextModel:
    """One instance; `execute` gets the requests that Triton batched and answers each, or says what is wrong with it."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        """Open what lies in the version folder. Raises ValueError or QdqError naming the file that cannot be used."""
        self._triton: Any = importlib.import_module("triton_python_backend_utils")
        self._form = TextForm.read(folder / FILE).changed(config["parameters"])
        self._tokenizer = Tokenizer(folder / TOKENIZER, self._form)
        self._runner = open_runner(folder, self._form, self._triton, name)
        self._most = max(1, int(config["max_batch_size"]))
        self._inputs = [item.name for item in inputs_of(self._form)]
        self._outputs = outputs_of(self._form)
        self._all = {output.name for output in self._outputs}
        self._large = {output.name for output in self._outputs if output.on_request}
        self._metrics = Metrics(self._triton, name)
        self._backlog = Backlog(self._triton, name, self._form.queue_size)
        if not isinstance(self._runner, PlanRunner):  # a plan's model may not be there yet, and warms up itself
            self._warm_up()

    def _warm_up(self) -> None:
        """Run one batch of the sample and a whole one, so that no client waits for kernels to be prepared."""
        tensors = {name: np.array([texts], dtype=object) for name, texts in self._form.sample.items()}
        sample = self._tokenizer.encode(reading.read(self._form, tensors, "").samples[0])
        if not any(isinstance(text, Fault) for text in sample):
            for size in (1, self._most):
                run(self._runner, self._form, [sample] * size, self._most)  # type: ignore[list-item]  # no fault in it

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Responses in order; None for a request that is refused, which is told so before the engine runs."""
        asked = self._admitted([self._read(request) for request in requests])
        encoded = self._encode(asked)
        self._refuse(requests, encoded)
        fitting = [samples for samples in encoded if not isinstance(samples, Fault)]
        try:
            rows = [one for samples in fitting for sample in samples for one in runs_of(sample)]
            outputs = iter(run(self._runner, self._form, rows, self._most))
        except QdqError as error:
            self._metrics.failed(len(fitting))
            return [None if isinstance(samples, Fault) else self._error(error) for samples in encoded]
        found: list[Any] = []
        for request, wish, samples in zip(requests, asked, encoded, strict=True):
            if isinstance(samples, Fault) or isinstance(wish, Fault):
                found.append(None)
            else:
                results = [[next(outputs) for _ in runs_of(sample)] for sample in samples]
                found.append(self._response(request, wish, samples, results))
        self._metrics.count(encoded)
        return found

    def _refuse(self, requests: Sequence[Any], encoded: Sequence[Sequence[Sequence[Tokens]] | Fault]) -> None:
        """Tell those whose request has a fault what it is."""
        final = self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        for request, samples in zip(requests, encoded, strict=True):
            if isinstance(samples, Fault):
                request.get_response_sender().send(self._error(samples), final)

    def _admitted(self, asked: list[Asked | Fault]) -> list[Asked | Fault]:
        """The same without as many of the last ones as wait beyond the limit of the queue.

        A batch of at most half its size left nobody waiting.
        """
        rows = sum(len(one.samples) if isinstance(one, Asked) else 1 for one in asked)
        excess = self._backlog.excess() if 2 * rows > self._most else 0
        kept = max(0, len(asked) - excess)
        return [*asked[:kept], *(self._backlog.refuse(excess) for _ in asked[kept:])]

    def _read(self, request: Any) -> Asked | Fault:
        tensors = {name: self._triton.get_input_tensor_by_name(request, name) for name in self._inputs}
        arrays = {name: None if tensor is None else tensor.as_numpy() for name, tensor in tensors.items()}
        try:
            return reading.read(self._form, arrays, request.parameters())
        except Fault as fault:
            return fault

    def _encode(self, asked: Sequence[Asked | Fault]) -> list[list[list[Tokens]] | Fault]:
        """Tokens of every request's samples, or its first fault; the texts of all are tokenized together."""
        texts = [text for one in asked if isinstance(one, Asked) for sample in one.samples for text in sample]
        tokens = iter(self._tokenizer.encode(texts))
        found: list[list[list[Tokens]] | Fault] = []
        for one in asked:
            if isinstance(one, Fault):
                found.append(one)
                continue
            samples = [[next(tokens) for _ in sample] for sample in one.samples]
            faults = [text for sample in samples for text in sample if isinstance(text, Fault)]
            found.append(faults[0] if faults else samples)  # type: ignore[arg-type]  # no fault is left in them
        return found

    def _response(
        self, request: Any, asked: Asked, samples: Sequence[Sequence[Tokens]], rows: Sequence[Sequence[Row]]
    ) -> Any:
        """Answers to one request: the outputs it names."""
        named = set(request.requested_output_names())
        large = named != self._all and bool(named & self._large)  # named among some, not sent along with all
        answers = [
            answer(self._form, sample, own, asked.dimensions, large) for sample, own in zip(samples, rows, strict=True)
        ]
        tensors = [
            self._triton.Tensor(output.name, _stacked(answers, output.name, output.kind))
            for output in self._outputs
            if output.name in named and output.name in answers[0]
        ]
        return self._triton.InferenceResponse(output_tensors=tensors)

    def _error(self, error: Exception) -> Any:
        """A response that says what is wrong: the request's own fault, too many of them, or the server's."""
        kinds = self._triton.TritonError
        kind = kinds.UNAVAILABLE if isinstance(error, Busy) else kinds.INTERNAL
        if isinstance(error, Fault) and not isinstance(error, Busy):
            kind = kinds.INVALID_ARG
        return self._triton.InferenceResponse(error=kinds(str(error), kind))


def _stacked(answers: Sequence[Answer], name: str, kind: str) -> Any:
    """One output of all rows [rows, …]; rows of unequal length are padded with zeros, TOKENS says how long they are."""
    if kind == STRING:
        return np.array([[answer[name].encode("utf-8")] for answer in answers], dtype=object)
    values = [np.atleast_1d(answer[name]) for answer in answers]
    found = np.zeros((len(values), max(map(len, values)), *values[0].shape[1:]), NUMPY[kind])
    for row, value in zip(found, values, strict=True):
        row[: len(value)] = value
    return found


def configuration(args: Mapping[str, str]) -> Mapping[str, Any]:
    """The model's configuration, out of what Triton gives `initialize`."""
    found: Mapping[str, Any] = json.loads(args["model_config"])
    return found
