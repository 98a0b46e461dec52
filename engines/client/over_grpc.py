"""Ask a Triton server over gRPC, with the messages of tritonclient (extra `triton`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

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
from qdq.errors import Unavailable

LARGEST = 2**31 - 1  # bytes of a message; gRPC's own limit of 4 MiB is less than some logits
# Triton's statuses by the name of gRPC's code (src/grpc/grpc_utils.cc and src/http_server.cc of its server)
STATUSES: Mapping[str, int] = {
    "INVALID_ARGUMENT": 400,
    "ALREADY_EXISTS": 400,
    "NOT_FOUND": 404,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": TIMED_OUT,
}


class GrpcClient:
    """One channel to `host`:`port`. Raises Unavailable without tritonclient; see `Client`."""

    def __init__(self, host: str, port: int, timeout: float, secure: bool = False) -> None:
        try:
            import grpc
            from tritonclient.grpc import service_pb2, service_pb2_grpc
        except ImportError as error:
            raise Unavailable("gRPC needs tritonclient; run: pip install '.[triton]', or ask over http") from error
        limits = [(f"grpc.max_{way}_message_length", LARGEST) for way in ("send", "receive")]
        self._where = f"{host}:{port}"
        if secure:
            self._channel = grpc.secure_channel(self._where, grpc.ssl_channel_credentials(), limits)
        else:
            self._channel = grpc.insecure_channel(self._where, limits)
        self._grpc, self._messages, self._timeout = grpc, service_pb2, timeout
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def ready_models(self) -> tuple[str, ...]:
        """See `Client.ready_models`."""
        found = self._ask("RepositoryIndex", self._messages.RepositoryIndexRequest(ready=True))
        return tuple(sorted({model.name for model in found.models if model.state in ("", "READY")}))

    def describe(self, model: str) -> ModelInfo:
        """See `Client.describe`."""
        found = self._ask("ModelMetadata", self._messages.ModelMetadataRequest(name=model))
        sides = ([Tensor(t.name, t.datatype, tuple(t.shape)) for t in side] for side in (found.inputs, found.outputs))
        return ModelInfo(model, *map(tuple, sides))

    def statistics(self, model: str) -> dict[str, Any]:
        """See `Client.statistics`."""
        from google.protobuf.json_format import MessageToDict

        found = self._ask("ModelStatistics", self._messages.ModelStatisticsRequest(name=model)).model_stats[0]
        named: dict[str, Any] = MessageToDict(found, preserving_proto_field_name=True)
        return named

    def infer(
        self,
        model: ModelInfo,
        feeds: Mapping[str, Array],
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
    ) -> dict[str, Array]:
        """See `Client.infer`."""
        types = {tensor.name: tensor.datatype for tensor in model.inputs}
        request = self._messages.ModelInferRequest(model_name=model.name)
        for name, array in feeds.items():
            request.inputs.add(name=name, datatype=types[name], shape=array.shape)
            request.raw_input_contents.append(to_bytes(array, types[name]))
        for name in outputs:
            request.outputs.add(name=name)
        for name, value in (parameters or {}).items():
            kind = {bool: "bool_param", int: "int64_param"}.get(type(value), "string_param")
            setattr(request.parameters[name], kind, value)
        answer = self._ask("ModelInfer", request)
        tensors = zip(answer.outputs, answer.raw_output_contents, strict=True)
        return {tensor.name: from_bytes(raw, tensor.datatype, tensor.shape) for tensor, raw in tensors}

    def _ask(self, method: str, request: Any) -> Any:
        """The answer to one call; a refusal with the status that Triton's HTTP gives it."""
        try:
            return getattr(self._stub, method)(request, timeout=self._timeout)
        except self._grpc.RpcError as error:
            code, details = error.code().name, str(error.details())
            status = STATUSES.get(code, 500)
            # gRPC itself says UNAVAILABLE, too, when nobody listens or the connection breaks.
            if status == 503 and ("connect" in details or "Socket closed" in details or "GOAWAY" in details):
                status = UNREACHABLE
            raise Refused(status, f"grpc://{self._where} {method}: {details}") from error
