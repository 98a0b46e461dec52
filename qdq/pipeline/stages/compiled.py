"""Part of stage 6: what NVIDIA's compiler, which needs no GPU, makes of the run's graph and of the unquantized one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.targets import TARGETS
from qdq.base.artifacts import PARTIAL_PREFIX
from qdq.base.screen import Stage
from qdq.pipeline.run import FLOAT, Run
from qdq.pipeline.stages.lower import ranges, short_float

if TYPE_CHECKING:
    from engines.tensorrt import TensorRTSettings
    from engines.tensorrt_rtx import Compiled
    from engines.types import MatmulNames


def unproven(run: Run) -> str | None:
    """One sentence, with the way out, when the run's graph cannot be compiled here; None when it can."""
    from engines.tensorrt_rtx import missing

    options = run.options
    since = TARGETS["tensorrt-rtx"].since.get(options.body, 0)
    if options.sm < since:
        return f"TensorRT for RTX has {options.body} from compute capability {since / 10} on; give --sm {since} or more"
    return missing()


def compiled_proof(
    run: Run, stage: Stage, names: MatmulNames, settings: TensorRTSettings, served: Compiled | None = None
) -> dict[str, Any]:
    """The `compiled` object of build.json.

    `names`: multiplications of the run's graph. `served`: its engine, where that has been compiled already. Raises
    BuildError, with the node, when the compiler refuses the graph.
    """
    from engines.tensorrt_rtx import Pair, prove
    from export.passes import float_variant

    # The graph to compare with leaves no trace: 'qdq variants' writes it, with its build files, for who wants it.
    floating, body = run.work.path / FLOAT, short_float(run)
    with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=run.target) as scratch:
        float_variant(floating, body, Path(scratch), ranges(run, stage, floating, body))
        pair = Pair(run.lowered, Path(scratch) / "model.onnx", body)
        return prove(pair, names, settings, run.options.sm, served)
