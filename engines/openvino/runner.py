"""Run an OpenVINO engine (IR or ONNX file)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engines.openvino.build import OpenVINOSettings, _core, _last_line
from engines.types import Feeds, Outputs
from qdq.errors import BuildError


class OpenVINORunner:
    """A compiled model on this CPU; call it with feeds of any batch and sequence."""

    def __init__(self, model: Path, settings: OpenVINOSettings) -> None:
        try:
            self._compiled = _core().compile_model(str(model), "CPU", settings.properties())
        except RuntimeError as error:
            raise BuildError(f"OpenVINO cannot load {model}: {_last_line(error)}; build it again") from error
        self._request = self._compiled.create_infer_request()
        self._outputs = {next(iter(port.names)): port for port in self._compiled.outputs}

    def __call__(self, feeds: Feeds) -> Outputs:
        """Feeds as the graph names them; returns float32 copies."""
        self._request.infer(dict(feeds))
        return {
            name: np.array(self._request.get_tensor(port).data, dtype=np.float32)
            for name, port in self._outputs.items()
        }
