"""Stage 5, lower: the canonical QDQ graph in, the graph for one target and the report of every pass out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from export.passes.base import Pass, PassResult, load_graph, save_graph
from export.passes.element_types import Body
from export.passes.pipeline import LowerOptions, float_passes, passes_for
from export.to_onnx import EXTERNAL_DATA_BYTES
from qdq.base.artifacts import sha256_file, write_json
from qdq.errors import PassError, QdqError

__all__ = ["LowerOptions", "float_variant", "lower", "lowered_step_by_step"]


def lower(
    canonical: Path,
    target: str,
    folder: Path,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
    options: LowerOptions | None = None,
) -> dict[str, Any]:
    """Lower `canonical` for `target` into ``folder/model.onnx`` and ``folder/passes.json``; returns that report.

    Weights beyond `external_data_bytes` go to ``folder/model.onnx.data``. Raises PassError naming the pass, its node or
    the passes before it when the graph cannot be honoured, ConfigError for an unknown target, DeployError when `folder`
    cannot be written.
    """
    passes = passes_for(target, options)
    graph = load_graph(canonical)
    report = {"target": target, "canonical_sha256": sha256_file(canonical), "passes": _rows(passes, graph, canonical)}
    save_graph(graph, folder / "model.onnx", external_data_bytes)
    write_json(folder / "passes.json", report)
    return report


def lowered_step_by_step(canonical: Path, target: str, folder: Path) -> dict[str, Path]:
    """The canonical graph and the graph after every pass that changed it, as files by the pass's name, in order.

    Raises as `lower`.
    """
    graph = load_graph(canonical)
    found = {"canonical": canonical}
    for done, result in _applied(passes_for(target), graph, canonical):
        if result.modified:
            found[done.name] = folder / done.name / "model.onnx"
            save_graph(graph, found[done.name])
    return found


def float_variant(
    fp32_onnx: Path, body: Body, folder: Path, ranges: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The unquantized model for TensorRT, to compare INT8 with: ``folder/model.onnx``; returns its report.

    `fp32_onnx` is the exporter's FP32 graph and `ranges` are measured on it. The report is written beside the model as
    ``passes.json``, the weights as `lower` does. Raises as `lower`, ConfigError for an unknown body.
    """
    graph = load_graph(fp32_onnx)
    rows = _rows(float_passes(LowerOptions(body, ranges)), graph, fp32_onnx)
    save_graph(graph, folder / "model.onnx")
    report = {"target": "tensorrt", "body": body, "fp32_sha256": sha256_file(fp32_onnx), "passes": rows}
    write_json(folder / "passes.json", report)
    return report


def _applied(passes: tuple[Pass, ...], graph: gs.Graph, source: Path) -> Iterator[tuple[Pass, PassResult]]:
    """Run the passes in order on the graph read from `source`; each one with its result, once the graph is sorted."""
    before: list[str] = []
    for current in passes:
        try:
            result = current.run(graph)
            graph.cleanup().toposort()
        except QdqError as error:
            raise type(error)(f"pass {current.name}: {error}") from error
        except MemoryError:
            raise
        except Exception as error:
            after = f"after {', '.join(before)}" if before else "before any other"
            raise PassError(
                f"{source}: pass {current.name} failed {after} ({type(error).__name__}: {error}); "
                "this is an error of ours, please report it"
            ) from error
        yield current, result
        before.append(current.name)


def _rows(passes: tuple[Pass, ...], graph: gs.Graph, source: Path) -> list[dict[str, Any]]:
    """Run the passes; returns the rows of passes.json."""
    applied = _applied(passes, graph, source)
    return [{"pass": done.name, "why": done.why, **result.as_json()} for done, result in applied]
