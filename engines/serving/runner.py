"""The engine of a text model: opened from its file, or a plan that another model of the same server runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engines.packed import PackedRunner, packing_beside
from engines.serving.form import FILE, TextForm
from engines.targets import TARGETS, EngineOptions
from engines.types import Runner
from qdq.base.types import Feeds, Outputs
from qdq.errors import BuildError


def open_runner(folder: Path, form: TextForm, triton: Any, name: str) -> Runner:
    """The engine of the model `name`: the file in its version folder, with the options it was timed with, or the plan's
    model behind it.

    Raises BuildError for a file that cannot be opened, Unavailable without its runtime.
    """
    if not TARGETS[form.engine].gpu:
        return TARGETS[form.engine].open(folder / form.files[0], EngineOptions(form.threads, form.hint))
    plan = PlanRunner(triton, f"{name}_plan", form)
    packing = packing_beside(folder / FILE)
    return plan if packing is None else PackedRunner(plan, packing)


class PlanRunner:
    """A TensorRT plan behind this model, called through Triton's business logic scripting."""

    def __init__(self, triton: Any, plan: str, form: TextForm) -> None:
        """Keep `triton` (its python backend's module) and the name of the plan's model."""
        self._triton, self._plan, self._form = triton, plan, form

    def __call__(self, feeds: Feeds) -> Outputs:
        """Outputs in the host's memory. Raises BuildError with what Triton says when the plan fails."""
        triton = self._triton
        request = triton.InferenceRequest(
            model_name=self._plan,
            requested_output_names=list(self._form.outputs),
            inputs=[
                triton.Tensor(name, np.ascontiguousarray(array.astype(self._form.types[name])))
                for name, array in feeds.items()
            ],
            preferred_memory=triton.PreferredMemory(triton.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise BuildError(f"{self._plan}: {response.error().message()}")
        found = {name: triton.get_output_tensor_by_name(response, name) for name in self._form.outputs}
        return {name: np.asarray(tensor.as_numpy(), dtype=np.float32) for name, tensor in found.items()}
