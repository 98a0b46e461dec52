"""``config.pbtxt`` through Triton's own protobuf schema: built from an engine, rendered, and parsed back."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.targets import TARGETS
from engines.triton.ids import PARAMETERS
from engines.triton.interface import LABELS_FILE, data_type, dims, label_output
from engines.triton.settings import PLATFORMS, TritonSettings
from engines.triton.warmup import WarmupSample
from engines.types import BuiltEngine, TensorInfo
from qdq.errors import DeployError, Unavailable


def schema() -> tuple[Any, Any]:
    """(Triton's ``model_config_pb2``, protobuf's ``text_format``). Raises Unavailable when tritonclient is absent."""
    try:  # by name, because neither package ships types
        return (
            importlib.import_module("tritonclient.grpc.model_config_pb2"),
            importlib.import_module("google.protobuf.text_format"),
        )
    except ImportError as error:
        raise Unavailable(
            f"a Triton model repository is written through tritonclient's schema, which is not installed ({error}); "
            "run pip install '.[triton]'"
        ) from error


def build_config(
    engine: BuiltEngine,
    settings: TritonSettings,
    model_file: str,
    samples: list[WarmupSample],
    resource: str | None = None,
) -> Any:  # an inference.ModelConfig message
    """The ModelConfig of `engine` under `settings`; `model_file` is the name in the version folder.

    `resource` of Triton's rate limiter is shared by models that must not run at once on the CPU.
    """
    pb2, _ = schema()
    batched = TARGETS[settings.backend].batches
    config = pb2.ModelConfig(
        name=settings.name,
        platform=PLATFORMS[settings.backend],
        backend=settings.backend,
        default_model_filename=model_file,
        max_batch_size=settings.max_batch_size if batched else 0,
    )
    labelled = label_output(engine, settings.labels)  # refuses labels that fit no output
    if not batched:
        labelled = None  # without its own batch dimension Triton ranks classes over the whole request, not per sample
    for info in engine.inputs:
        config.input.add(**_tensor(pb2, info, batched))
    for info in engine.outputs:
        label_file = LABELS_FILE if info.name == labelled else ""
        config.output.add(label_filename=label_file, **_tensor(pb2, info, batched))
    if batched:
        add_queue(config, settings)
    gpu = TARGETS[settings.backend].gpu
    instances = add_instances(config, settings.instances, gpu)
    if resource is not None and not gpu:
        instances.rate_limiter.resources.add(name=resource, count=1, **{"global": True})
    for key, value in {**parameters(settings), **table_parameters(settings)}.items():
        config.parameters[key].string_value = value
    for sample in samples:
        _add_warmup(pb2, config, sample)
    return config


def add_queue(config: Any, settings: TritonSettings) -> None:
    """Let the server form batches; with a policy of its own for the queue only where a timeout was asked for.

    Any policy makes its batcher sleep while requests wait (`engines.serving.backlog`).
    """
    batching = config.dynamic_batching
    batching.max_queue_delay_microseconds = settings.max_queue_delay_us
    if settings.queue_timeout_ms:
        policy = batching.default_queue_policy
        policy.timeout_action = policy.REJECT
        policy.default_timeout_microseconds = settings.queue_timeout_ms * 1000
        policy.allow_timeout_override = True  # a request may ask for less or more
        policy.max_queue_size = settings.queue_size
    if settings.cache:
        config.response_cache.enable = True


def add_instances(config: Any, count: int, gpu: bool) -> Any:
    """Add the one group of `count` instances; returns it."""
    group = schema()[0].ModelInstanceGroup
    return config.instance_group.add(count=count, kind=group.KIND_GPU if gpu else group.KIND_CPU)


def parameters(settings: TritonSettings) -> dict[str, str]:
    """Backend parameters in the spelling of each backend's README; Triton passes them on without checking."""
    if settings.backend == "openvino":
        # One stream per instance, as the backend's README does in both its latency and its throughput example.
        # The threads are those of all streams together.
        total = (settings.threads or 0) * settings.instances
        threads = {} if settings.threads is None else {"INFERENCE_NUM_THREADS": str(total)}
        return {"NUM_STREAMS": str(settings.instances), **threads}
    return {} if settings.threads is None else {"intra_op_thread_count": str(settings.threads)}


def table_parameters(settings: TritonSettings) -> dict[str, str]:
    """Parameters that say which ids the model has, for who checks them in front of the graph."""
    return {PARAMETERS[name]: str(rows) for name, rows in settings.tables.items()}


def render(config: Any, about: Sequence[str] = ()) -> str:
    """Text form: `about` as comments, fields in schema order and map keys sorted, so that equal ones give equal bytes.

    The schema has no field for the meaning of a tensor, and Triton skips comments.
    """
    _, text_format = schema()
    comments = "".join(f"# {line}\n" for line in about)
    return comments + str(text_format.MessageToString(config, as_utf8=True))


def read_config(path: Path) -> Any:
    """Parse a ``config.pbtxt``. Raises DeployError with line and column for a text the schema refuses."""
    pb2, text_format = schema()
    try:
        text = path.read_text(encoding="utf-8")
        return text_format.Parse(text, pb2.ModelConfig())
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(f"{path} cannot be read ({error}); write the repository again") from error
    except text_format.ParseError as error:
        raise DeployError(f"{path} is not a Triton model configuration (line:column {error}); correct it") from error


def _tensor(pb2: Any, info: TensorInfo, batched: bool) -> dict[str, Any]:
    return {
        "name": info.name,
        "data_type": pb2.DataType.Value(data_type(info.name, info.dtype)),
        "dims": dims(info, batched=batched),
    }


def _add_warmup(pb2: Any, config: Any, sample: WarmupSample) -> None:
    message = config.model_warmup.add(name=sample.name, batch_size=sample.batch_size)
    for item in sample.inputs:
        entry = message.inputs[item.name]
        entry.data_type = pb2.DataType.Value(data_type(item.name, item.array.dtype.name))
        entry.dims.extend(item.array.shape)
        entry.input_data_file = item.file
