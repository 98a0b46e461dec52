"""The scripts in examples/uie, typed as their documents print them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "uie"
TEXTS = [
    {"text": f"{name}在{city}", "label": [[0, 2, "人名"], [3, 5, "城市"]]}
    for name in ("张三", "李四", "王五", "赵六", "陈七")
    for city in ("北京", "上海")
]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """`script(name)`: the module of one of the scripts."""
    import importlib

    monkeypatch.syspath_prepend(str(EXAMPLES.parent))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return importlib.import_module


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_doccano(script: Callable[[str], Any], tmp_path: Path) -> None:
    source = tmp_path / "doccano.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in TEXTS), encoding="utf-8")
    words = ["--doccano_file", str(source), "--task_type", "ext", "--splits", "0.8", "0.1", "0.1"]
    main = script("doccano").main
    main([*words, "--save_dir", str(tmp_path / "a"), "--seed", "1000"])
    files = {name: read(tmp_path / "a" / f"{name}.txt") for name in ("train", "dev", "test")}
    assert [len(rows) for rows in files.values()] == [16, 2, 2]
    assert {row["prompt"] for row in files["dev"]} == {"人名", "城市"}
    assert sorted(row["content"] for rows in files.values() for row in rows[::1]) == sorted(
        row["text"] for row in TEXTS for _ in range(2)
    )
    # The same seed gives the same bytes, another one other rows; unshuffled texts keep their order
    main([*words, "--save_dir", str(tmp_path / "b"), "--is_shuffle", "True"])
    main([*words, "--save_dir", str(tmp_path / "c"), "--seed", "1"])
    main([*words, "--save_dir", str(tmp_path / "d"), "--is_shuffle", "False"])
    one, same, other, plain = ((tmp_path / name / "train.txt").read_bytes() for name in "abcd")
    assert one == same != other
    assert read(tmp_path / "d" / "dev.txt")[0]["content"] == TEXTS[8]["text"] and plain != one
    # Without splits everything is for training
    main(["--doccano_file", str(source), "--save_dir", str(tmp_path / "e"), "--splits"])
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["train.txt"]


def test_doccano_classes(script: Callable[[str], Any], tmp_path: Path) -> None:
    source = tmp_path / "cls.jsonl"
    source.write_text(json.dumps({"data": "很好", "label": ["正向"]}), encoding="utf-8")
    words = [
        "--doccano_file",
        str(source),
        "--task_type",
        "cls",
        "--save_dir",
        str(tmp_path),
        "--splits",
        "1",
        "0",
        "0",
    ]
    script("doccano").main([*words, "--prompt_prefix", "情感倾向", "--options", "正向", "负向"])
    (row,) = read(tmp_path / "train.txt")
    assert row["prompt"].startswith("情感倾向[") and row["result_list"][0]["text"] == "正向"


def test_doccano_refuses(script: Callable[[str], Any], tmp_path: Path) -> None:
    from qdq.errors import ConfigError

    source = tmp_path / "doccano.jsonl"
    source.write_text(json.dumps(TEXTS[0]), encoding="utf-8")
    for words, said in [(["--splits", "0.9", "0.2", "0.1"], "--splits"), (["--is_shuffle", "maybe"], "--is_shuffle")]:
        with pytest.raises(ConfigError, match=said):
            script("doccano").main(["--doccano_file", str(source), *words])


def test_label_studio(script: Callable[[str], Any], tmp_path: Path) -> None:
    spans = [{"id": "a", "type": "labels", "value": {"start": 0, "end": 2, "labels": ["人名"]}}]
    source = tmp_path / "label_studio.json"
    source.write_text(json.dumps([{"data": {"text": "张三"}, "annotations": [{"result": spans}]}]), encoding="utf-8")
    script("label_studio").main(["--label_studio_file", str(source), "--save_dir", str(tmp_path), "--splits"])
    direct = read(tmp_path / "train.txt")
    assert direct == [
        {"content": "张三", "result_list": [{"text": "张三", "start": 0, "end": 2}], "prompt": "人名"},
    ]
    # By way of doccano's layout
    between = tmp_path / "doccano_ext.jsonl"
    script("labelstudio2doccano").main(["--labelstudio_file", str(source), "--doccano_file", str(between)])
    script("doccano").main(["--doccano_file", str(between), "--save_dir", str(tmp_path / "two"), "--splits"])
    assert read(tmp_path / "two" / "train.txt") == direct
