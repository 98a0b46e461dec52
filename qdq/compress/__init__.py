"""Training-time compression: one `compress()` for width pruning, distillation, quantization-aware training and more.

A strategy such as ``dynabert+qat+embeddings`` is a chain of methods (`qdq.compress.strategy`). The chain starts with
the model that was given; every method turns each model into one or more::

    dynabert     one model per width, smaller
    ptq          one model per algorithm, batch size and number of batches, best first
    qat          quantizers, calibrated and then trained with the weights
    dynamic      activations quantized with a range taken from every batch
    embeddings   INT8 embedding tables

A method is an object with a name and two functions (`qdq.compress.method.Method`)::

    class MyMethod:
        name = "mine"

        def check(self, session: Session) -> None: ...
            # raise ConfigError or DataError for what cannot work; called for all methods before any of them runs

        def run(self, session: Session, before: CompressedModel) -> list[CompressedModel]: ...
            # new models; `before.model` stays as it is, another strategy may go on from it; `before.evolve(...)` keeps
            # its history

All methods share a `Session`: the trainer, its arguments, the evaluator, the data loaders and the output folder.
A `CompressedModel` is a model, and once it is quantized its QuantSpec and CalibrationTable. Methods are listed in
`qdq.compress.trainer.METHODS`; `compress()` evaluates every final model, writes each as ``<output_dir>/<name>/``
(a checkpoint like any other: `qdq compile --model` takes it) and the table of all of them as compression.json.
"""

from __future__ import annotations

import qdq.loading.pruned  # noqa: F401  # transformers' Auto classes then load what dynabert saves
from qdq.compress.arguments import CompressionArguments
from qdq.compress.method import CompressedModel, CompressionResult, Method, Session
from qdq.compress.torch_dynamic import DynamicModel, quantize_dynamic
from qdq.compress.trainer import CompressionTrainer

__all__ = [
    "CompressedModel",
    "CompressionArguments",
    "CompressionResult",
    "CompressionTrainer",
    "DynamicModel",
    "Method",
    "Session",
    "quantize_dynamic",
]
