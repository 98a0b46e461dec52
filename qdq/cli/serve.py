"""`qdq serve`: a real Triton server on what was deployed, until it is told to end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qdq.base.choices import RAW_REPOSITORY, REPOSITORY
from qdq.base.option import check, option
from qdq.errors import ConfigError, DeployError
from qdq.pipeline.folders import worked_in

if TYPE_CHECKING:
    from engines.triton.server import Server

PORTS = (0, 65535)
BUILD = Path("build")
CONFIG = "*/config.pbtxt"  # of the models in a repository
MISSED = 3  # watches in a row without an answer, after which a server counts as lost


@dataclass(frozen=True)
class ServeOptions:
    """Options of `qdq serve`."""

    what: str | None = option(
        None,
        "model repository, or work directory of a run (default: the last run below build/ that has one)",
        metavar="WHAT",
        positional=True,
    )
    raw: bool = option(False, "the repository of token ids beside that of texts")
    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 for every machine that can reach this one")
    http_port: int = option(8000, "0 is any free one", within=PORTS)
    grpc_port: int = option(8001, "0 is any free one", within=PORTS)
    metrics_port: int = option(8002, "0 is any free one", within=PORTS)
    log: str | None = option(None, "file for what the server says (default: none)", metavar="FILE")
    watch: int = option(
        10, "seconds between requests that test whether models still answer; 0 is never", within=(0, 3600)
    )


def serve(options: ServeOptions) -> Iterator[str]:
    """Start a server; yield the lines for the screen, and return when it was told to end (Ctrl-C, SIGTERM).

    Requests in flight are answered first. Raises Unavailable without a server, DeployError when a model does not load,
    or when the server is lost: its process has ended, or a model does not answer any more.
    """
    from engines.triton.server import Ports, ServerOptions, running
    from qdq.base.screen import Screen

    check(options)
    repository = repository_of(options)
    ports = Ports(options.http_port, options.grpc_port, options.metrics_port)
    log = Path(options.log) if options.log else None
    try:
        with ExitStack() as stack:
            with Screen().stage("start") as stage:
                server = stack.enter_context(running(repository, ServerOptions(options.host, ports, log)))
                stage.say("the server, its models loaded and tried")
            yield f"serving {repository}, Ctrl-C ends it"
            yield f"ready {server.http} grpc {server.ports.grpc} metrics {server.ports.metrics}"
            yield from (f"  {trial.curl(server.http)}" for trial in server.tried)
            _wait(server, options.watch)
    except KeyboardInterrupt:  # what ends a server is no failure of it
        yield "the server has ended; requests in flight were answered"


def repository_of(options: ServeOptions) -> Path:
    """The repository to serve: of the run that was worked in last, as `qdq explain` takes it, and there the newest one.

    Raises ConfigError where there is none.
    """
    name = RAW_REPOSITORY if options.raw else REPOSITORY
    where = Path(options.what) if options.what else BUILD
    if any(where.glob(CONFIG)):
        return where
    pattern = f"*/{name}" if options.what else f"*/*/{name}"  # of a work directory's targets, of all below build/
    found = [path for path in (*where.glob(name), *where.glob(pattern)) if any(path.glob(CONFIG))]
    if not found:
        raise ConfigError(
            f"{where.resolve()}: no {name} there; give the folder that qdq deploy wrote, or run make engine first"
            + (", with --raw-inputs" if options.raw else "")
        )
    return max(found, key=lambda path: (worked_in(path.parents[1]), path.stat().st_mtime))


def _wait(server: Server, watch: int) -> None:
    """Return never; raise DeployError when the server is lost."""
    missed = 0
    while True:
        time.sleep(watch or 1)
        if (code := server.process.poll()) is not None:
            raise DeployError(f"tritonserver ended by itself with {code}; start it again")
        silent = [trial.model for trial in server.tried if watch and not trial.alive(server.http)]
        missed = missed + 1 if silent else 0
        if missed == MISSED:
            raise DeployError(f"{silent[0]} has not answered {MISSED} requests in a row; start the server again")
