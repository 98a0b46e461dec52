"""Names as users type them: a layer, a module, a point, or a node of the graph, whole or in part."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qdq.base.artifacts import read_json
from qdq.errors import ConfigError
from qdq.placing.units import kind_of, layer_of

SUGGESTED = 4  # modules where no name is alike
# A node of a graph, as build.json and the print of a compile name it: its module, and an ONNX operator with a number.
NODE = re.compile(r"^(?:(?P<module>.+)\.)?(?P<operator>[A-Z][A-Za-z]*(?:_\d+)?)$")
# The second product of an attention block by the kind of its relative positions, whose own products come before it.
SECOND: Mapping[str, str] = {"relative_key": "MatMul_2", "relative_key_query": "MatMul_3"}


def owners(asked: str, points: Sequence[Mapping[str, Any]], work: Path) -> dict[str, list[Mapping[str, Any]]]:
    """Module -> its points among those that `asked` is a part of. Raises ConfigError, naming what is alike."""
    named = asked.removesuffix(".")
    found = _named(named, points) or _of_node(named, points, products(work))
    if not found:
        parts = dict.fromkeys(part for point in points for part in _parts(point["name"]))
        alike = get_close_matches(named, parts) or _outermost(points)
        raise ConfigError(
            f"{work}: nothing is called '{asked}'; did you mean {' or '.join(map(repr, alike))}? placement.json has "
            "every name"
        )
    return found


def products(work: Path) -> dict[str, tuple[str, ...]]:
    """Products of an attention block in a work directory's graph, and the kinds of the points on their operands."""
    config = work / "checkpoint" / "config.json"
    positions = read_json(config).get("position_embedding_type") if config.is_file() else None
    return {"MatMul": ("matmul q", "matmul k"), SECOND.get(str(positions), "MatMul_1"): ("matmul a", "matmul v")}


def _named(named: str, points: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Module -> its points whose name has the words of `named`, or whose last word has it as a part; all for ""."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        # "layer.1" is not "layer.10": a name ends where the next part begins.
        if not named or f".{named}." in f".{point['name']}." or named in point["name"].rpartition(".")[2]:
            found.setdefault(point["name"].rpartition(".")[0], []).append(point)
    return found


def _of_node(
    named: str, points: Sequence[Mapping[str, Any]], products: Mapping[str, tuple[str, ...]]
) -> dict[str, list[Mapping[str, Any]]]:
    """Module -> the points on the operands of a node of the graph, such as ``…attention.self.MatMul_1``."""
    node = NODE.match(named)
    if node is None:
        return {}
    found = _named(node["module"] or "", points)
    kinds = products.get(node["operator"], ())
    of_product = {
        module: chosen
        for module, members in found.items()
        if (chosen := [point for point in members if kind_of(point["name"]) in kinds])
    }
    whole = node["module"] is not None and any(module.endswith(node["module"]) for module in found)
    return of_product or (found if whole else {})


def _parts(name: str) -> Iterable[str]:
    """Names that a point may be asked for by: any neighbouring words of its module's name, and its last word."""
    *words, last = name.split(".")
    yield last
    for start in range(len(words)):
        for end in range(len(words), start, -1):
            if not words[end - 1].isdigit() or end > start + 1:
                yield ".".join(words[start:end])


def _outermost(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names to begin with where none is alike: its first layer, and modules outside of layers."""
    modules = dict.fromkeys(point["name"].rpartition(".")[0] for point in points if layer_of(point["name"]) is None)
    inside = next((point["name"] for point in points if layer_of(point["name"]) is not None), "")
    layer = re.match(r".*?\.\d+(?=\.)", inside)
    return [*([layer[0]] if layer else []), *modules][:SUGGESTED]
