"""Run an ONNX file with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engines.interface import feeds_for
from engines.onnxruntime.build import OnnxRuntimeSettings, failures, open_session, reason
from engines.types import Feeds, Outputs
from qdq.errors import BuildError


class OnnxRuntimeRunner:
    """A session on this CPU; call it with feeds of any batch and sequence."""

    def __init__(self, model: Path, settings: OnnxRuntimeSettings) -> None:
        """Raises BuildError when ONNX Runtime cannot load `model`, Unavailable when it is not installed."""
        self._session = open_session(model, settings.session_options())
        self._ranks = {value.name: len(value.shape) for value in self._session.get_inputs()}
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, feeds: Feeds) -> Outputs:
        """Feeds as the graph names them; returns float32 arrays of its own. Raises BuildError when it cannot run."""
        wanted = feeds_for(self._ranks, feeds)
        try:
            results = self._session.run(self._outputs, wanted)
        except failures() as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in wanted.items())
            raise BuildError(f"ONNX Runtime cannot run a batch of {shapes}: {reason(error)}") from error
        return {name: np.asarray(value, dtype=np.float32) for name, value in zip(self._outputs, results, strict=True)}
