"""Hooks of the documentation site: links to files of the repository that are no pages become their paths."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write ``[text](../file)`` as text and path: the site has the pages of docs/ only."""
    return OUTSIDE.sub(r"\1 (`\2`)", markdown)
