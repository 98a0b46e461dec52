"""Reading what the compiler tells of an engine: the builder's table of layers, and the plan's list of products.

Both are text for people and their form is not promised, so they are read strictly and against each other: a line, type
or count that is not understood is an error that names it, never a missing kernel.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engines.tensorrt_rtx.kernels import ELEMENTS, Gemm, Kernel, Kind, Tensor
from qdq.errors import BuildError

READABLE = "1.7.1"  # the release this was written against
TABLE, BEHIND = "Layers:\n", "I/O Tensors:"
COUNT = re.compile(r"After reformat layers: (\d+) layers")
NO_KERNEL = ("signal", "wait", "barrier", "shape_call")  # order of streams and sizes on the host: they launch nothing
GENERATED = {"kgen": "function", "runtime_fusion": "runtime_fusion"}  # layer type -> statement of the plan
LOG_TYPES: Mapping[str, str] = {element.log: element.word for element in ELEMENTS}
PLAN_TYPES: Mapping[str, str] = {element.plan: element.word for element in ELEMENTS}
LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), StreamId: \d+"
    r"(?:, EventId: \d+)?(?:, Metadata:(?P<metadata>.*))?"
)
TENSOR = re.compile(
    r" ?\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[-\d,]*)\], Strides: \[[-\d,]*\], StrideOrder: \[[-\d,]*\], "
    r"Datatype: (?P<type>\w+), Format: [^{}]*? \}"
)
NODE = re.compile(r"\[ONNX Layer: (.*)\]")
BETWEEN_NODES = "\x1f"
NUMBER = re.compile(r"_myl(\d+)_(\d+)$")  # group and position, at the end of a compiled layer's name


class Account:
    """The child's reply on a graph it has built. Every method raises BuildError for what it cannot read."""

    def __init__(self, reply: Mapping[str, Any], version: str) -> None:
        self.version = version
        self.products: Sequence[Mapping[str, Any]] = reply["gemms"]
        self.statements: Mapping[str, int] = reply["statements"]
        self.attentions: Mapping[str, Sequence[str]] = reply["attentions"]
        self.messages: list[str] = [message for _, message in reply["log"]]

    def kernels(self, layers: Mapping[str, int]) -> tuple[Kernel, ...]:
        """Kernels of the engine in the order they run; `layers` has the encoder layer of every node that is in one."""
        rows = self._rows()
        self._check_numbers([row["name"] for row in rows])
        self._check_counts(Counter(row["type"] for row in rows))
        found = tuple(self._kernel(row, layers) for row in rows if row["type"] not in NO_KERNEL)
        if not found:
            raise self._unreadable("its table has no kernels")
        return found

    def gemms(self) -> tuple[Gemm, ...]:
        """Matrix products of the plan."""
        found = []
        for item in self.products:
            types = [PLAN_TYPES.get(type, "") for type in item["types"]]
            if len(types) != 3 or not all(types) or not item["nodes"]:
                raise self._unreadable(f"the plan's product of {item['nodes'][:1]} has the types {item['types']}")
            output, left, right = types
            found.append(Gemm((left, right), output, item["alpha"], tuple(dict.fromkeys(item["nodes"]))))
        return tuple(found)

    def _rows(self) -> list[re.Match[str]]:
        """Lines of the one table of layers."""
        tables = [message for message in self.messages if message.startswith(TABLE)]
        if len(tables) != 1:
            raise self._unreadable(f"it has {len(tables)} tables of layers instead of one")
        body, blank, rest = tables[0].removeprefix(TABLE).partition("\n\n")
        if not blank or not rest.startswith(BEHIND):
            raise self._unreadable("its table of layers has no end")
        rows = []
        for line in body.split("\n"):
            found = LINE.fullmatch(line)
            if found is None:
                raise self._unreadable(f"no layer: {line[:120]}")
            rows.append(found)
        return rows

    def _check_numbers(self, names: Sequence[str]) -> None:
        """The layers of each compiled group are numbered from 0 without holes, and the builder counts the groups."""
        groups: dict[str, list[int]] = {}
        for name in names:
            if found := NUMBER.search(name):
                groups.setdefault(found[1], []).append(int(found[2]))
        for group, numbers in groups.items():
            if sorted(numbers) != list(range(len(numbers))):
                raise self._unreadable(f"the layers of group {group} are numbered {sorted(numbers)}")
        counts = [int(found[1]) for message in self.messages if (found := COUNT.match(message))]
        listed = len(groups) + sum(NUMBER.search(name) is None for name in names)
        if counts[-1:] != [listed]:
            raise self._unreadable(f"it counts {counts[-1:] or 'no'} layers and lists {listed}")

    def _check_counts(self, types: Counter[str]) -> None:
        """The plan has one statement for every layer of generated code, and a product for every GEMM."""
        for type, statement in GENERATED.items():
            if types[type] != self.statements[statement]:
                raise self._unreadable(f"{types[type]} layers are {type}, its plan has {self.statements[statement]}")
        if types["gemm"] > len(self.products):
            raise self._unreadable(f"{types['gemm']} layers are gemm, its plan has {len(self.products)} products")

    def _kernel(self, row: re.Match[str], layers: Mapping[str, int]) -> Kernel:
        inputs, constants, outputs = (
            tuple(self._tensors(row[part] or "")) for part in ("inputs", "constants", "outputs")
        )
        nodes = tuple(dict.fromkeys(self._nodes((row["metadata"] or "").strip(" "))))
        layer = min((layers[node] for node in nodes if node in layers), default=None)
        instructions = tuple(self.attentions.get(row["tactic"], ()))
        kind = _kind(row["name"], row["type"], nodes)
        return Kernel(row["name"], kind, inputs, constants, outputs, nodes, layer, instructions)

    def _tensors(self, text: str) -> Iterator[Tensor]:
        """Every tensor of a list; the list must consist of nothing else."""
        rest = text
        while rest.strip():
            found = TENSOR.match(rest)
            if found is None:
                raise self._unreadable(f"no tensor: {rest[:120]}")
            if found["type"] not in LOG_TYPES:
                raise self._unreadable(f"tensor '{found['name']}' has the unknown type {found['type']}")
            shape = tuple(int(size) for size in found["shape"].split(",") if size)
            yield Tensor(found["name"], LOG_TYPES[found["type"]], shape)
            rest = rest[found.end() :].removeprefix(",")

    def _nodes(self, metadata: str) -> Iterator[str]:
        """Names of the ONNX nodes that a layer computes; the compiler's own layers have none."""
        for part in metadata.split(BETWEEN_NODES) if metadata else ():
            found = NODE.fullmatch(part)
            if found is None:
                raise self._unreadable(f"no ONNX node: {part[:120]}")
            yield found[1]

    def _unreadable(self, reason: str) -> BuildError:
        other = "" if self.version.startswith(READABLE) else f"; install {READABLE}, whose account this program reads"
        return BuildError(f"the account of TensorRT for RTX {self.version} cannot be read: {reason}{other}")


def _kind(name: str, type: str, nodes: Sequence[str]) -> Kind:
    """The kernel's main work, by the layer's type and by the operations its generated name lists."""
    if type == "gemm":  # named after ONNX nodes; the names of other layers list operations
        return "gemm"
    if "_mha_" in name:
        return "attention"
    if "gemm" in name or "Fc" in name:
        return "gemm"
    if "Mean" in name or "Sqrt" in name:
        return "layernorm"
    if "Erf" in name or any("gelu" in node.lower() for node in nodes):
        return "gelu"
    if "Tran" in name or "Move" in name:
        return "transpose"
    return "quantize" if "Roun" in name or "MinMax" in name else "other"
