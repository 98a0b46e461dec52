"""QDQ compiler for transformer encoders: checkpoint in, measured INT8 engine and Triton repository out.

``import qdq`` makes transformers' Auto classes load width-pruned checkpoints, whichever of the two is imported first.
"""

from __future__ import annotations

from qdq.base.versions import __version__
from qdq.load.registration import register_with_transformers

__all__ = ["__version__"]

register_with_transformers()
