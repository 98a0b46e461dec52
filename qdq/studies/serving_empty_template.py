"""Triton model (python backend) in the place of a text model: waits as long as its engine takes, and answers zeros."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

OPEN = 384  # numbers of an output whose length config.pbtxt leaves open


class TritonPythonModel:
    """One instance; it reads no request."""

    def initialize(self, args: dict[str, str]) -> None:
        """Make the answers."""
        config = json.loads(args["model_config"])
        self.seconds = float(config["parameters"]["seconds"]["string_value"])
        self.answers = {}
        for output in config["output"]:
            shape = [1, *(OPEN if int(size) < 0 else int(size) for size in output["dims"])]
            texts = output["data_type"] == "TYPE_STRING"
            kind = object if texts else triton.triton_string_to_numpy(output["data_type"])
            self.answers[output["name"]] = np.full(shape, b"-" if texts else 0, kind)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers to requests of one row each."""
        time.sleep(self.seconds * len(requests))
        return [
            triton.InferenceResponse(
                output_tensors=[
                    triton.Tensor(name, array)
                    for name, array in self.answers.items()
                    if name in request.requested_output_names()
                ]
            )
            for request in requests
        ]
