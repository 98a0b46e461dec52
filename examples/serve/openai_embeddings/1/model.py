"""Triton model (python backend): the embeddings of a text model in the shape that OpenAI-compatible gateways ask for.

LiteLLM's Triton provider sends one input `input_text` [N] and reads every output as [N, dimensions], so the text model
itself, which also says TOKENS and CUT, cannot be asked by it. This one asks the text model for EMBEDDING alone, in
requests of at most `most` rows, its max_batch_size; both are parameters in config.pbtxt.
"""

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    """One instance; several, because each waits for the text model's answer."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameters."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.model = parameters["model"]["string_value"]
        self.most = int(parameters["most"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Embeddings of every request, or the text model's refusal."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        texts = triton.get_input_tensor_by_name(request, "input_text").as_numpy().reshape(-1, 1)
        parts = []
        for start in range(0, len(texts), self.most):
            rows = triton.Tensor("TEXT", texts[start : start + self.most])
            asked = triton.InferenceRequest(model_name=self.model, requested_output_names=["EMBEDDING"], inputs=[rows])
            answer = asked.exec()
            if answer.has_error():
                words = answer.error().message()
                return triton.InferenceResponse(error=triton.TritonError(words, triton.TritonError.INVALID_ARG))
            parts.append(triton.get_output_tensor_by_name(answer, "EMBEDDING").as_numpy())
        if not parts:
            return triton.InferenceResponse(
                error=triton.TritonError("input_text is empty", triton.TritonError.INVALID_ARG)
            )
        return triton.InferenceResponse(output_tensors=[triton.Tensor("embedding", np.concatenate(parts))])
