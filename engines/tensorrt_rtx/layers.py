"""Reading the builder's log: the table of the engine's layers, as kernels.

The table is text for people and its form is not promised, so it is read strictly: a line, type or count that is not
understood is an error that names it, never a missing kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engines.tensorrt_rtx.kernels import ELEMENTS, Gemm, Kernel, Kind, Tensor
from qdq.errors import BuildError

READABLE = "1.7.1"  # the release whose log this was written against
TABLE = "Layers:"
COUNT = re.compile(r"After reformat layers: (\d+) layers")
NO_KERNEL = (
    "signal",
    "wait",
    "barrier",
    "shape_call",
)  # layer types that launch nothing: order of streams, host shapes
LOG_TYPES: Mapping[str, str] = {element.log: element.word for element in ELEMENTS}
PLAN_TYPES: Mapping[str, str] = {element.plan: element.word for element in ELEMENTS}
LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), StreamId: \d+(?:, EventId: \d+)?"
    r"(?:, Metadata:(?P<metadata>.*))?"
)
TENSOR = re.compile(
    r" ?\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[-\d,]*)\], Strides: \[[-\d,]*\], StrideOrder: \[[-\d,]*\], "
    r"Datatype: (?P<type>\w+), Format: [^{}]*? \}"
)
NODE = re.compile(r"\[ONNX Layer: (.*)\]")
BETWEEN_NODES = "\x1f"
NUMBER = re.compile(r"_myl(\d+)_(\d+)$")  # group and position, at the end of a compiled layer's name


def read_layers(messages: Sequence[str], version: str) -> tuple[Kernel, ...]:
    """Kernels of the engine in the order they run, from the builder's messages.

    Raises BuildError, naming `version` and the place, for a log that cannot be read completely.
    """
    tables = [message for message in messages if message.startswith(TABLE)]
    if len(tables) != 1:
        raise _unreadable(version, f"it has {len(tables)} tables of layers instead of one")
    lines = tables[0].removeprefix(TABLE).strip("\n").split("\n\n")[0].split("\n")
    names, kernels = [], []
    for line in lines:
        found = LINE.fullmatch(line)
        if found is None:
            raise _unreadable(version, f"no layer: {line[:120]}")
        names.append(found["name"])
        if found["type"] not in NO_KERNEL:
            kernels.append(_kernel(found, version))
    _check_numbers(names, version)
    _check_count(names, messages, version)
    if not kernels:
        raise _unreadable(version, "its table has no kernels")
    return tuple(kernels)


def read_gemms(found: Sequence[Mapping[str, Any]], kernels: Sequence[Kernel], version: str) -> tuple[Gemm, ...]:
    """Matrix products of the plan, from the child's account of its text.

    Raises BuildError when there are fewer than kernels that multiply, or one's types cannot be read.
    """
    products = []
    for item in found:
        types = [PLAN_TYPES.get(type, "") for type in item["types"]]
        if len(types) != 3 or not all(types) or not item["nodes"]:
            raise _unreadable(version, f"the plan's product of {item['nodes'][:1]} has the types {item['types']}")
        output, left, right = types
        products.append(Gemm((left, right), output, item["alpha"], tuple(dict.fromkeys(item["nodes"]))))
    multiplying = sum(kernel.kind == "gemm" for kernel in kernels)
    if len(products) < multiplying:
        raise _unreadable(version, f"its plan states {len(products)} products for {multiplying} kernels that multiply")
    return tuple(products)


def _kernel(found: re.Match[str], version: str) -> Kernel:
    inputs, constants, outputs = (tuple(_tensors(found[part], version)) for part in ("inputs", "constants", "outputs"))
    nodes = tuple(dict.fromkeys(_nodes(found["metadata"] or "", version)))
    return Kernel(found["name"], _kind(found["name"], found["type"], nodes), inputs, constants, outputs, nodes)


def _nodes(metadata: str, version: str) -> Iterator[str]:
    """Names of the ONNX nodes that a layer computes; the compiler's own layers have none."""
    for part in metadata.strip(" ").split(BETWEEN_NODES) if metadata.strip(" ") else ():
        found = NODE.fullmatch(part)
        if found is None:
            raise _unreadable(version, f"no ONNX node: {part[:120]}")
        yield found[1]


def _tensors(text: str, version: str) -> Iterator[Tensor]:
    """Every tensor of a list; the list must consist of nothing else."""
    rest = text
    while rest.strip():
        found = TENSOR.match(rest)
        if found is None:
            raise _unreadable(version, f"no tensor: {rest[:120]}")
        if found["type"] not in LOG_TYPES:
            raise _unreadable(version, f"tensor '{found['name']}' has the unknown type {found['type']}")
        yield Tensor(
            found["name"], LOG_TYPES[found["type"]], tuple(int(size) for size in found["shape"].split(",") if size)
        )
        rest = rest[found.end() :].removeprefix(",")


def _kind(name: str, type: str, nodes: Sequence[str]) -> Kind:
    """The kernel's main work, by the layer's type and by the operations its generated name lists."""
    if "_mha_" in name:
        return "attention"
    if type == "gemm" or "gemm" in name.lower() or "_Fc" in name:
        return "gemm"
    if "Mean" in name or "Sqrt" in name:
        return "layernorm"
    if "Erf" in name or any("gelu" in node.lower() for node in nodes):
        return "gelu"
    if "Tran" in name or "Move" in name:
        return "transpose"
    return "quantize" if "Roun" in name or "MinMax" in name else "other"


def _check_numbers(names: Sequence[str], version: str) -> None:
    """The compiler numbers the layers of each group from 0: without holes, none has been left out."""
    groups: dict[str, list[int]] = {}
    for name in names:
        if found := NUMBER.search(name):
            groups.setdefault(found[1], []).append(int(found[2]))
    for group, numbers in groups.items():
        if sorted(numbers) != list(range(len(numbers))):
            raise _unreadable(version, f"the layers of group {group} are numbered {sorted(numbers)}")


def _check_count(names: Sequence[str], messages: Sequence[str], version: str) -> None:
    """The builder's own count: compiled groups, and layers outside them."""
    counts = [int(found[1]) for message in messages if (found := COUNT.match(message))]
    if not counts:
        raise _unreadable(version, "it does not say how many layers the engine has")
    groups = {found[1] for name in names if (found := NUMBER.search(name))}
    listed = len(groups) + sum(NUMBER.search(name) is None for name in names)
    if listed != counts[-1]:
        raise _unreadable(version, f"it counts {counts[-1]} layers and lists {listed}")


def _unreadable(version: str, reason: str) -> BuildError:
    hint = "" if version.startswith(READABLE) else f", which reads the log of {READABLE}: install that version"
    return BuildError(f"the log of TensorRT for RTX {version} cannot be read ({reason}){hint}")
