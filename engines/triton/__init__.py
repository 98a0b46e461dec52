"""A built engine as a Triton Inference Server model repository, written and read back through Triton's own schema.

``write_repository`` turns a `BuiltEngine` into ``model_repository/<name>/`` (version folder, ``config.pbtxt``, warm-up
samples, labels) and ``check_repository`` compares what lies there with the engine. Neither needs a server or a GPU.
"""

from __future__ import annotations

from engines.triton.check import check_repository
from engines.triton.packed import plan_model
from engines.triton.repository import write_repository
from engines.triton.settings import TritonSettings, bucket_model, model_for
from engines.triton.text import write_text_repository

__all__ = [
    "TritonSettings",
    "bucket_model",
    "check_repository",
    "model_for",
    "plan_model",
    "write_repository",
    "write_text_repository",
]
