"""Ask a Triton server over HTTP, with the standard library alone."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import quote

from engines.client.protocol import (
    TIMED_OUT,
    UNREACHABLE,
    Array,
    ModelInfo,
    Parameter,
    Refused,
    Tensor,
    from_bytes,
    to_bytes,
)

HEADER_LENGTH = "Inference-Header-Content-Length"


class HttpClient:
    """One kept-alive connection to `host`:`port`; a broken one is opened anew by the next request. See `Client`."""

    def __init__(self, host: str, port: int, timeout: float, secure: bool = False) -> None:
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._connection = kind(host, port, timeout=timeout)
        self._where = f"{'https' if secure else 'http'}://{host}:{port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def ready_models(self) -> tuple[str, ...]:
        """See `Client.ready_models`."""
        index = self._json("POST", "/v2/repository/index", b'{"ready": true}')
        return tuple(sorted({entry["name"] for entry in index if entry.get("state", "READY") == "READY"}))

    def describe(self, model: str) -> ModelInfo:
        """See `Client.describe`."""
        found = self._json("GET", _path(model))
        return ModelInfo(model, *(tuple(map(_tensor, found.get(key, ()))) for key in ("inputs", "outputs")))

    def statistics(self, model: str) -> dict[str, Any]:
        """See `Client.statistics`."""
        found: dict[str, Any] = self._json("GET", f"{_path(model)}/stats")["model_stats"][0]
        return found

    def infer(
        self,
        model: ModelInfo,
        feeds: Mapping[str, Array],
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
    ) -> dict[str, Array]:
        """See `Client.infer`."""
        # The request: a JSON head, then the tensors in its order.
        types = {tensor.name: tensor.datatype for tensor in model.inputs}
        parts = {name: to_bytes(array, types[name]) for name, array in feeds.items()}
        inputs = [
            {
                "name": name,
                "datatype": types[name],
                "shape": list(feeds[name].shape),
                "parameters": {"binary_data_size": len(part)},
            }
            for name, part in parts.items()
        ]
        wanted = [{"name": name, "parameters": {"binary_data": True}} for name in outputs or model.output_names]
        head = {"inputs": inputs, "outputs": wanted, "parameters": dict(parameters or {})}
        text = json.dumps(head).encode()
        headers = {HEADER_LENGTH: str(len(text)), "Content-Type": "application/octet-stream"}
        # The answer has the same form.
        answer, body = self._ask("POST", f"{_path(model.name)}/infer", b"".join((text, *parts.values())), headers)
        size = int(answer.getheader(HEADER_LENGTH, len(body)))
        found: dict[str, Array] = {}
        for entry in json.loads(body[:size])["outputs"]:
            length = entry["parameters"]["binary_data_size"]
            found[entry["name"]] = from_bytes(body[size : size + length], entry["datatype"], entry["shape"])
            size += length
        return found

    def _json(self, method: str, path: str, body: bytes | None = None) -> Any:
        return json.loads(self._ask(method, path, body, {})[1] or b"null")

    def _ask(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        try:
            self._connection.request(method, path, body, dict(headers))
            answer = self._connection.getresponse()
            content = answer.read()
        except TimeoutError:
            self._connection.close()
            raise Refused(TIMED_OUT, f"{self._where}{path}: no answer within {self._connection.timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Refused(UNREACHABLE, f"{self._where}{path}: {reason}; is a Triton server running there?") from error
        if answer.status != http.client.OK:
            raise Refused(answer.status, f"{self._where}{path}: {_said(content) or answer.reason}")
        return answer, content


def _path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    return Tensor(entry["name"], entry["datatype"], tuple(entry["shape"]))


def _said(content: bytes) -> str:
    """The server's own sentence in the body of an error."""
    text = content.decode("utf-8", "replace").strip()
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return str(found.get("error", text)) if isinstance(found, dict) else text
