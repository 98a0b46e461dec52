"""Cost of a server by itself: the same requests to a model that waits as long as the engine takes, and does nothing.

No text model in Python can cost less than its engine and this together.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_name("serving_empty_template.py")


def floors(repository: Path, name: str, loads: Sequence[Mapping[str, Any]], seconds: float) -> Iterator[dict[str, Any]]:
    """CPU time of a server without an engine, for each load of the text model `name`, which takes as long."""
    from engines.triton.server import running
    from qdq.base.screen import Screen
    from qdq.cli.load import LoadOptions
    from qdq.cli.load import measure as load

    for beside in (one for one in loads if one["form"] == "text"):
        run = max(beside["runs"], key=lambda one: (one["clients"] == 16, one["clients"]))
        with tempfile.TemporaryDirectory() as folder:
            empty = emptied(repository, name, Path(folder) / "models", 1 / run["texts_per_s"])
            with running(empty) as server:
                url = server.http if beside["over"] == "HTTP" else f"grpc://{server.grpc}"
                options = LoadOptions(url, model=name, clients=(run["clients"],), seconds=seconds)
                (found,) = load(options, Screen())["runs"]
        kept = ("clients", "texts_per_s", "latency_ms", "batches", "cpu_ms_per_text", "requests", "answered", "errors")
        yield {
            "over": beside["over"],
            **{key: found[key] for key in kept},
            "direct_cpu_ms_per_text": run["direct_cpu_ms_per_text"],
        }


def emptied(repository: Path, name: str, folder: Path, seconds: float) -> Path:
    """A copy of a repository in `folder` whose model waits for so many seconds per text; returns the folder."""
    from engines.triton.model_config import read_config, render

    shutil.copytree(repository, folder)
    config = read_config(folder / name / "config.pbtxt")
    config.parameters["seconds"].string_value = f"{seconds:.6f}"
    (folder / name / "config.pbtxt").write_text(render(config), encoding="utf-8")
    shutil.copyfile(TEMPLATE, folder / name / "1" / "model.py")
    return folder
