"""A real Triton server on this machine: found, started on a repository, tried with a request, cleaned up after."""

from __future__ import annotations

from engines.triton.server.installation import Installation, find
from engines.triton.server.process import Ports, Server, ServerOptions, running

__all__ = ["Installation", "Ports", "Server", "ServerOptions", "find", "running"]
