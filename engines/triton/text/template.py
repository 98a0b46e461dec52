"""Triton model (python backend): texts in, answers out, with the engine file in this folder.

text.json says what the model is; the code is engines/serving/ in lib/, a copy of exactly those modules of the QDQ
compiler that serving needs. Nothing else has to be installed but what requirements.txt names.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER / "lib"))

from engines.serving.model import TextModel, configuration  # noqa: E402


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engine, once for each instance."""
        self.model = TextModel(FOLDER, args["model_name"], configuration(args))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of one batch, in order; one that cannot be answered gets an error of its own."""
        return self.model.execute(requests)
