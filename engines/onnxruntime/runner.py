"""Run an ONNX file with ONNX Runtime."""

from __future__ import annotations

import logging
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from engines.interface import feeds_for
from engines.onnxruntime.build import WEIGHTS, OnnxRuntimeSettings, coding, failures, open_session, reason
from qdq.base.types import Feeds, Outputs
from qdq.errors import BuildError

logger = logging.getLogger(__name__)


class SessionInputs:
    """The inputs of a session, with their ranks and types."""

    def __init__(self, session: Any) -> None:
        self._ranks = {value.name: len(value.shape) for value in session.get_inputs()}
        self._types = {value.name: value.type[len("tensor(") : -1] for value in session.get_inputs()}

    def of(self, feeds: Feeds) -> dict[str, Any]:
        """Return the feeds the session takes, as `feeds_for` does; INT64 ids become INT32 where it takes such."""
        fitting = feeds_for(self._ranks, feeds)
        return {name: array.astype(self._types[name], copy=False) for name, array in fitting.items()}


class OnnxRuntimeRunner:
    """A session on this CPU, or one per stream; call it with feeds of any batch and sequence, from as many threads."""

    def __init__(self, model: Path, settings: OnnxRuntimeSettings) -> None:
        """Raises BuildError when ONNX Runtime cannot load `model`, Unavailable when it is not installed."""
        self._free: SimpleQueue[Any] = SimpleQueue()
        for stream in range(max(1, settings.streams)):
            self._free.put(open_session(model, settings.session_options(stream, model)))
        session = self._free.get()
        self._free.put(session)
        _compare_cpu(session, model, settings)
        self._inputs = SessionInputs(session)
        self._outputs = [output.name for output in session.get_outputs()]

    def __call__(self, feeds: Feeds) -> Outputs:
        """Feeds as the graph names them, of any integer type; returns float32 arrays of its own.

        Raises BuildError when it cannot run.
        """
        wanted = self._inputs.of(feeds)
        session = self._free.get()
        try:
            results = session.run(self._outputs, wanted)
        except failures() as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in wanted.items())
            raise BuildError(f"ONNX Runtime cannot run a batch of {shapes}: {reason(error)}") from error
        finally:
            self._free.put(session)
        return {name: np.asarray(value, dtype=np.float32) for name, value in zip(self._outputs, results, strict=True)}


def _compare_cpu(session: Any, model: Path, settings: OnnxRuntimeSettings) -> None:
    """Say that an engine was built for the other kind of CPU; its results are the same here."""
    built, here = session.get_modelmeta().custom_metadata_map.get(WEIGHTS), coding(settings.sums)
    if built is None or built == here:
        return
    effect = (
        "its u8 weights are right here, too, and about half as fast as s8 ones"
        if built == "u8"
        else "its s8 weights are multiplied as u8 here, with the same results"
    )
    logger.warning(
        "%s was built for another kind of CPU than this one (%s): %s; build it again here", model, settings.sums, effect
    )
