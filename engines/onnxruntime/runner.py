"""Run an ONNX file with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engines.onnxruntime.build import OnnxRuntimeSettings, open_session
from engines.types import Feeds, Outputs


class OnnxRuntimeRunner:
    """A session on this CPU; call it with feeds of any batch and sequence."""

    def __init__(self, model: Path, settings: OnnxRuntimeSettings) -> None:
        self._session = open_session(model, settings.session_options())
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, feeds: Feeds) -> Outputs:
        """Feeds as the graph names them; returns float32 arrays of its own."""
        results = self._session.run(self._outputs, dict(feeds))
        return {
            name: np.asarray(value, dtype=np.float32) for name, value in zip(self._outputs, results, strict=True)
        }
