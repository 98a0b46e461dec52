"""QDQ compiler for transformer encoders: checkpoint in, measured INT8 engine and Triton repository out.

``import qdq`` makes transformers' Auto classes load width-pruned checkpoints. Importing one of its modules does not by
itself (``qdq --help`` must start without torch), but every module that uses transformers does it too.
"""

from __future__ import annotations

import importlib.util
import sys

__version__ = "0.1.0"


def _asked_for_itself() -> bool:
    """Whether ``import qdq`` runs this file, and not the import of a module in it such as ``qdq.cli``.

    Python imports a package before its modules, on the same stack; the import system's frames have the wanted name.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        if str(frame.f_locals.get("name", "")).startswith(f"{__name__}.") and "importlib" in frame.f_code.co_filename:
            return False
        frame = frame.f_back
    return importlib.util.find_spec("transformers") is not None


if "transformers" in sys.modules or _asked_for_itself():
    from qdq.pruned import register

    register()
