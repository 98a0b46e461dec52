"""Run an OpenVINO engine (IR or ONNX file)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engines.interface import feeds_for
from engines.openvino.build import OpenVINOSettings, open_core, reason
from engines.types import Feeds, Outputs
from qdq.errors import BuildError


class OpenVINORunner:
    """A compiled model on this CPU; call it with feeds of any batch and sequence, from one thread at a time."""

    def __init__(self, model: Path, settings: OpenVINOSettings) -> None:
        """Raises BuildError when OpenVINO cannot load `model`, Unavailable when it is not installed."""
        core = open_core()
        try:
            network = core.read_model(str(model))
            compiled = core.compile_model(network, "CPU", settings.properties())
        except RuntimeError as error:
            raise BuildError(f"OpenVINO cannot load {model}: {reason(error)}; build it again") from error
        self._request = compiled.create_infer_request()
        self._ranks = {port.get_any_name(): len(port.get_partial_shape()) for port in network.inputs}
        # Named before compiling, which gives an output the names of inner tensors too, in no fixed order.
        names = (port.get_any_name() for port in network.outputs)
        self._outputs = dict(zip(names, compiled.outputs, strict=True))

    def __call__(self, feeds: Feeds) -> Outputs:
        """Feeds as the graph names them; returns float32 copies. Raises BuildError when the batch cannot be run."""
        wanted = feeds_for(self._ranks, feeds)
        try:
            self._request.infer(wanted)
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in wanted.items())
            raise BuildError(f"OpenVINO cannot run a batch of {shapes}: {reason(error)}") from error
        return {
            name: np.array(self._request.get_tensor(port).data, dtype=np.float32)
            for name, port in self._outputs.items()
        }
