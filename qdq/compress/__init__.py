"""Training-time compression: one `compress()` for width pruning, distillation, quantization-aware training and more.

A strategy such as ``dynabert+qat+embeddings`` is a chain of steps (`qdq.compress.strategy`). The chain starts with one
candidate, the model that was given; every step turns each candidate into one or more::

    dynabert     one candidate per width: a smaller model
    ptq          one candidate per algorithm, batch size and number of batches, best first
    qat          quantizers, calibrated and then trained with the weights
    dynamic      activations quantized with a range taken from every batch
    embeddings   INT8 embedding tables

A step is an object with a name and two methods (`qdq.compress.step.Step`)::

    class MyStep:
        name = "mine"

        def check(self, session: Session) -> None: ...
            # raise ConfigError or DataError for anything that cannot work; called for all steps before any of them runs

        def run(self, session: Session, candidate: Candidate) -> list[Candidate]: ...
            # new candidates; `candidate.model` may be changed in place, `candidate.evolve(...)` keeps its history

`Session` holds what steps share: the trainer, its arguments, the evaluator, the data loaders and the output folder.
`Candidate` holds a model, and once it is quantized its QuantSpec and CalibrationTable. Steps are listed in
`qdq.compress.trainer.STEPS`; `compress()` evaluates every final candidate, writes each as ``<output_dir>/<name>/``
(a checkpoint like any other: `qdq compile --model` takes it) and the table of all of them as compression.json.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import qdq.load.pruned  # noqa: F401  # transformers' Auto classes then load what the dynabert step saves

if TYPE_CHECKING:
    from qdq.compress.arguments import CompressionArguments
    from qdq.compress.step import Candidate, CompressionResult, Session, Step
    from qdq.compress.trainer import CompressionTrainer

__all__ = ["Candidate", "CompressionArguments", "CompressionResult", "CompressionTrainer", "Session", "Step"]

_HOMES = {"CompressionArguments": "arguments", "CompressionTrainer": "trainer"}


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for: the strategy parser needs no torch."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'step')}"), name)
