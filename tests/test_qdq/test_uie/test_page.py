"""docs/uie.md: its commands in their order, with a tiny model, and its Python block."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "uie.md"
QUIET = [
    "--device",
    "cpu",
    "--report_to",
    "none",
    "--disable_tqdm",
    "True",
    "--save_strategy",
    "no",
    "--max_steps",
    "2",
]
# What makes a command short: words in the place of the page's, and more words
SHORT: dict[str, tuple[dict[str, str], list[str]]] = {
    "doccano": ({}, []),
    "finetune": ({"512": "32"}, QUIET),
    "evaluate": ({"512": "32"}, []),
    "compile": ({}, ["--samples", "8", "--batch", "2", "--sequence", "32", "--threads", "1", "--bench-seconds", "0.2"]),
    "extract": ({}, ["--sequence", "32"]),
}


def annotations(path: Path) -> None:
    """Ten annotated texts of the tiny tokenizer's words."""
    things = ("house", "bread", "road", "garden", "city")
    rows = []
    for subject, thing in ((subject, thing) for subject in ("the cat", "our teacher") for thing in things):
        text = f"{subject} finds the {thing} ."
        start = text.index(thing)
        spans = [(0, len(subject), "人名"), (start, start + len(thing), "城市")]
        entities = [
            {"id": n, "start_offset": a, "end_offset": b, "label": label} for n, (a, b, label) in enumerate(spans)
        ]
        relations = [{"id": 0, "from_id": 0, "to_id": 1, "type": "职位"}]
        rows.append(json.dumps({"text": text, "entities": entities, "relations": relations}, ensure_ascii=False))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


@pytest.mark.slow
def test_the_page_runs_from_annotation_to_extraction(
    tiny_checkpoint: Callable[..., Path],
    qdq: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The page's files
    monkeypatch.chdir(tmp_path)
    for place in (ROOT / "examples", ROOT / "examples" / "uie"):
        monkeypatch.syspath_prepend(str(place))
    (tmp_path / "data").mkdir()
    annotations(tmp_path / "data" / "doccano_ext.json")
    (tmp_path / "uie-base").symlink_to(tiny_checkpoint("ernie", "information-extraction"))
    # Its commands
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    ran = [
        run(words, qdq, monkeypatch) for language, text in blocks if language == "bash" and (words := shlex.split(text))
    ]
    assert ran == ["convert", "doccano", "finetune", "evaluate", "compile", "extract"]
    (code,) = (text for language, text in blocks if language == "python")
    capsys.readouterr()
    exec(compile(code, str(PAGE), "exec"), {})
    assert capsys.readouterr().out.startswith("[{")


def run(words: list[str], qdq: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a command of the page, made short; returns its name."""
    if words[:3] == [".venv/bin/python", "-m", "qdq.loading.convert"]:
        return "convert"  # test_convert.py types it
    name = Path(words[1]).stem
    changed, more = SHORT[name]
    arguments = [changed.get(word, word) for word in words[2:]] + more
    if words[0] == ".venv/bin/qdq":
        ran = qdq(name, *arguments)
        assert ran.code == 0, ran.err
        return name
    spec = importlib.util.spec_from_file_location(f"page_{name}", ROOT / words[1])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    module.main(arguments)
    return name
