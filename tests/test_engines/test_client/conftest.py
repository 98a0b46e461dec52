"""The stand-in for Triton, and its address over each protocol."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .stand_in import StandIn, grpc_server, http_server


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    """The model behind an HTTP server of its own."""
    with http_server() as model:
        yield model


@pytest.fixture(params=["http", "grpc"])
def url(request: pytest.FixtureRequest, stand_in: StandIn) -> Iterator[str]:
    """The address of the stand-in over each protocol."""
    if request.param == "http":
        yield stand_in.http
    else:
        with grpc_server(stand_in) as address:
            yield address
