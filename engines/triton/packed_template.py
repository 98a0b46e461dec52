"""Triton model (python backend) in front of a TensorRT plan whose batch is not padded.

Takes padded batches of any client, packs the texts of all requests that Triton hands over together, calls the plan
once, and answers each request in its own shape. Beside it lie packing.py, packing.json and ids.py.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

PLAN = "{name}_plan"  # model of the plan in the same repository, filled in at start from this model's name


class TritonPythonModel:
    """One instance; `execute` may get several requests, each with a shape of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the form of the plan's batch."""
        self.triton = importlib.import_module("triton_python_backend_utils")
        folder = Path(__file__).resolve().parent
        sys.path.insert(0, str(folder))
        packing, self.ids = importlib.import_module("packing"), importlib.import_module("ids")
        self.refused = packing.PackingError
        self.packing = packing.Packing.read(folder / packing.FILE)
        self.tables = self.ids.tables_of(json.loads(args["model_config"]))
        self.plan = PLAN.format(name=args["model_name"])
        types = ("token_type_ids",) if "token_type_ids" in self.packing.inputs else ()
        self.inputs = ("input_ids", "attention_mask", *types)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request, in order; one that does not fit gets an error of its own."""
        batches = [self.read(request) for request in requests]
        reasons = [self.ids.refusal(batch, self.tables) for batch in batches]
        fitting = [batch for batch, reason in zip(batches, reasons, strict=True) if reason is None]
        answers: list[Any] = []
        for group in self.groups([batch["input_ids"].shape for batch in fitting]):
            answers += self.answer([fitting[index] for index in group])
        found = iter(answers)
        return [next(found) if reason is None else self.refusal(reason) for reason in reasons]

    def read(self, request: Any) -> dict[str, Any]:
        """The arrays of one request."""
        tensor = self.triton.get_input_tensor_by_name
        return {name: tensor(request, name).as_numpy() for name in self.inputs}

    def groups(self, shapes: list[tuple[int, ...]]) -> list[list[int]]:
        """Requests by number, in order, as many together as the plan takes texts."""
        found: list[list[int]] = []
        room = 0
        for index, shape in enumerate(shapes):
            texts = int(np.prod(shape[:-1]))
            if not found or texts > room:
                found.append([])
                room = self.packing.texts
            found[-1].append(index)
            room -= texts
        return found

    def answer(self, batches: list[dict[str, Any]]) -> list[Any]:
        """Responses to requests that fit together; one by one where one of them is refused."""
        try:
            return [self.response(outputs) for outputs in self.run(batches)]
        except self.refused as problem:
            if len(batches) > 1:
                return [self.answer([batch])[0] for batch in batches]
            return [self.refusal(str(problem))]
        except RuntimeError as problem:
            error = self.triton.TritonError(f"{self.plan}: {problem}")
            return [self.triton.InferenceResponse(error=error) for _ in batches]

    def run(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Outputs of each request, from one call of the plan."""
        width = max(batch["input_ids"].shape[-1] for batch in batches)
        feeds = {name: np.concatenate([widened(batch[name], width) for batch in batches]) for name in self.inputs}
        packed = self.packing.pack(feeds)
        outputs = packed.unpack(self.call({name: array.astype(np.int32) for name, array in packed.feeds.items()}))
        # Every request gets its own texts, and of outputs per token its own columns.
        found, begin = [], 0
        for batch in batches:
            shape = batch["input_ids"].shape
            own = {name: array[begin : begin + shape[0]] for name, array in outputs.items()}
            for name, kind in self.packing.outputs.items():
                if kind == "token":
                    own[name] = np.take(own[name], np.arange(shape[-1]), axis=len(shape) - 1)
            found.append(own)
            begin += shape[0]
        return found

    def call(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """Outputs of the plan in the host's memory. Raises RuntimeError with what Triton says when it fails."""
        triton = self.triton
        request = triton.InferenceRequest(
            model_name=self.plan,
            requested_output_names=list(self.packing.outputs),
            inputs=[triton.Tensor(name, np.ascontiguousarray(array)) for name, array in feeds.items()],
            preferred_memory=triton.PreferredMemory(triton.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise RuntimeError(response.error().message())
        found = {name: triton.get_output_tensor_by_name(response, name) for name in self.packing.outputs}
        return {name: tensor.as_numpy() for name, tensor in found.items()}

    def refusal(self, reason: str) -> Any:
        """The answer to a request that is itself at fault, 400 of HTTP."""
        error = self.triton.TritonError
        return self.triton.InferenceResponse(error=error(reason, error.INVALID_ARG))

    def response(self, outputs: dict[str, Any]) -> Any:
        """One request's answer."""
        tensors = [self.triton.Tensor(name, np.ascontiguousarray(array)) for name, array in outputs.items()]
        return self.triton.InferenceResponse(output_tensors=tensors)


def widened(array: Any, width: int) -> Any:
    """Padded on the right to `width` columns, with zeros, which the mask's own zeros cover."""
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])])
