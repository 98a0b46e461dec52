"""Part of stage 4: the exported graph computes what the calibrated module computes, point by point and end to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import write_json
from qdq.errors import ParityError
from qdq.pipeline.run import CANONICAL, Run
from qdq.pipeline.stages.ranges import feeds_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engines.compare import Reading
    from engines.types import Runner
    from qdq.base.types import Feeds
    from qdq.inject.quantizer import TensorQuantizer
    from qdq.loading.model import LoadedModel

TEXTS = 8  # enough for millions of codes per point; more only takes longer
SIDES = ("the fake-quant module", "ONNX Runtime")

# The two sum in another order, so a value on a rounding tie gets another code, and one step of a wide residual scale
# spreads: max calibration of all twenty points of a fine-tuned MiniLM flips 2 answers of 96 although every code is
# equal on identical inputs (percentile calibration: 0 of 96). A wrong connection flips far more.
TOLERANCE = 0.02
SIGMAS = 2  # room for chance in a small sample: a true rate of 2 % shows as 4 of 96 every now and then
# Embeddings have no answer that absorbs the flips: equal codes on identical inputs at every point still leave a mean
# cosine of 0.998 (linear+qk) or 0.990 (all twenty points) on all-MiniLM-L6-v2. A wrong connection leaves far less.
MIN_COSINE = 0.95


def write_parity(run: Run, loaded: LoadedModel) -> Path:
    """Compare torch, ONNX Runtime without optimizations and numpy on a few texts; writes and returns parity.json.

    Raises ParityError when a point's codes differ by more than rounding. Whole answers may differ by a rounding flip
    that one wide scale magnifies, so a difference there is a warning.
    """
    from engines.compare import Reading
    from export.parity import point_parity
    from qdq.inject import quantizers
    from qdq.loading.runner import TorchRunner
    from qdq.tasks.heads import head_of_model

    (feeds,) = feeds_of(run, loaded, run.evaluation.records[:TEXTS], TEXTS)
    canonical = run.work.path / CANONICAL
    points = point_parity(canonical, feeds, {n: _on_arrays(point) for n, point in quantizers(loaded.model).items()})
    try:
        runner = TorchRunner(loaded.module(), run.options.threads)
        head = head_of_model(loaded.model)
        reading = Reading(head.compared_as or loaded.task.name, head.cuts)
        answers: dict[str, Any] | None = end_to_end_parity(runner, canonical, feeds, reading)
    except ParityError as error:
        run.screen.warn(str(error))
        answers = None
    return write_json(run.work.path / "parity.json", {"points": points.as_json(), "end_to_end": answers})


def end_to_end_parity(reference: Runner, graph: Path, feeds: Feeds, reading: Reading) -> dict[str, Any]:
    """Compare the outputs of the torch fake-quant module (`reference`) with ONNX Runtime's, optimizations off.

    Returns ``{"task", "max_abs_error", "cosine_mean", "cosine_min", "answers", "agreement"}`` as `engines.compare`
    defines them; the single logits of a regression model make one vector over all texts, because the cosine of two
    numbers is their sign. Raises ParityError as `engines.compare` does and beyond the tolerances of this module.
    """
    from engines.compare import Comparison
    from engines.metrics import cosine
    from export.unoptimized import open_unoptimized, run

    session = open_unoptimized(str(graph), graph.parent)
    names = [output.name for output in session.get_outputs()]
    expected, actual = reference(feeds), dict(zip(names, run(session, feeds, names), strict=True))
    comparison = Comparison(reading.task, cuts=reading.cuts, sides=SIDES)
    comparison.add(feeds, expected, actual)
    found = comparison.as_json()
    report = {name: found[name] for name in ("task", "max_abs_error", "cosine_mean", "cosine_min", "agreement")}
    report["answers"] = found["agreement_of"]
    if all(values.shape[1:] == (1,) for values in expected.values()):
        over_texts = cosine(*(side["logits"].astype("float64") for side in (expected, actual)))
        report |= {"cosine_mean": over_texts, "cosine_min": over_texts}
    _raise_if_different(report)
    return report


def _raise_if_different(report: Mapping[str, Any]) -> None:
    who, advice = " and ".join(SIDES), "export again; point_parity names a point that differs"
    count, agreement, cosine = report["answers"], report["agreement"], report["cosine_mean"]
    if agreement is None and cosine < MIN_COSINE:
        raise ParityError(
            f"outputs of {who} have a mean cosine of {cosine:.5f} (at least {MIN_COSINE} expected); {advice}"
        )
    if agreement is not None:
        least = 1.0 - (TOLERANCE + SIGMAS * math.sqrt(TOLERANCE / count))
        if agreement < least:
            raise ParityError(
                f"{who} give the same answer to {agreement:.1%} of {count} (at least {least:.1%} expected); {advice}"
            )


def _on_arrays(point: TensorQuantizer) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A quantizer as a function of arrays."""
    import torch

    def fake_quantized(x: NDArray[Any]) -> NDArray[Any]:
        with torch.inference_mode():
            result: NDArray[Any] = point(torch.from_numpy(x)).numpy()
        return result

    return fake_quantized
