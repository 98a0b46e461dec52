"""Measure real servers for docs/triton.md: ``python -m qdq.studies.serving build/<model>/<target> …``.

The first target is loaded, over HTTP and gRPC: its text repository, and its raw one where `qdq deploy --raw-inputs`
wrote it, with the engine itself before and after each load, and a server without an engine in its place. Of every
target 200 texts of its own task are asked, and every answer is compared with the engine's. For an idle machine.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import read_json, write_json
from qdq.base.choices import RAW_REPOSITORY, REPOSITORY
from qdq.errors import ConfigError
from qdq.studies.serving_floor import floors
from qdq.studies.study import RESULTS, exit_code, parser

if TYPE_CHECKING:
    from engines.triton.server import Server
    from qdq.cli.judge import Judge
    from qdq.cli.load import LoadOptions

SERVER = "Triton 2.51 of nvidia-pytriton 0.7.0"
TEXTS, ASKING = 200, 8  # of a task, and the clients that ask them
# Real text of the checkpoints in ../shared, below its data/; others get the bundled text.
DATA: Mapping[str, str] = {
    "all-MiniLM-L6-v2": "mrpc/dev.tsv",
    "minilm-mrpc": "mrpc/dev.tsv",
    "minilm-conll": "conll2003/valid.txt",
    "minilm-squad": "squad/dev-v1.1.json",
}


@dataclass(frozen=True)
class Settings:
    """Loads of a study: clients one after the other, those of the raw repository, seconds of each load."""

    clients: tuple[int, ...] = (1, 8, 16, 32)
    raw_clients: tuple[int, ...] = (16,)
    seconds: float = 8.0
    texts: int = TEXTS


def measure(target: Path, data: str | None, settings: Settings, loaded: bool) -> dict[str, Any]:
    """Figures of `target`, a work directory's folder of one target; with loads only if `loaded`.

    Raises QdqError.
    """
    if not (target / REPOSITORY).is_dir():
        raise ConfigError(f"{target}: has no {REPOSITORY}; give the folder of one target, build/<model>/openvino")
    (name,) = (path.parent.parent.name for path in (target / REPOSITORY).glob("*/1/text.json"))
    report: dict[str, Any] = {"model": name, "target": target.name, "server": SERVER, "loads": [], "asked": []}
    for form in ("text", "raw"):
        repository = target / (REPOSITORY if form == "text" else RAW_REPOSITORY)
        if not repository.is_dir() or (form == "raw" and not loaded):
            continue
        with _served(repository, form, name) as (server, options, judge):
            if form == "text":
                report |= {"data": _named(data), "task": judge.served.loaded.task.name}
                report["asked"] = list(_asked(server, replace(options, data=data), settings.texts, judge))
            if loaded:
                clients = settings.clients if form == "text" else settings.raw_clients
                options = replace(options, clients=clients, seconds=settings.seconds, samples=TEXTS)
                report["loads"] += list(_loads(server, options, form, judge))
    if loaded:
        report["floors"] = list(floors(target / REPOSITORY, name, report["loads"], settings.seconds))
    return report


@contextmanager
def _served(repository: Path, form: str, name: str) -> Iterator[tuple[Server, LoadOptions, Judge]]:
    """A server on a repository, options to ask its model with, and the judge of its answers."""
    from engines.triton.server import running
    from qdq.cli.judge import Judge
    from qdq.cli.load import LoadOptions

    judge = Judge(repository.parent, name, text=form == "text")
    with running(repository) as server:
        yield server, LoadOptions(server.http, model=name), judge


def _asked(server: Server, options: LoadOptions, texts: int, judge: Judge) -> Iterator[dict[str, Any]]:
    """Every text of the model's own data, asked once over HTTP and once over gRPC."""
    options = replace(options, samples=texts, clients=(ASKING,), requests=texts, seconds=600.0)
    for over, report in _reports(server, options, judge, direct=0.0):
        (run,) = report["runs"]
        check = {key: run["check"][key] for key in ("right", "same", "furthest")}
        yield {"over": over, "texts": report["texts"], "answered": run["answered"], "cut": run["cut"], **check}


def _loads(server: Server, options: LoadOptions, form: str, judge: Judge) -> Iterator[dict[str, Any]]:
    """The loads of one repository with the bundled text."""
    for over, report in _reports(server, options, judge):
        runs = [{key: value for key, value in run.items() if key != "messages"} for run in report["runs"]]
        kept = {key: report[key] for key in ("texts", "machine")}
        yield {"form": form, "over": over, **kept, "tolerance": report["check"]["tolerance"], "runs": runs}


def _reports(
    server: Server, options: LoadOptions, judge: Judge, direct: float = 1.0
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reports of `qdq load` over HTTP and gRPC, on rows that the judge knows."""
    from engines.client import connect, parse_address
    from qdq.base.screen import Screen
    from qdq.cli.load import measure as load
    from qdq.cli.load import rows_of

    address = parse_address(server.http)
    with connect(address) as client:
        judge.prepare(rows_of(options, client.describe(str(options.model))))
    for over, url in (("HTTP", server.http), ("gRPC", f"grpc://{server.grpc}")):
        yield over, load(replace(options, url=url), Screen(), judge, direct)


def _named(data: str | None) -> str:
    return "bundled English text" if data is None else "/".join(Path(data).parts[-2:])


def data_of(target: Path, shared: Path) -> str | None:
    """Text of the model's own task: what it was evaluated on, or that of a checkpoint in `shared`; None is bundled."""
    known = DATA.get(target.parent.name)
    if known is not None and (shared / "data" / known).is_file():
        return str(shared / "data" / known)
    found = read_json(target.parent / "manifest.json").get("options", {}).get("eval_data")
    return str(found) if found and Path(str(found)).exists() else None


def main() -> None:
    """Measure, write docs/results/serving/<model>-<target>.json and the pages."""
    from qdq.studies import pages
    from qdq.studies.study import SHARED

    flags = parser("serving", __doc__)
    flags.add_argument("target", type=Path, nargs="+", help="build/<model>/openvino; the first one is loaded, too")
    flags.add_argument("--shared", type=Path, default=SHARED, help="folder with data/")
    flags.add_argument("--clients", type=int, nargs="+", default=Settings.clients)
    flags.add_argument("--seconds", type=float, default=Settings.seconds, help="of each load")
    flags.add_argument("--texts", type=int, default=TEXTS, help="of each task, asked once over HTTP and once over gRPC")
    options = flags.parse_args()
    settings = Settings(tuple(options.clients), seconds=options.seconds, texts=options.texts)
    targets: Sequence[Path] = options.target
    for target in targets:
        report = measure(target, data_of(target, options.shared), settings, loaded=target == targets[0])
        write_json(RESULTS / "serving" / f"{report['model']}-{report['target']}.json", report)
    pages.main()


if __name__ == "__main__":
    sys.exit(exit_code(main))
