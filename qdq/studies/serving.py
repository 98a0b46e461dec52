"""Measure a real server under load for docs/triton.md: ``python -m qdq.studies.serving TARGET --data FILE``.

The text repository of a work directory over HTTP and gRPC, and its raw one where `qdq deploy --raw-inputs` wrote it,
each on a server of its own and with `qdq load`, which compares every answer with the engine's. For an idle machine.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qdq.base.artifacts import write_json
from qdq.base.choices import RAW_REPOSITORY, REPOSITORY
from qdq.errors import ConfigError
from qdq.studies.study import RESULTS, exit_code, parser

SERVER = "Triton 2.51 of nvidia-pytriton 0.7.0"
LOCAL = ("url", "messages")  # parts of a report that are this machine's alone


def measure(target: Path, data: str | None, clients: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """Every load on the repositories of `target`, a work directory's folder of one target. Raises QdqError."""
    if not (target / REPOSITORY).is_dir():
        raise ConfigError(f"{target}: has no {REPOSITORY}; give the folder of one target, build/<model>/openvino")
    loads = [load for form in ("text", "raw") for load in _loads(target, form, data, clients, seconds)]
    name = "bundled English text" if data is None else "/".join(Path(data).parts[-2:])
    return {"target": target.name, "data": name, "server": SERVER, "loads": loads}


def _loads(
    target: Path, form: str, data: str | None, clients: tuple[int, ...], seconds: float
) -> Iterator[dict[str, Any]]:
    """The loads of one repository, none where it was not written."""
    from engines.triton.server import running
    from qdq.base.screen import Screen
    from qdq.cli.load import LoadOptions, measure

    repository = target / (REPOSITORY if form == "text" else RAW_REPOSITORY)
    if not repository.is_dir():
        return
    (model,) = (path.name for path in (target / REPOSITORY).iterdir() if path.is_dir())
    with running(repository) as server:
        for over, url in (("HTTP", server.http), ("gRPC", f"grpc://{server.grpc}")):
            options = LoadOptions(
                url, data, clients=clients, seconds=seconds, check=str(target), model=model, samples=200
            )
            report = measure(options, Screen())
            runs = [{key: value for key, value in run.items() if key not in LOCAL} for run in report.pop("runs")]
            kept = {key: value for key, value in report.items() if key not in (*LOCAL, "check", "data")}
            yield {"form": form, "over": over, **kept, "tolerance": report["check"]["tolerance"], "runs": runs}


def main() -> None:
    """Measure, write docs/results/serving/<model>.json and the pages."""
    from qdq.studies import pages

    flags = parser("serving", __doc__)
    flags.add_argument("target", type=Path, help="folder of one target in a work directory, build/<model>/openvino")
    flags.add_argument("--data", help="text to send (default: bundled English text)")
    flags.add_argument("--clients", type=int, nargs="+", default=[1, 8, 16, 32])
    flags.add_argument("--seconds", type=float, default=15.0, help="of each load")
    options = flags.parse_args()
    report = measure(options.target, options.data, tuple(options.clients), options.seconds)
    name = f"{report['loads'][0]['model']}-{report['target']}"
    write_json(RESULTS / "serving" / f"{name}.json", report)
    pages.main()


if __name__ == "__main__":
    sys.exit(exit_code(main))
