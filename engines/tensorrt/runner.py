"""Run a TensorRT plan through polygraphy: feeds in, float32 outputs out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np

from engines.interface import feeds_for
from engines.packed import pack, packing_beside
from qdq.base.types import Feeds, Outputs
from qdq.errors import BuildError


class TensorRTRunner:
    """A loaded plan on the GPU; call it with feeds, close it (or use `with`) to free the GPU memory.

    Copies inputs to the GPU and outputs back on every call, so its latency includes both transfers; trtexec.sh measures
    without them. Feeds may be of any integer type: a plan takes INT32 token ids where the tokenizer gives INT64.
    A plan whose batch has another form (packing.json beside it) is called with padded feeds like every other. Raises
    BuildError when the plan cannot be loaded here or a feed does not fit its profile.
    """

    def __init__(self, plan: Path) -> None:
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner
        from polygraphy.datatype import DataType
        from polygraphy.exception import PolygraphyException

        try:
            serialized = plan.read_bytes()
        except OSError as error:
            raise BuildError(f"{plan} cannot be read ({error.strerror}); build the engine first") from error
        self._plan, self._packing = plan, packing_beside(plan)
        self._failure: type[Exception] = PolygraphyException  # kept, so that calls need no import
        runner: Any = TrtRunner(EngineFromBytes(serialized))
        try:
            runner.activate()
            inputs = runner.get_input_metadata(use_numpy_dtypes=False)
        except PolygraphyException as error:
            raise BuildError(
                f"{plan} cannot be loaded: {_first_line(error)}; a plan only runs on the GPU model and TensorRT "
                "version that built it, build it again on this machine"
            ) from error
        self._runner = runner
        self._types = {name: DataType.to_dtype(tensor.dtype, "numpy") for name, tensor in inputs.items()}
        self._ranks = {name: len(tensor.shape) for name, tensor in inputs.items()}

    def __call__(self, feeds: Feeds) -> Outputs:
        """Outputs by name, float32, owned by the caller (polygraphy reuses its own buffers)."""
        if self._packing is not None:
            batch = pack(self._packing, feeds)
            return batch.unpack(self._infer(batch.feeds))
        return self._infer(feeds_for(self._ranks, feeds))

    def _infer(self, wanted: Feeds) -> Outputs:
        typed = {name: np.ascontiguousarray(array, dtype=self._types[name]) for name, array in wanted.items()}
        try:
            outputs = self._runner.infer(typed)
        except self._failure as error:
            shapes = {name: array.shape for name, array in wanted.items()}
            raise BuildError(f"{self._plan} cannot run inputs {shapes}: {_first_line(error)}") from error
        return {name: np.array(value, dtype=np.float32) for name, value in outputs.items()}

    def close(self) -> None:
        """Free engine and buffers; calling twice is harmless."""
        if self._runner is not None:
            self._runner.deactivate()
            self._runner = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
