"""QDQ compiler for transformer encoders: checkpoint in, measured INT8 engine and Triton repository out."""

from __future__ import annotations

from qdq.base.versions import __version__

__all__ = ["__version__"]
