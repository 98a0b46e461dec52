"""QDQ compiler for transformer encoders: checkpoint in, measured INT8 engine and Triton repository out.

``import qdq`` makes transformers' Auto classes load width-pruned checkpoints, whichever of the two is imported first.
"""

from __future__ import annotations

from qdq.load.registration import register_with_transformers

__version__ = "0.1.0"

register_with_transformers()
