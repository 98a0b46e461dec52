"""Part of stage 4: the exported graph computes what the calibrated module computes, point by point and end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import write_json
from qdq.errors import ParityError
from qdq.pipeline.run import CANONICAL, CHOICES, Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qdq.inject.quantizer import TensorQuantizer
    from qdq.load.model import LoadedModel

TEXTS = 8  # enough for millions of codes per point; more only takes longer


def write_parity(run: Run, loaded: LoadedModel) -> Path:
    """Compare torch, ONNX Runtime without optimizations and numpy on a few texts; writes and returns parity.json.

    Raises ParityError when a point's codes differ by more than rounding. Whole answers may differ by a rounding flip
    that one wide scale magnifies, so a difference there is a warning.
    """
    from export.parity import end_to_end_parity, point_parity
    from qdq.inject import quantizers
    from qdq.load.runner import TorchRunner
    from qdq.text.encode import encode_batch, encode_choices

    encode = encode_choices if loaded.task.choices else encode_batch
    records = run.evaluation.records[: max(TEXTS, CHOICES)]
    feeds = encode(loaded.tokenizer, records, loaded.inputs, run.options.sequence, pad_to="longest")
    canonical = run.work.path / CANONICAL
    points = point_parity(canonical, feeds, {n: _on_arrays(point) for n, point in quantizers(loaded.model).items()})
    try:
        answers: dict[str, Any] | None = end_to_end_parity(
            TorchRunner(loaded.module(), run.options.threads), canonical, [feeds], loaded.task.name
        )
    except ParityError as error:
        run.screen.warn(str(error))
        answers = None
    return write_json(run.work.path / "parity.json", {"points": points.as_json(), "end_to_end": answers})


def _on_arrays(point: TensorQuantizer) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A quantizer as a function of arrays."""
    import torch

    def fake_quantized(x: NDArray[Any]) -> NDArray[Any]:
        with torch.inference_mode():
            result: NDArray[Any] = point(torch.from_numpy(x)).numpy()
        return result

    return fake_quantized
