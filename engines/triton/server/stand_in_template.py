"""Triton backend in Python that stands in for the onnxruntime or openvino backend: same repositories, same answers.

For servers without those backends, on a CPU. Triton's core does all it does for the real ones: batches, warm-up,
labels. The model file is opened with the same runtime, with the parameters that the real backend would take from
config.pbtxt.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    """One instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model file."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        file = Path(args["model_repository"]) / args["model_version"] / config["default_model_filename"]
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        opened = _openvino if config["backend"] == "openvino" else _onnxruntime
        self.call = opened(file, self.outputs, parameters)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests; those of one batch have equal shapes, as Triton merges no others."""
        batches = [
            [triton.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs] for request in requests
        ]
        feeds = {
            name: np.concatenate(arrays) for name, arrays in zip(self.inputs, zip(*batches, strict=True), strict=True)
        }
        try:
            results = self.call(feeds)
        except Exception as error:  # the runtimes' own, without a common base
            return [triton.InferenceResponse(error=triton.TritonError(str(error))) for _ in requests]
        ends = np.cumsum([len(batch[0]) for batch in batches])[:-1]
        parts = [np.split(result, ends) for result in results]
        return [
            triton.InferenceResponse(
                output_tensors=[
                    triton.Tensor(name, np.ascontiguousarray(part[turn]))
                    for name, part in zip(self.outputs, parts, strict=True)
                ]
            )
            for turn in range(len(requests))
        ]


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
