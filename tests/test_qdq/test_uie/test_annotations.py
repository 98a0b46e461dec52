"""Exports of doccano, in all its layouts, and of Label Studio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qdq.errors import DataError
from qdq.uie.annotations import Annotation, Entity, Relation, read_doccano, read_label_studio

TEXT = "张三在北京工作"
MARKED = [
    {"id": 7, "start_offset": 0, "end_offset": 2, "label": "人名"},
    {"id": 9, "start_offset": 3, "end_offset": 5, "label": "城市"},
]
LINKED = [{"id": 0, "from_id": 7, "to_id": 9, "type": "工作地"}]
ENTITIES = (Entity(0, 2, "人名"), Entity(3, 5, "城市"))

LAYOUTS: dict[str, tuple[dict[str, Any], Annotation]] = {
    "before 1.7, entities": (
        {"data": TEXT, "label": [[0, 2, "人名"], [3, 5, "城市"]]},
        Annotation(TEXT, ENTITIES),
    ),
    "before 1.7, relations": (
        {"data": TEXT, "label": {"entities": MARKED, "relations": LINKED}},
        Annotation(TEXT, ENTITIES, (Relation(0, 1, "工作地"),)),
    ),
    "from 1.7, entities": (
        {"text": TEXT, "label": [[0, 2, "人名"], [3, 5, "城市"]]},
        Annotation(TEXT, ENTITIES),
    ),
    "from 1.7, relations": (
        {"id": 3, "text": TEXT, "entities": MARKED, "relations": LINKED, "Comments": []},
        Annotation(TEXT, ENTITIES, (Relation(0, 1, "工作地"),)),
    ),
    "classes": ({"text": TEXT, "label": ["正向"]}, Annotation(TEXT, classes=("正向",))),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_doccano_layouts(name: str, tmp_path: Path) -> None:
    row, expected = LAYOUTS[name]
    path = tmp_path / "doccano.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert read_doccano(path) == [expected]


def label_studio() -> list[dict[str, Any]]:
    spans = [
        {"id": "a", "type": "labels", "value": {"start": 0, "end": 2, "text": "张三", "labels": ["人名"]}},
        {"id": "b", "type": "labels", "value": {"start": 3, "end": 5, "text": "北京", "labels": ["城市"]}},
        {"from_id": "a", "to_id": "b", "type": "relation", "direction": "right", "labels": ["工作地"]},
        {"id": "c", "type": "choices", "value": {"choices": ["正向"]}},
    ]
    return [{"id": 1, "data": {"text": TEXT}, "annotations": [{"result": spans}, {"result": []}]}]


def test_label_studio(tmp_path: Path) -> None:
    path = tmp_path / "label_studio.json"
    path.write_text(json.dumps(label_studio()), encoding="utf-8")
    (found,) = read_label_studio(path)
    assert found == Annotation(TEXT, ENTITIES, (Relation(0, 1, "工作地"),), ("正向",))
    # In doccano's layout it is the same, but for the classes of the whole text
    (tmp_path / "doccano.jsonl").write_text(json.dumps(found.as_doccano(0)), encoding="utf-8")
    assert read_doccano(tmp_path / "doccano.jsonl") == [Annotation(TEXT, ENTITIES, (Relation(0, 1, "工作地"),))]
    assert found.as_doccano(4, "cls") == {"id": 4, "text": TEXT, "label": ["正向"]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": TEXT, "label": [[0, 99, "人名"]]}, "spans 0 to 99 of a text of 7"),
        ({"text": TEXT, "label": [[2, 2, "人名"]]}, "spans 2 to 2"),
        ({"text": TEXT, "entities": MARKED, "relations": [{"from_id": 7, "to_id": 1, "type": "x"}]}, "KeyError(1)"),
        ({"content": TEXT}, "not of a known layout"),
        ({"text": " ", "label": []}, "has no text"),
        ([1], "not of a known layout"),
    ],
)
def test_a_broken_row_is_named(row: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "doccano.jsonl"
    path.write_text(json.dumps({"text": "好", "label": []}) + "\n" + json.dumps(row), encoding="utf-8")
    with pytest.raises(DataError, match="line 2") as error:
        read_doccano(path)
    assert said in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="check the path"):
        read_doccano(tmp_path / "missing.jsonl")
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no text"):
        read_doccano(tmp_path / "empty")
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        read_doccano(tmp_path / "latin")
    (tmp_path / "mapping").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="no list of tasks"):
        read_label_studio(tmp_path / "mapping")
