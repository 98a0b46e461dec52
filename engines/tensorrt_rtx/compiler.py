"""The compiler as a child process, and the two questions it is asked: is the graph taken, and as what engine."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from engines.tensorrt_rtx.graph import Graph
from engines.tensorrt_rtx.kernels import Compiled, NodeError, Refused
from engines.tensorrt_rtx.layers import Account
from engines.tensorrt_rtx.libraries import folder
from engines.tensorrt_rtx.refusals import builder_refusals, parser_refusals
from qdq.errors import BuildError, ConfigError

CHILD = Path(__file__).with_name("child.py")
TIMEOUT_S = 900.0  # a BERT-large takes half a minute on two busy cores
LAST_LINES = 5  # of a dead child's standard error that its error quotes
LAST_BYTES = 4096

Range = tuple[int, int, int]  # minimum, optimum, maximum


@dataclass(frozen=True)
class Shapes:
    """Sizes of the dynamic axes of a graph's inputs; axes that the graph fixes stay as they are.

    `choices` is the middle axis of inputs [batch, choices, sequence]; `named` are axes that are found by their names.
    """

    batch: Range
    sequence: Range
    choices: Range = (2, 2, 2)
    named: Mapping[str, Range] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for axis, (low, best, high) in self.ranges().items():
            if not 1 <= low <= best <= high:
                raise ConfigError(f"{axis} {low}, {best}, {high}: expected 1 <= minimum <= optimum <= maximum")

    @classmethod
    def fixed(cls, batch: int, sequence: int, choices: int = 2) -> Self:
        """One shape: the engine takes no other, and its bytes can be counted."""
        return cls((batch,) * 3, (sequence,) * 3, (choices,) * 3)

    @classmethod
    def between(cls, least: tuple[int, int], best: tuple[int, int], most: tuple[int, int], choices: int = 2) -> Self:
        """One profile from `least` to `most`, each (batch, sequence), made for `best`."""
        low, middle, high = least, best, most
        return cls((low[0], middle[0], high[0]), (low[1], middle[1], high[1]), (min(choices, 1), choices, choices))

    @classmethod
    def of(cls, ranges: Mapping[str, Range]) -> Self:
        """Minimum, optimum and maximum by axis: batch, choices, sequence, and others by the names that inputs give."""
        others = dict(ranges)
        return cls(others.pop("batch"), others.pop("sequence"), others.pop("choices"), others)

    def tuned(self) -> Self:
        """The optimum of every axis as the one shape."""
        return self.of({axis: (best, best, best) for axis, (_, best, _) in self.ranges().items()})

    def ranges(self) -> dict[str, Range]:
        """Minimum, optimum and maximum of every axis."""
        return {"batch": self.batch, "choices": self.choices, "sequence": self.sequence, **self.named}


class Compiler:
    """One child process for any number of graphs, started with the first; as a context manager it is ended for sure.

    Loading the libraries takes as long as compiling a small graph, so many graphs go through one compiler. A child that
    crashes is an error for its graph alone: the next one gets a new child. The thread that first used a compiler must
    outlive it: the kernel ends the child with that thread.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._hello: Mapping[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the child, whatever it is doing."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    @property
    def version(self) -> str:
        """Version of the loaded libraries. Raises Unavailable without them, BuildError when they cannot be loaded."""
        self._start()
        return str(self._hello["version"])

    @property
    def capabilities(self) -> tuple[int, ...]:
        """Compute capabilities that this version compiles for, 75 is 7.5. Raises like `version`."""
        self._start()
        return tuple(self._hello["capabilities"])

    def parse(self, model: Path) -> tuple[NodeError, ...]:
        """Refusals of the parser; none when it takes the graph.

        Raises ConfigError for a path that is no file, Unavailable without the packages, BuildError when the child dies.
        """
        return parser_refusals(self._ask(model, None, (), None), model)

    def compile(
        self,
        model: Path,
        capabilities: Sequence[int] = (75,),
        shapes: Shapes | None = None,
        plan: Path | None = None,
    ) -> Compiled:
        """Compile for all of `capabilities` at once and read the engine's kernels; `plan` receives the engine file.

        A plan for several capabilities has one list of kernels, the one that fits them all. Default shape: 40 x 128.
        Raises Refused when parser or builder refuse the graph, ConfigError for a capability that the version lacks, and
        what `parse` raises; BuildError, too, for a log that cannot be read.
        """
        self._check_capabilities(capabilities)
        reply = self._ask(model, shapes or Shapes.fixed(40, 128), capabilities, plan)
        errors = parser_refusals(reply, model)
        if not errors and reply["plan_bytes"] is None:
            errors = builder_refusals(reply["log"], model)
        if errors:
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            raise Refused(f"{model}: TensorRT for RTX refuses it: {errors[0]}{more}", errors)
        account = Account(reply, self.version)
        return Compiled(
            kernels=account.kernels(Graph(model).layers),
            gemms=account.gemms(),
            capabilities=tuple(capabilities),
            version=self.version,
            plan_bytes=reply["plan_bytes"],
            seconds=reply["seconds"],
            peak_mb=reply["peak_mb"],
            axes=tuple(reply["axes"]),
        )

    def _check_capabilities(self, capabilities: Sequence[int]) -> None:
        known = self.capabilities
        for capability in capabilities:
            if capability not in known:
                listed = ", ".join(map(str, known))
                raise ConfigError(
                    f"compute capability {capability}: TensorRT for RTX {self.version} compiles for {listed}; take the "
                    "highest of these that is not above yours"
                )
        if not capabilities or len(set(capabilities)) < len(capabilities):
            raise ConfigError(f"compute capabilities {list(capabilities)}: expected one or more, each once")

    def _ask(
        self, model: Path, shapes: Shapes | None, capabilities: Sequence[int], plan: Path | None
    ) -> Mapping[str, Any]:
        """One request, and its reply; anything that goes wrong on the way ends the child."""
        if not model.is_file():
            raise ConfigError(f"{model} is not a file; give the path of an ONNX file")
        try:
            if plan is not None:
                plan.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BuildError(f"{plan}: cannot be written, {error.strerror}") from error
        request = {
            "model": str(model.absolute()),
            "capabilities": list(capabilities),
            "shapes": None if shapes is None else shapes.ranges(),
            "plan": None if plan is None else str(plan.absolute()),
        }
        self._start()
        reply = self._exchange(json.dumps(request), str(model))
        if "failed" in reply:
            raise BuildError(f"{model}: the compiler's process: {reply['failed']}")
        return reply

    def _start(self) -> None:
        """Start the child unless it lives; its first line says which version it is."""
        if self._child is not None:
            return
        command = [sys.executable, "-P", str(CHILD), str(folder())]  # -P: this folder must not shadow modules
        self._errors = os.fdopen(os.memfd_create("tensorrt-rtx"), "w+b")
        try:
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0
            )
        except OSError as error:
            self.close()
            raise BuildError(f"the compiler's process cannot be started: {error.strerror}") from error
        self._hello = self._exchange(None, "loading TensorRT for RTX")

    def _exchange(self, request: str | None, what: str) -> Mapping[str, Any]:
        """Send a line and wait for one; the child is ended when none comes, or the caller is interrupted."""
        child = self._child
        if child is None or child.stdin is None or child.stdout is None:
            raise BuildError(f"{what}: the compiler's process is not running")
        # Whatever ends the wait early ends the child, too: it may be in the middle of a build.
        try:
            if request is not None:
                child.stdin.write(request.encode() + b"\n")
            line = _read_line(child.stdout, time.monotonic() + self.timeout_s)
            reply = json.loads(line) if line.endswith(b"\n") else None
        except TimeoutError as error:
            self.close()
            raise BuildError(
                f"{what}: no answer of the compiler's process within {self.timeout_s:g} seconds"
            ) from error
        except (BrokenPipeError, ValueError):
            reply = None
        except BaseException:
            self.close()
            raise
        # No whole line: the child has ended by itself.
        if not isinstance(reply, dict):
            raise BuildError(f"{what}: the compiler's process died ({self._last_words()})")
        return reply

    def _last_words(self) -> str:
        """Exit status of a dead child and the end of what it wrote; the child is done with."""
        child, errors = self._child, self._errors
        if child is None or errors is None:
            return "it was not running"
        child.kill()
        status = child.wait()
        errors.seek(max(errors.seek(0, os.SEEK_END) - LAST_BYTES, 0))
        lines = errors.read().decode(errors="replace").strip().splitlines()[-LAST_LINES:]
        self.close()
        return f"status {status}: {' | '.join(lines) or 'it said nothing'}"


def parse(model: Path) -> tuple[NodeError, ...]:
    """Refusals of the parser, as `Compiler.parse` returns and raises them, in a child of its own."""
    with Compiler() as compiler:
        return compiler.parse(model)


def compile_graph(
    model: Path, capabilities: Sequence[int] = (75,), shapes: Shapes | None = None, plan: Path | None = None
) -> Compiled:
    """Compile one graph, as `Compiler.compile` does, in a child of its own."""
    with Compiler() as compiler:
        return compiler.compile(model, capabilities, shapes, plan)


def _read_line(pipe: IO[bytes], until: float) -> bytes:
    """One line of an unbuffered pipe; shorter when the other end closes. Raises TimeoutError at the time `until`."""
    parts: list[bytes] = []
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not parts or not parts[-1].endswith(b"\n"):
            if not selector.select(max(until - time.monotonic(), 0)):
                raise TimeoutError
            part = os.read(pipe.fileno(), 1 << 20)
            if not part:
                break
            parts.append(part)
    return b"".join(parts)
