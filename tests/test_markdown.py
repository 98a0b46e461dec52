"""Pages of the repository: links lead somewhere, and what they say of the source is so."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MARKDOWN = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("examples/*.md"),
        *ROOT.glob("examples/*/*.md"),
        *ROOT.glob("calib_data/*.md"),
    )
)
MAPS = ("CONTRIBUTING.md", "docs/architecture.md")  # pages that say where things are


@pytest.mark.parametrize("name", MARKDOWN)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), f"{name} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{name} links to {target}{anchor}"


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", MAPS)
def test_paths_that_a_page_names_exist(name: str) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    paths = re.findall(r"`((?:qdq|export|engines|tests|docs|examples)/[\w./*]+)`", page)
    assert paths
    missing = [path for path in dict.fromkeys(paths) if not list(ROOT.glob(path.rstrip("/")))]
    assert not missing, f"{name} names {', '.join(missing)}"


def test_code_that_contributing_shows_is_in_the_source() -> None:
    """Lines below a `# file` comment stand in that file, in this order; some between them may be left out."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```python\n# (\S+)\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    assert len(shown) >= 6
    for file, code in shown:
        source = iter((ROOT / file).read_text(encoding="utf-8").splitlines())
        for line in filter(str.strip, code.splitlines()):
            assert line in source, f"CONTRIBUTING.md shows a line that is not in {file}: {line}"


def test_the_architecture_lists_the_floors_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    floors = [floor.split(" | ") for floor in contracts[0]["layers"]]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ((?:`[\w./]+`(?:, )?)+) \|", page, flags=re.MULTILINE)[-len(floors) :]
    assert [int(number) for number, _ in rows] == list(range(len(floors), 0, -1))
    assert [re.findall(r"`(\w+)", names) for _, names in rows] == floors


def test_the_glossary_is_sorted_and_says_each_word_once() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Glossary")[1]
    words = re.findall(r"^\| ([^|`]+) \| [^|]", page, flags=re.MULTILINE)[1:]
    assert words == sorted(words, key=str.lower) and len(set(words)) == len(words) > 40


def test_documented_keys_of_a_spec_are_its_fields() -> None:
    from qdq.inject.spec import QuantSpec

    page = (ROOT / "docs" / "custom-model.md").read_text(encoding="utf-8")
    table = page.split("| key | default | meaning |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| ([^|]+) \|", table, flags=re.MULTILINE)
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == {field.name for field in fields(QuantSpec)}
