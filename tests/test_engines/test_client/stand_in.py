"""A stand-in for Triton that speaks its HTTP and gRPC in this process: a model of text that counts characters."""

from __future__ import annotations

import contextlib
import json
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

NAME = "counts"
INPUTS = {"TEXT": "BYTES", "TEXT_PAIR": "BYTES"}
OUTPUTS = {"LABEL": "BYTES", "SCORE": "FP32", "LOGITS": "FP32", "TOKENS": "INT32"}


@dataclass
class StandIn:
    """The model, what it was asked, and how it behaves."""

    inputs: dict[str, str] = field(default_factory=lambda: dict(INPUTS))
    names: tuple[str, ...] = (NAME,)
    seen: list[dict[str, Any]] = field(default_factory=list)
    delay: float = 0.0
    busy: bool = False  # its queue is full
    http: str = ""
    executions: int = 0

    def answer(self, feeds: dict[str, bytes], outputs: list[str], parameters: dict[str, Any]) -> tuple[int, Any]:
        """HTTP's status, and outputs as (name, type, shape, bytes), or the message of an error."""
        texts = {name: _strings(data) for name, data in feeds.items()}
        self.seen.append({"texts": texts, "outputs": outputs, "parameters": parameters})
        time.sleep(self.delay)
        if self.busy:
            return 503, "Exceeds maximum queue size"
        if not (text := texts["TEXT"][0]):
            return 400, "TEXT is empty"
        self.executions += 1
        logits = np.array([[len(text), 10.0]], "<f4")
        label = ("long" if len(text) > 10 else "short").encode()
        made = {
            "LABEL": ([1, 1], struct.pack("<I", len(label)) + label),
            "SCORE": ([1, 1], logits.max(-1, keepdims=True).tobytes()),
            "LOGITS": ([1, 2], logits.tobytes()),
            "TOKENS": ([1, 1], np.array([[len(text.split())]], "<i4").tobytes()),
        }
        return 200, [(name, OUTPUTS[name], *made[name]) for name in outputs or made]

    @property
    def metadata(self) -> dict[str, Any]:
        sides = {"inputs": self.inputs, "outputs": OUTPUTS}
        return {
            key: [{"name": name, "datatype": kind, "shape": [-1, 1]} for name, kind in side.items()]
            for key, side in sides.items()
        }

    @property
    def statistics(self) -> dict[str, Any]:
        return {"inference_count": self.executions, "execution_count": self.executions, "batch_stats": []}


def _strings(data: bytes) -> list[str]:
    found = []
    while data:
        (size,) = struct.unpack_from("<I", data)
        found.append(data[4 : 4 + size].decode())
        data = data[4 + size :]
    return found


def _handler(model: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name, _, rest = self.path.removeprefix("/v2/models/").partition("/")
            if name not in model.names:
                self._reply(404, {"error": f"Request for unknown model: '{name}' is not found"})
            else:
                self._reply(200, {"model_stats": [model.statistics]} if rest == "stats" else model.metadata)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v2/repository/index":
                return self._reply(200, [{"name": name, "state": "READY"} for name in model.names])
            size = int(self.headers["Inference-Header-Content-Length"])
            head, data = json.loads(body[:size]), body[size:]
            feeds = {}
            for item in head["inputs"]:
                assert item["datatype"] == INPUTS[item["name"]] and item["shape"][0] == 1
                length = item["parameters"]["binary_data_size"]
                feeds[item["name"]], data = data[:length], data[length:]
            outputs = [item["name"] for item in head.get("outputs", ())]
            status, found = model.answer(feeds, outputs, head["parameters"])
            if status != 200:
                return self._reply(status, {"error": found})
            entries = [
                {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(part)}}
                for name, kind, shape, part in found
            ]
            self._reply(200, {"outputs": entries}, b"".join(part for *_, part in found))

        def _reply(self, status: int, content: Any, tail: bytes = b"") -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text + tail)))
            self.send_header("Inference-Header-Content-Length", str(len(text)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):  # a client that did not wait
                self.wfile.write(text + tail)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def _grpc_server(model: StandIn) -> Any:
    grpc = pytest.importorskip("grpc")
    messages = pytest.importorskip("tritonclient.grpc.service_pb2", reason="the triton extra is not installed")
    from tritonclient.grpc import service_pb2_grpc

    codes = {400: grpc.StatusCode.INVALID_ARGUMENT, 404: grpc.StatusCode.NOT_FOUND, 503: grpc.StatusCode.UNAVAILABLE}

    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
        def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802 (its name in the protocol)
            found = messages.RepositoryIndexResponse()
            for name in model.names:
                found.models.add(name=name, state="READY")
            return found

        def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802 (its name in the protocol)
            if request.name not in model.names:
                context.abort(codes[404], f"Request for unknown model: '{request.name}' is not found")
            return messages.ModelMetadataResponse(name=request.name, **model.metadata)

        def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802 (its name in the protocol)
            found = messages.ModelStatisticsResponse()
            statistics = found.model_stats.add()
            statistics.inference_count = statistics.execution_count = model.executions
            return found

        def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 (its name in the protocol)
            feeds = dict(zip((item.name for item in request.inputs), request.raw_input_contents, strict=True))
            parameters = {
                name: getattr(one, one.WhichOneof("parameter_choice")) for name, one in request.parameters.items()
            }
            status, found = model.answer(feeds, [item.name for item in request.outputs], parameters)
            if status != 200:
                context.abort(codes[status], found)
            answer = messages.ModelInferResponse()
            for name, kind, shape, part in found:
                answer.outputs.add(name=name, datatype=kind, shape=shape)
                answer.raw_output_contents.append(part)
            return answer

    server = grpc.server(ThreadPoolExecutor(8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    return server


@contextlib.contextmanager
def http_server() -> Iterator[StandIn]:
    """A stand-in behind an HTTP server of its own."""
    model = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(model))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    model.http = f"http://127.0.0.1:{server.server_port}"
    yield model
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def grpc_server(model: StandIn) -> Iterator[str]:
    """The address of the same model over gRPC; skips without the `triton` extra."""
    server = _grpc_server(model)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    server.stop(0).wait()
