"""The fault of one request: it is refused alone, with a message that names it and the way out."""

from __future__ import annotations


class Fault(ValueError):
    """A request that cannot be answered; the server says so with INVALID_ARG (HTTP 400)."""
