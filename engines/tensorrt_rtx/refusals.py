"""Refusals in the words of parser and builder, with their node and without what only the libraries' authors need."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.tensorrt_rtx.graph import Graph, label
from engines.tensorrt_rtx.kernels import NodeError

ERROR = 1  # ILogger severity of errors, internal ones are 0
NO_DRIVER = "cudaError 35"  # follows many a message on a machine without a GPU and explains nothing
CODED = re.compile(r"^(?:[\w:]+: )?Error Code \d+: [\w ]+ \((.*)\)$", re.DOTALL)
ORIGIN = re.compile(r"\.?\s+In \w+ at /\S+$")  # "In checkType at /_src/optimizer/common/nodeBase.cpp:456"
PLACE = re.compile(r"^\[[^\]]*\]\s*")  # "[pass.cpp:337: check_turing_op_compatibility]"
ASSERTION = re.compile(r"^.*Assertion failed: .*?[^:]: (?=\S)", re.DOTALL)
WORDS = 400  # longest reason


def parser_refusals(reply: Mapping[str, Any], model: Path) -> tuple[NodeError, ...]:
    """Refusals of the parser, each once; at least one of a graph that was not parsed."""
    if reply["parsed"]:
        return ()
    unnamed = any(error["index"] >= 0 and not error["node"] for error in reply["errors"])
    labels = list(map(label, Graph(model).graph.node)) if unnamed else []
    errors = []
    for error in reply["errors"]:
        found = labels[error["index"]] if not error["node"] and 0 <= error["index"] < len(labels) else error["node"]
        errors.append(NodeError(found, error["operator"], _parser_reason(error)))
    return tuple(dict.fromkeys(errors)) or (NodeError("", "", "the parser gave no reason"),)


def builder_refusals(log: Sequence[tuple[int, str]], model: Path) -> tuple[NodeError, ...]:
    """Refusals of the builder, each once, with the node of `model` that each one names."""
    graph = Graph(model)
    reasons = dict.fromkeys(plain(message) for severity, message in log if severity <= ERROR)
    errors = []
    for reason in reasons:
        node = next((name for name in sorted(graph.operators, key=len, reverse=True) if _names(reason, name)), "")
        errors.append(NodeError(node, graph.operators.get(node, ""), reason))
    return tuple(errors) or (NodeError("", "", "the builder gave no reason"),)


def plain(message: str) -> str:
    """One message without error codes, places in NVIDIA's sources and the complaint that there is no driver."""
    lines = [line for line in message.strip().splitlines() if NO_DRIVER not in line]
    if len(lines) > 1 and lines[0].startswith("Invalid Node - "):
        del lines[0]
    text = " ".join(lines).strip()
    if found := CODED.match(text):
        text = found[1]
    text = PLACE.sub("", ORIGIN.sub("", text))
    return ASSERTION.sub("", text, count=1).strip().removesuffix(".")[:WORDS]


def _parser_reason(error: Mapping[str, Any]) -> str:
    if error["reason"].strip() == "false":  # an assertion without a text: there is no importer
        return "this operator is not supported"
    return plain(error["reason"]) or str(error["code"])


def _names(reason: str, name: str) -> bool:
    """Return whether `reason` names the node, perhaps with a number that the compiler has put behind it."""
    return re.search(rf"(?<![\w.]){re.escape(name)}(?:_U\d+)?(?![\w.]*\w)", reason) is not None
