"""The repository of a text model: strings in, answers out, python backend around the engine file."""

from __future__ import annotations

from engines.triton.text.readme import curl_line
from engines.triton.text.repository import text_config, write_text_repository

__all__ = ["curl_line", "text_config", "write_text_repository"]
