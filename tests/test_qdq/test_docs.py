"""The documentation tells the truth: README commands, executed how-to pages, commands that exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from qdq.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("custom-model.md", "custom-data.md", "calibration.md")
CheckpointFactory = Callable[..., Path]


def blocks(page: Path) -> list[str]:
    """The ```bash blocks of a page, in order; plain ``` blocks need a GPU, a server or the network."""
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def test_readme_commands_are_make_targets() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^make (\w+)", readme, flags=re.MULTILINE)
    assert commands[:2] == ["engine", "test"]
    for command in commands:
        subprocess.run(["make", "-n", command], cwd=ROOT, check=True, capture_output=True, timeout=60)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_readme_is_one_screen_and_a_half() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120 and len(readme.split()) <= 900


def test_every_module_that_a_command_names_exists() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages if page.is_file())
    named = set(re.findall(r"python -m ((?:qdq|engines|export)[\w.]*\w)", text))
    assert "qdq.studies.pages" in named
    for module in sorted(named):
        assert importlib.util.find_spec(module), f"python -m {module}"


@pytest.mark.parametrize("name", ["README.md", "docs/custom-model.md", "docs/custom-data.md", "docs/performance.md"])
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{name} links to {target}"


@pytest.mark.document_row("000/50")
def test_the_questions_of_the_compression_api_are_answered() -> None:
    page = (ROOT / "docs" / "compression.md").read_text(encoding="utf-8").partition("\n## Questions\n")[2]
    asked = re.findall(r"^\*\*(.+?\?)\*\* \S", page.partition("\n## ")[0], flags=re.MULTILINE)
    for word in ("data?", "my own", "trained further", "Prune or quantize", "pruning train", "search", "TensorDataset"):
        assert any(word in question for question in asked), word


def test_documented_families_are_the_supported_ones() -> None:
    from qdq.inject.families import FAMILIES

    page = (ROOT / "docs" / "custom-model.md").read_text(encoding="utf-8")
    for family in FAMILIES:
        assert re.search(rf"\b{family}\b", page), f"docs/custom-model.md does not name {family}"


def commands(page: Path) -> list[str]:
    """The commands of a page's blocks, one string each, continued lines joined and here-documents whole."""
    found: list[str] = []
    for block in blocks(page):
        heredoc = ""
        for line in block.splitlines():
            if heredoc or (found and found[-1].endswith("\\\n")):
                found[-1] += line + "\n"
                heredoc = "" if line == heredoc else heredoc
            elif line.strip():
                found.append(line + "\n")
                heredoc = (re.findall(r"<<'(\w+)'", line) or [""])[0]
    return found


# The pages show users' commands; the test makes the benchmark short and the shape fit the tiny model.
SMALL = {
    "compile": ["--bench-seconds", "0.5", "--batch", "2", "--sequence", "32"],
    "calibrate": ["--bench-seconds", "0.5", "--batch", "2", "--sequence", "32"],
    "evaluate": ["--sequence", "32"],
    "sensitivity": ["--sequence", "32"],
    "qdq.studies.calibration_cost": ["--sequence", "32"],
}


def run_command(command: str) -> None:
    """As written; what would start another python with torch runs in this one, which has it in memory."""
    words = shlex.split(command.replace("\\\n", " "))
    if words[0] == ".venv/bin/qdq":
        assert main([*words[1:], *SMALL[words[1]]]) == 0, command
    elif words[:2] == [".venv/bin/python", "-m"]:
        importlib.import_module(words[2]).main([*words[3:], *SMALL[words[2]]])
    else:
        subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True, timeout=60)


def own_model(folder: Path) -> None:
    """``my_model.py`` with a class of the user's own, and ``my-model``, a checkpoint of it."""
    from qdq.loading.own_class import import_class

    source = (Path(__file__).parent / "own_models.py").read_text(encoding="utf-8")
    (folder / "my_model.py").write_text(source.replace("MeanClassifier", "MyClassifier"), encoding="utf-8")
    bert = folder / "my-bert"
    config = AutoConfig.from_pretrained(bert)
    import_class(f"{folder / 'my_model.py'}:MyClassifier")(config).save_pretrained(folder / "my-model")
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder / "my-model")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_page_commands_run(
    page: str, tmp_path: Path, tiny_checkpoint: CheckpointFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every ```bash block of a page runs as written, in a folder with a checkpoint and data of the names it uses."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-bert").symlink_to(tiny_checkpoint("bert", num_hidden_layers=1))
    own_model(tmp_path)
    words = ["the", "cat", "sat", "dog", "ran", "house", "red", "big", "small", "tree", "bird", "sun"]
    rows = [f"{words[i % 12]} {words[(i * 5 + 1) % 12]} number {i}\t{words[(i * 7) % 12]} {i} end" for i in range(120)]
    for name, lines in (("train.tsv", rows[:80]), ("dev.tsv", rows[80:])):
        body = "\n".join(f"{i % 2}\t{line}" for i, line in enumerate(lines))
        (tmp_path / name).write_text(f"label\tsentence1\tsentence2\n{body}\n", encoding="utf-8")
    found = commands(ROOT / "docs" / page)
    assert found
    for command in found:
        run_command(command)
