"""Files of a work directory, for commands on a file: whoever has the folder at hand need not know what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qdq.errors import ConfigError

TENSORRT_GRAPHS = ("tensorrt/model.onnx", "tensorrt-rtx/model.onnx")
PLAN_LAYERS = ("tensorrt/layer_info.json",)
WAY_TO_LOWER = "make the graph with 'qdq lower --target tensorrt'"
CPU_ENGINES = ("openvino/model.xml", "onnxruntime/model.onnx")


def files_in(place: Path, names: Sequence[str], way_out: str) -> list[Path]:
    """`place` itself unless it is a folder; else those of `names` that are in it, most wanted first.

    A folder is a work directory, or that of one target in it. Raises ConfigError, ending in `way_out`, when none is
    there.
    """
    if not place.is_dir():
        return [place]
    found = [path for name in names if (path := place / name).is_file()]
    found = found or [path for name in names if (path := place / Path(name).name).is_file()]
    if not found:
        raise ConfigError(f"{place}: has no {' or '.join(names)}; {way_out}")
    return found


def lowered_in(place: Path) -> Path:
    """The graph for TensorRT in a work directory; a file is itself. Raises ConfigError as `files_in`."""
    return files_in(place, TENSORRT_GRAPHS, WAY_TO_LOWER)[0]


def graph_in(place: Path) -> Path:
    """As `lowered_in`, or else the canonical graph."""
    from qdq.pipeline.run import CANONICAL

    return files_in(place, (*TENSORRT_GRAPHS, CANONICAL), WAY_TO_LOWER)[0]


def newest_run(root: Path = Path("build")) -> Path:
    """The work directory below `root` that was worked in last. Raises ConfigError when there is none."""
    from qdq.pipeline.workdir import MANIFEST

    runs = sorted((path.parent for path in root.glob(f"*/{MANIFEST}")), key=worked_in)
    if not runs:
        raise ConfigError(f"no work directory below {root.resolve()}; name one with --out, or run 'qdq compile' first")
    return runs[-1]


def worked_in(folder: Path) -> float:
    """Time of the last run in a work directory, in seconds since 1970; 0 for a folder that is none."""
    from qdq.pipeline.workdir import MANIFEST

    manifest = folder / MANIFEST
    return manifest.stat().st_mtime if manifest.is_file() else 0.0
