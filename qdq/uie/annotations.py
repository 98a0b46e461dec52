"""Annotated texts out of the exports of doccano and Label Studio.

doccano, JSON lines, in its three layouts::

    {"data": "…", "label": [[0, 2, "城市"], …]}                                before 1.7, entities
    {"data": "…", "label": {"entities": [{"id", "start_offset", "end_offset", "label"}, …], "relations": […]}}
    {"text": "…", "label": [[0, 2, "城市"], …]}                                from 1.7, entities (or classes: ["正向"])
    {"text": "…", "entities": [{"id", "start_offset", …}, …], "relations": [{"from_id", "to_id", "type"}, …]}

Label Studio: its JSON export, a list of tasks with ``data.text`` and ``annotations``; of several annotations of a task
the first counts, as in PaddleNLP's converter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdq.errors import DataError

BROKEN = (KeyError, TypeError, ValueError, IndexError, AttributeError)


@dataclass(frozen=True)
class Entity:
    """Characters `start` to `end` (behind the last) of a text, and their label, ``label##class`` with a class."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Relation:
    """A predicate between two entities, by their numbers in the annotation."""

    subject: int
    object: int
    predicate: str


@dataclass(frozen=True)
class Annotation:
    """One text with what people marked in it; `classes` are those of the whole text."""

    text: str
    entities: tuple[Entity, ...] = ()
    relations: tuple[Relation, ...] = ()
    classes: tuple[str, ...] = ()

    def words(self, entity: Entity) -> str:
        """The entity's characters."""
        return self.text[entity.start : entity.end]

    def as_doccano(self, number: int, task: str = "ext") -> dict[str, Any]:
        """The row of a doccano export, in its latest layout; `task` ext has entities and relations, cls classes."""
        if task == "cls":
            return {"id": number, "text": self.text, "label": list(self.classes)}
        entities = [
            {"id": place, "start_offset": one.start, "end_offset": one.end, "label": one.label}
            for place, one in enumerate(self.entities)
        ]
        relations = [
            {"id": place, "from_id": one.subject, "to_id": one.object, "type": one.predicate}
            for place, one in enumerate(self.relations)
        ]
        return {"id": number, "text": self.text, "entities": entities, "relations": relations}


def read_doccano(path: Path) -> list[Annotation]:
    """The annotations of a doccano export (JSON lines). Raises DataError naming the line that is none."""
    found = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            found.append(_checked(where, _doccano, _json(line, where)))
    return _some(found, path)


def read_label_studio(path: Path) -> list[Annotation]:
    """The annotations of a Label Studio export (JSON). Raises DataError naming the task that is none."""
    tasks = _json(_text(path), str(path))
    if not isinstance(tasks, list):
        raise DataError(f"{path}: is no list of tasks; export as JSON from Label Studio, not JSON-MIN")
    return _some([_checked(f"{path}, task {n}", _label_studio, task) for n, task in enumerate(tasks, start=1)], path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason}); export it again") from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is no JSON ({error}); export it again") from error


def _some(found: list[Annotation], path: Path) -> list[Annotation]:
    if not found:
        raise DataError(f"{path}: holds no text; export the annotated project again")
    return found


def _checked(where: str, read: Any, item: Any) -> Annotation:
    """An item as `read` understands it, every offset checked."""
    try:
        made: Annotation = read(item)
    except BROKEN as error:
        raise DataError(
            f"{where}: is not of a known layout ({error!r}); see qdq/uie/annotations.py for them"
        ) from error
    if not isinstance(made.text, str) or not made.text.strip():
        raise DataError(f"{where}: has no text; remove the row")
    for entity in made.entities:
        if not 0 <= entity.start < entity.end <= len(made.text):
            raise DataError(
                f"{where}: '{entity.label}' spans {entity.start} to {entity.end} of a text of {len(made.text)} "
                "characters; correct it"
            )
    return made


def _doccano(item: Mapping[str, Any]) -> Annotation:
    text = item["data"] if "data" in item else item["text"]
    marked = item if "label" not in item and "entities" in item else item.get("label", [])
    if isinstance(marked, Mapping):
        return _linked(text, marked["entities"], marked.get("relations") or [])
    if any(isinstance(one, str) for one in marked):
        return Annotation(text, classes=tuple(map(str, marked)))
    return Annotation(text, tuple(Entity(int(start), int(end), str(label)) for start, end, label in marked))


def _linked(text: str, marked: Sequence[Mapping[str, Any]], links: Iterable[Mapping[str, Any]]) -> Annotation:
    """An annotation of entities with ids, and relations between these."""
    entities = tuple(Entity(int(one["start_offset"]), int(one["end_offset"]), str(one["label"])) for one in marked)
    places = {one["id"]: number for number, one in enumerate(marked)}
    relations = tuple(Relation(places[one["from_id"]], places[one["to_id"]], str(one["type"])) for one in links)
    return Annotation(text, entities, relations)


def _label_studio(task: Mapping[str, Any]) -> Annotation:
    text, given = task["data"]["text"], task["annotations"]
    results: Sequence[Mapping[str, Any]] = given[0]["result"] if given else []
    spans = [one for one in results if one["type"] == "labels"]
    marked = [
        {
            "id": one["id"],
            "start_offset": one["value"]["start"],
            "end_offset": one["value"]["end"],
            "label": one["value"]["labels"][0],
        }
        for one in spans
    ]
    links = [
        {"from_id": one["from_id"], "to_id": one["to_id"], "type": one["labels"][0]}
        for one in results
        if one["type"] == "relation"
    ]
    made = _linked(text, marked, links)
    chosen = (name for one in results if one["type"] == "choices" for name in one["value"]["choices"])
    return Annotation(text, made.entities, made.relations, tuple(chosen))
