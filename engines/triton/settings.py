"""Settings of serving one model with Triton, validated and never rewritten."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from engines.targets import TARGETS
from qdq.base.config import choice
from qdq.errors import ConfigError

Backend = Literal["onnxruntime", "openvino", "tensorrt"]

# The platform goes with the backend in Triton's own table; OpenVINO has no platform spelling there.
PLATFORMS: Mapping[str, str] = {name: target.platform for name, target in TARGETS.items() if name in target.backends}

_SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class TritonSettings:
    """Serving settings of one model. Raises ConfigError for a value Triton would refuse or silently misread.

    `max_batch_size` counts samples per execution and `max_queue_delay_us` is in microseconds. The `openvino` backend
    cannot form batches of varying size, so there `max_batch_size` sets only the largest warm-up sample, and delay and
    queue are not written (docs/triton.md says why).

    `queue_timeout_ms` limits how long a request waits for a batch, and then `queue_size` how many do: others get a 503.
    0 is no limit, and the default, because any policy for the queue makes Triton's batcher sleep while requests wait
    (`engines.serving.backlog`), and a timeout costs throughput until the model is loaded anew
    (github.com/triton-inference-server/server/issues/8870). A text model keeps the limit of its queue itself.

    `buckets` are sequence lengths, strictly increasing: one model each instead of one for all, `<name>_s<length>`.
    Triton merges requests of equal shape only, and a request of another length ends the batch it was forming; with a
    queue per length, texts wait for others of their length alone. On a CPU all of them share one rate-limiter resource,
    so that (under ``--rate-limit=execution_count``) no two run at once and share the same cores.
    """

    name: str  # model name = folder name inside the repository
    backend: Backend
    max_batch_size: int = 40
    max_queue_delay_us: int = 500
    queue_size: int = 256
    queue_timeout_ms: int = 0
    cache: bool = False  # the server's response cache answers what was asked before
    instances: int = 1
    threads: int | None = None  # CPU threads per instance; None leaves the runtime's default
    labels: tuple[str, ...] = ()  # class names of a [B,C] classification output, in class order
    buckets: tuple[int, ...] = ()
    tables: Mapping[str, int] = field(default_factory=dict)  # rows of input_ids' and token_type_ids' tables
    about: tuple[str, ...] = ()  # sentences on the meaning of inputs and outputs, for whoever writes a client

    def __post_init__(self) -> None:
        if not is_safe_name(self.name):
            raise ConfigError(
                f"Triton model name '{self.name}' is not a plain folder name; use letters, digits, '_', '-' and '.', "
                "not starting with '.'"
            )
        choice(self.backend, PLATFORMS, "Triton backend")
        _at_least(1, self.max_batch_size, "max_batch_size")
        _at_least(1, self.instances, "instances")
        _at_least(0, self.max_queue_delay_us, "max_queue_delay_us")
        _at_least(0, self.queue_size, "queue_size")
        _at_least(0, self.queue_timeout_ms, "queue_timeout_ms")
        self._check_buckets()
        self._check_threads()
        self._check_labels()
        if any(len(line.splitlines()) != 1 for line in self.about):
            raise ConfigError("a sentence about the model is one line, because a comment of config.pbtxt is")

    def _check_buckets(self) -> None:
        if list(self.buckets) != sorted(set(self.buckets)) or any(width < 1 for width in self.buckets):
            raise ConfigError(f"buckets {self.buckets} must be strictly increasing sequence lengths of at least 1")
        if self.buckets and not TARGETS[self.backend].batches:
            raise ConfigError(
                "buckets have no meaning for the openvino backend, whose batches are the client's; use onnxruntime"
            )

    def _check_threads(self) -> None:
        if self.threads is None:
            return
        _at_least(1, self.threads, "threads")
        if TARGETS[self.backend].gpu:
            raise ConfigError("threads has no meaning for the tensorrt backend, which runs on a GPU; leave it out")

    def _check_labels(self) -> None:
        # Triton's label file holds one name per line, so a name must be exactly one non-empty line.
        for label in self.labels:
            if not label or len(label.splitlines()) != 1 or label.splitlines()[0] != label:
                raise ConfigError(f"label {label!r} must be one non-empty line, because labels.txt has one per line")


def bucket_model(name: str, width: int) -> str:
    """Name of the model that serves texts padded to `width` tokens."""
    return f"{name}_s{width}"


def model_for(name: str, buckets: tuple[int, ...], tokens: int) -> tuple[str, int]:
    """(model, width): where a client sends a text of `tokens` tokens, and what it pads it to. Raises ConfigError."""
    fitting = [width for width in buckets if width >= tokens]
    if not fitting:
        raise ConfigError(f"a text of {tokens} tokens fits none of the buckets {buckets}; cut it to {max(buckets)}")
    return bucket_model(name, fitting[0]), fitting[0]


def is_safe_name(name: str) -> bool:
    """Return whether `name` is one path component that no shell, URL or file system reads as anything else."""
    return _SAFE_NAME.fullmatch(name) is not None


def _at_least(least: int, value: int, what: str) -> None:
    if value < least:
        raise ConfigError(f"{what} is {value}; it must be at least {least}")
