"""The pass contract, and reading and writing the graphs passes work on.

A pass states *before / after / leaves alone* in its docstring, edits a graphsurgeon graph in place and returns what it
changed and what it declined with the reason. Running it again on its own output changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx.checker import ValidationError

from export.names import IR_VERSION, OPSET
from export.reading import read_onnx, standard_opset
from export.to_onnx import EXTERNAL_DATA_BYTES, save_proto
from qdq.errors import PassError


@dataclass(frozen=True)
class Declined:
    """A node or tensor the pass looked at and left alone."""

    name: str
    reason: str


@dataclass(frozen=True)
class PassResult:
    """Result of one pass: the nodes it changed and the ones it declined."""

    changed: tuple[str, ...] = ()
    declined: tuple[Declined, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)  # what users of the graph have to know of it

    @property
    def modified(self) -> bool:
        """True when the pass changed the graph."""
        return bool(self.changed)

    def as_json(self) -> dict[str, Any]:
        """One row of passes.json."""
        return {
            "modified": self.modified,
            "changed": list(self.changed),
            "declined": [asdict(item) for item in self.declined],
            **({"facts": dict(self.facts)} if self.facts else {}),
        }


@dataclass(frozen=True)
class Pass:
    """A named change of the graph in a target's pipeline, and the reason it is there."""

    name: str
    why: str
    run: Callable[[gs.Graph], PassResult]


def load_graph(path: Path) -> gs.Graph:
    """Read an ONNX file, with its external data, as a graphsurgeon graph.

    Raises PassError when it cannot be read, lacks its external data or is of another opset than the exporter's.
    """
    model = read_onnx(path, PassError, external_data=True)
    opset = standard_opset(model)
    if opset != OPSET:  # an empty file parses as an empty model of no opset
        raise PassError(f"{path}: expected ONNX opset {OPSET}, found {opset or 'none'}; run the export stage again")
    return gs.import_onnx(model)


def save_graph(graph: gs.Graph, path: Path, external_data_bytes: int = EXTERNAL_DATA_BYTES) -> None:
    """Write a graph atomically, with the pinned IR version that graphsurgeon does not keep, and check the file.

    Raises PassError when the passes left no valid ONNX model, DeployError when it cannot be written.
    """
    proto = gs.export_onnx(graph)
    proto.ir_version = IR_VERSION
    del proto.graph.value_info[:]  # stale after type changes; every reader infers its own
    save_proto(proto, path, external_data_bytes)
    try:
        onnx.checker.check_model(str(path))  # the file, because a model over 2 GiB cannot be checked in memory
    except ValidationError as error:
        path.unlink()
        raise PassError(f"{path}: lowering left an invalid graph ({error}); report this") from error
