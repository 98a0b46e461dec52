"""The limit of the queue: what waits is read from the server's metrics, and what is beyond is refused as busy."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from engines.serving.backlog import Backlog, metrics_url
from engines.serving.fault import Fault

METRICS = b"""# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="other",version="1"} 90
nv_inference_pending_request_count{model="a.b",version="1"} 7
nv_inference_pending_request_count{model="a.b",version="2"} 3
nv_inference_count{model="a.b",version="1"} 1000
"""


@pytest.fixture
def server() -> Iterator[tuple[str, ...]]:
    """Command line of a server whose metrics are METRICS."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(METRICS)

        def log_message(self, *_: Any) -> None:
            return None

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield ("tritonserver", "--metrics-port", str(running.server_port))
        running.shutdown()


@pytest.fixture
def triton() -> SimpleNamespace:
    said: list[str] = []
    return SimpleNamespace(said=said, Logger=SimpleNamespace(log_warn=said.append))


def test_requests_beyond_the_limit_are_counted(triton: Any, server: tuple[str, ...]) -> None:
    """Of this model alone, whose name has a point, and of all its versions."""
    assert Backlog(triton, "a.b", 6, server).excess() == 4
    assert Backlog(triton, "a.b", 10, server).excess() == 0
    assert Backlog(triton, "aXb", 0, server).excess() == 0
    assert Backlog(triton, "aXb", 1, server).excess() == 0
    busy = Backlog(triton, "a.b", 6, server).refuse(4)
    assert isinstance(busy, Fault) and "10 requests wait, 6 may" in str(busy)


def test_a_server_without_metrics_has_no_limit_and_says_so_once(triton: Any) -> None:
    backlog = Backlog(triton, "tiny", 1, ("tritonserver", "--metrics-port=1"))
    assert backlog.excess() == backlog.excess() == 0
    assert len(triton.said) == 1 and "no limit of the queue" in triton.said[0]


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ((), "http://127.0.0.1:8002/metrics"),
        (("--http-address=10.0.0.1",), "http://10.0.0.1:8002/metrics"),
        (("--metrics-address", "0.0.0.0", "--metrics-port", "9"), "http://127.0.0.1:9/metrics"),
        (("--allow-metrics=false",), None),
    ],
)
def test_the_metrics_are_where_the_server_was_told(options: tuple[str, ...], url: str | None) -> None:
    assert metrics_url(("tritonserver", *options)) == url
