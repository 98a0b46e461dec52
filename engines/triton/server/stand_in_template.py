"""Triton backend in Python that stands in for the onnxruntime or openvino backend: same repositories, same answers.

For servers without those backends, on a CPU. Triton's core does all it does for the real ones: batches, warm-up,
labels. The model file is opened with the same runtime, with the parameters that the real backend would take from
config.pbtxt. Other than with the real ones, a request with ids that the model has no rows for fails alone. Beside it
lies ids.py.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    """One instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model file."""
        sys.path.insert(0, str(Path(__file__).resolve().parent))
        self.ids = importlib.import_module("ids")
        config = json.loads(args["model_config"])
        self.tables = self.ids.tables_of(config)
        ours = self.ids.PARAMETERS.values()
        parameters = {name: value["string_value"] for name, value in config["parameters"].items() if name not in ours}
        file = Path(args["model_repository"]) / args["model_version"] / config["default_model_filename"]
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        opened = _openvino if config["backend"] == "openvino" else _onnxruntime
        self.call = opened(file, self.outputs, parameters)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request, in order; those of one batch have equal shapes, as Triton merges no others."""
        batches = [
            {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        reasons = [self.ids.refusal(batch, self.tables) for batch in batches]
        answers = iter(self.answers([batch for batch, reason in zip(batches, reasons, strict=True) if reason is None]))
        return [next(answers) if reason is None else refused(reason) for reason in reasons]

    def answers(self, batches: list[dict[str, Any]]) -> list[Any]:
        """Responses to requests that go together; one by one when the runtime refuses one of them."""
        if not batches:
            return []
        try:
            results = self.call({name: np.concatenate([batch[name] for batch in batches]) for name in self.inputs})
        except Exception as error:  # the runtimes' own, without a common base
            if len(batches) > 1:
                return [self.answers([batch])[0] for batch in batches]
            return [triton.InferenceResponse(error=triton.TritonError(str(error)))]
        ends = np.cumsum([len(batch[self.inputs[0]]) for batch in batches])[:-1]
        parts = [np.split(result, ends) for result in results]
        return [
            triton.InferenceResponse(
                output_tensors=[
                    triton.Tensor(name, np.ascontiguousarray(part[turn]))
                    for name, part in zip(self.outputs, parts, strict=True)
                ]
            )
            for turn in range(len(batches))
        ]


def refused(reason: str) -> Any:
    """Response to a request that is itself at fault, 400 of HTTP."""
    return triton.InferenceResponse(error=triton.TritonError(reason, triton.TritonError.INVALID_ARG))


def _onnxruntime(file: Path, outputs: list[str], parameters: dict[str, str]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 0))
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(outputs, feeds)


def _openvino(file: Path, outputs: list[str], parameters: dict[str, str]) -> Any:
    import openvino

    compiled = openvino.Core().compile_model(str(file), "CPU", parameters)

    def call(feeds: dict[str, Any]) -> list[Any]:
        results = compiled(feeds)
        return [np.array(results[name]) for name in outputs]

    return call
