"""The address of a server as a user writes it, and a client for it."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from engines.client.over_grpc import GrpcClient
from engines.client.over_http import HttpClient
from engines.client.protocol import Client
from qdq.base.config import choice
from qdq.errors import ConfigError

PORTS = {"http": 8000, "https": 443, "grpc": 8001, "grpcs": 443}  # Triton's own defaults


@dataclass(frozen=True)
class Address:
    """A server: one of PORTS, its host, its port."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


def parse_address(url: str) -> Address:
    """Read ``http://HOST[:PORT]``, ``grpc://HOST[:PORT]``, or ``HOST[:PORT]`` for HTTP. Raises ConfigError."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = choice(parts.scheme, PORTS, f"{url}: protocol")
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{url}: {error}; give a port from 1 to 65535") from None
    if not parts.hostname or parts.path.strip("/") or parts.query:
        raise ConfigError(f"{url}: is no address of a server; give http://HOST:PORT or grpc://HOST:PORT")
    return Address(scheme, parts.hostname, port or PORTS[scheme])


def connect(address: Address, timeout: float = 60.0) -> Client:
    """A client, which connects when it is first asked; `timeout` in seconds is of each request.

    Raises Unavailable for gRPC without tritonclient.
    """
    kind = GrpcClient if address.scheme.startswith("grpc") else HttpClient
    return kind(address.host, address.port, timeout, secure=address.scheme.endswith("s"))
