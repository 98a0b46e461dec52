"""Schemas: the tree of prompts that an extraction walks.

A schema is a name, a list of schemas, or a mapping of names to schemas below them, nested at will::

    ["时间", "选手"]                                  entities
    {"竞赛名称": ["主办方", "承办方"]}                relations of each competition found
    {"地震触发词": ["震级", "时间"]}                  an event: roles of its trigger
    {"评价维度": ["观点词", "情感倾向[正向,负向]"]}   opinions, with a class for each aspect
    "情感倾向[正向,负向]"                             a class of the whole text
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdq.errors import ConfigError
from qdq.uie.prompts import options_of


@dataclass(frozen=True)
class Node:
    """A name that is asked for, and what is asked of each of its answers."""

    name: str
    children: tuple[Node, ...] = ()

    @property
    def label(self) -> str:
        """Name in the results: without the options of a choice."""
        return options_of(self.name)[0]

    @property
    def options(self) -> tuple[str, ...]:
        """Classes of a choice, () of any other."""
        return options_of(self.name)[1]


def read_schema(schema: Any, where: str = "schema") -> tuple[Node, ...]:
    """The trees of a schema. Raises ConfigError naming the part that is none."""
    if isinstance(schema, str):
        if not schema.strip():
            raise ConfigError(f"{where}: holds an empty name; give what to look for")
        return (Node(schema.strip()),)
    if isinstance(schema, Mapping):
        return tuple(
            Node(read_schema(name, where)[0].name, read_schema(below, f"{where}, {name}") if below else ())
            for name, below in schema.items()
        )
    if isinstance(schema, list | tuple):
        nodes = tuple(node for part in schema for node in read_schema(part, where))
        names = [node.name for node in nodes]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(f"{where}: names '{twice}' twice; once is enough")
        if nodes:
            return nodes
    raise ConfigError(f"{where}: is {schema!r}; give a name, a list of names, or names with what belongs to each")


def typed_schema(text: str) -> tuple[Node, ...]:
    """The schema of ``--schema``: JSON, the path of a JSON file, or names with commas between them.

    Raises ConfigError for JSON that is damaged.
    """
    place = Path(text)
    try:
        inside = place.read_text(encoding="utf-8") if place.suffix == ".json" and place.is_file() else text
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--schema {text}: cannot be read ({error}); check the file") from error
    if not inside.lstrip().startswith(("{", "[", '"')):
        return read_schema(_names(inside), "--schema")
    try:
        return read_schema(json.loads(inside), "--schema")
    except ValueError as error:
        raise ConfigError(f"--schema: is no JSON ({error}); quote every name") from error


def _names(text: str) -> list[str]:
    """Names with commas between them; those inside brackets are options."""
    names, depth = [""], 0
    for character in text.replace("，", ","):
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            names.append("")
        else:
            names[-1] += character
    return names
