"""The names that PaddleNLP's compression documents import, so that their lines run as printed.

::

    from qdq.compress.paddlenlp import CompressionArguments, PdArgumentParser, Trainer

    parser = PdArgumentParser(CompressionArguments)
    compression_args = parser.parse_args_into_dataclasses()
    trainer = Trainer(model=model, args=compression_args, ..., criterion=criterion)
    trainer.compress()

Models, tokenizers, data collators and losses are those of torch and transformers, with their own names.
"""

from __future__ import annotations

from transformers import HfArgumentParser

from qdq.compress import CompressionArguments, CompressionTrainer

__all__ = ["OFA", "CompressionArguments", "PdArgumentParser", "Trainer"]

Trainer = CompressionTrainer
PdArgumentParser = HfArgumentParser


class OFA:
    """PaddleSlim's model of all widths, for ``isinstance(model, OFA)``: evaluators get plain modules, never one."""
