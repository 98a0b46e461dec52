"""One run of tritonserver: started on free ports, ready when a real request is answered, gone without a trace."""

from __future__ import annotations

import contextlib
import ctypes
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engines.triton.server.installation import Installation, find
from engines.triton.server.leftovers import PREFIX, clean, note, sweep
from engines.triton.server.patience import Patience
from engines.triton.server.trial import Trial, trials
from qdq.errors import DeployError

READY_SECONDS = 120.0  # that no model answers in, and the server does not work in either
STOP_SECONDS = 30.0  # requests in flight are answered in that time, then the server goes
NOISE = ("NVML", "DCGM", "CudaDriver", "pinned system memory")  # said by every server without a GPU
CACHE_BYTES = 64 * 1024**2


@dataclass(frozen=True)
class Ports:
    """Ports of one server; 0 is any free one."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0

    def chosen(self, host: str) -> Ports:
        """The same ports with free ones for 0."""
        with contextlib.ExitStack() as held:
            return Ports(*(port or _free(host, held) for port in (self.http, self.grpc, self.metrics)))


@dataclass(frozen=True)
class ServerOptions:
    """Address of a server (loopback unless told otherwise), its ports, its log, and more of tritonserver's options."""

    host: str = "127.0.0.1"
    ports: Ports = field(default_factory=Ports)
    log: Path | None = None  # what the server says; None is a file of its own that goes with it
    arguments: tuple[str, ...] = ()


@dataclass
class Server:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    host: str
    ports: Ports
    log: Path
    prefix: str  # of its regions in /dev/shm
    tried: tuple[Trial, ...] = ()

    @property
    def http(self) -> str:
        """Address for HTTP, ``http://127.0.0.1:8000``."""
        return f"http://{self.host}:{self.ports.http}"

    @property
    def grpc(self) -> str:
        """Address for gRPC, without a scheme, as its clients take it."""
        return f"{self.host}:{self.ports.grpc}"

    @property
    def metrics(self) -> str:
        """Address of the metrics."""
        return f"http://{self.host}:{self.ports.metrics}/metrics"

    def wait_ready(self, repository: Path, seconds: float = READY_SECONDS) -> None:
        """Return when every model has answered its own warm-up request.

        Raises DeployError with the server's reason, or when nothing of it moved for `seconds`.
        """
        patience = Patience(self.process.pid, seconds)
        waiting = list(trials(repository))
        self.tried = tuple(waiting)
        while waiting:
            if self.process.poll() is not None:
                raise DeployError(f"tritonserver ended with {self.process.returncode}: {self._says()}")
            if patience.is_over():
                raise DeployError(f"{waiting[0].model} did not answer within {seconds:.0f} s: {self._says()}")
            try:
                waiting[0].ask(self.http)
            except OSError:
                if refused := waiting[0].refusal(self.http):
                    raise DeployError(f"{waiting[0].model} refuses its own warm-up request: {refused}") from None
                time.sleep(0.1)
            else:
                waiting.pop(0)
                patience.renew()

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """Let requests in flight be answered, then end the server; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(seconds)
            self.process.kill()
        return self.process.wait()

    def _says(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        lines = [line for line in lines if line.strip() and not any(word in line for word in NOISE)]
        why = [line for line in lines if "failed to load '" in line]  # a model's own reason comes before what follows
        wrong = [line for line in lines if line.startswith("E") or "failed" in line.lower() or "error" in line.lower()]
        return "; ".join((why or wrong or lines)[-3:]) or "it said nothing"


@contextlib.contextmanager
def running(repository: Path, options: ServerOptions | None = None) -> Iterator[Server]:
    """Start a server on `repository` and yield it when all models have answered; at the end nothing of it is left.

    What an earlier server of this user left behind after it was killed is cleaned away first. Raises Unavailable
    without a server on this machine, DeployError when a model does not load.
    """
    options = options or ServerOptions()
    installation = find()
    sweep()
    prefix = f"{PREFIX}{secrets.token_hex(4)}_"
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        server = _start(installation, repository, options, folder)
        try:
            server.wait_ready(repository)
            yield server
        finally:
            server.stop()
    finally:
        clean(prefix)
        shutil.rmtree(folder, ignore_errors=True)


def _start(installation: Installation, repository: Path, options: ServerOptions, folder: Path) -> Server:
    """The process, with a note of it in `folder` by which a later start finds what it leaves."""
    prefix, ports = folder.name, options.ports.chosen(options.host)
    log = options.log or folder / "server.log"
    command = [str(installation.binary), f"--model-repository={repository.resolve()}", *_where(options.host, ports)]
    command += [f"--backend-config=python,shm-region-prefix-name={prefix}", f"--exit-timeout-secs={STOP_SECONDS:.0f}"]
    command.append(f"--backend-config=python,stub-timeout-seconds={READY_SECONDS:.0f}")  # 30 by default
    if backends := installation.backends(folder / "backends"):
        command.append(f"--backend-directory={backends}")
    if installation.caches:
        command.append(f"--cache-directory={installation.caches}")
    command += [f"--cache-config=local,size={CACHE_BYTES}", "--exit-on-error=true", *options.arguments]
    with log.open("wb") as written:
        process = subprocess.Popen(
            command,
            env=dict(installation.environment(folder / "python")),
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends the server in order
            preexec_fn=_end_with_parent,
        )
    note(folder, process.pid)
    return Server(process, options.host, ports, log, prefix)


def _where(host: str, ports: Ports) -> list[str]:
    return [
        *(f"--{kind}-address={host}" for kind in ("http", "grpc", "metrics")),
        *(f"--{kind}-port={port}" for kind, port in (("http", ports.http), ("grpc", ports.grpc))),
        f"--metrics-port={ports.metrics}",
    ]


def _end_with_parent() -> None:
    """Have the kernel end the server when this process is killed; prctl(2), PR_SET_PDEATHSIG is 1."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _free(host: str, held: contextlib.ExitStack) -> int:
    """A port that nobody has; kept until all are chosen, so that they differ."""
    listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    listener.bind((host, 0))
    return int(listener.getsockname()[1])
