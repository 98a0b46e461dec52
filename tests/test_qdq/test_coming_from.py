"""docs/coming-from.md: its commands are read by the real parsers, its names imported, its scripts have their flags."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qdq.cli.arguments import parse
from qdq.inject.spec import QuantSpec

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
HEADINGS = ("PaddleNLP", "PaddleSlim", "QDQBERT", "pytorch-quantization", "transformer-deploy")
# Code in the right columns, and in the sentence above the first table
ROWS = [line.split(" | ", 1)[1] for line in PAGE.splitlines() if line.startswith("| ") and " | " in line]
CODE = [code for text in (*ROWS, PAGE.split("| there")[0]) for code in re.findall(r"`([^`]+)`", text)]
COMMANDS = [code for code in CODE if code.startswith("qdq ")]
SCRIPTS = [code for code in CODE if code.startswith("python ")]
NAMES = [code for code in CODE if re.fullmatch(r"qdq(\.\w+)+", code)]


def test_every_tool_has_a_table() -> None:
    assert re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE) == list(HEADINGS)
    assert PAGE.count("| there | here |") == len(HEADINGS)
    assert len(COMMANDS) > 25 and len(SCRIPTS) > 8 and len(NAMES) > 8


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_read(command: str) -> None:
    """As they are printed; without their options of two dashes the parser would refuse them by name."""
    name, typed, _ = parse(shlex.split(command)[1:])
    assert name is not None and typed


@pytest.mark.parametrize("name", NAMES)
def test_names_are_there(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)


def test_keys_of_a_spec_are_its_fields() -> None:
    (line,) = (line for line in PAGE.splitlines() if "--clip-gelu 10" in line)
    keys = re.findall(r"`([a-z_]+)`", line.split(" | ")[1])
    assert len(keys) == 6 and all(key in QuantSpec.__dataclass_fields__ for key in keys)


@pytest.mark.parametrize("command", SCRIPTS)
def test_scripts_have_these_flags(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command)[1:]
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    with pytest.raises(SystemExit) as ended:
        main_of(words, monkeypatch)(["--help"])
    assert ended.value.code in (0, None)
    text = capsys.readouterr().out
    assert [flag for flag in sorted(flags) if not re.search(rf"{flag}\b", text)] == []


def main_of(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The `main` of a script, or of a module behind -m."""
    if words[0] == "-m":
        return importlib.import_module(f"{words[1]}.__main__").main
    path = ROOT / words[0]
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"coming_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module.main
