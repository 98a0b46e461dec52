"""The documentation tells the truth: README commands, executed how-to pages, generated tables."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from qdq.cli.main import main
from qdq.errors import DeployError
from qdq.studies import performance
from qdq.studies.readme import RESULTS, load_results, render

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("custom-model.md", "custom-data.md", "calibration.md")
CheckpointFactory = Callable[..., Path]


def blocks(page: Path) -> list[str]:
    """The ```bash blocks of a page, in order; plain ``` blocks need a GPU, a server or the network."""
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def test_readme_tables_are_what_the_results_give() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert render(readme, load_results()) == readme, (
        "run 'make results', or 'python -m qdq.studies.readme' after editing"
    )


def test_the_tensorrt_table_is_what_the_results_give() -> None:
    from qdq.studies import proof

    page = proof.PAGE.read_text(encoding="utf-8")
    assert proof.render(page, proof.load_results()) == page, "run 'make proof'"


def test_the_tensorrt_graphs_were_proved() -> None:
    """What `make proof` found on real models: the same acceptance the tests hold a tiny graph to."""
    from qdq.studies import proof

    results = proof.load_results()
    assert set(results) == {"all-MiniLM-L6-v2", "minilm-mrpc", proof.RANDOM}
    for name, result in results.items():
        lint, removals, half = result["lint"], result["removals"], result["fp16"]
        assert (lint["findings"]["error"], lint["findings"]["performance"]) == (0, 0), name
        layers = lint["layers"]
        assert lint["fused_attentions"] == layers and lint["int8"]["linears"] == [6 * layers, 6 * layers], name
        assert removals["points"] == 20 * layers, name
        assert removals["breaking"] == {"1": 19 * layers, "2": layers}, name
        assert removals["not_one"] == ["attention.output.dense.input_quantizer"], name
        assert half["worst_ulp"] <= 4 and half["largest"] < 65504, name
    metrics = results["minilm-mrpc"]["fp16"]["metric"]
    for metric in metrics.values():
        assert metric["texts"] >= 400 and 100 * (metric["floating"] - metric["fp16_body"]) <= 0.5
        assert 100 * abs(metric["fp32_body"] - metric["fp16_body"]) <= 0.5
        assert metric["fp16_body_mse"] <= 1.1 * metric["fp32_body_mse"]


def test_performance_tables_are_what_the_profiles_give() -> None:
    page = performance.PAGE.read_text(encoding="utf-8")
    results = performance.load_results()
    assert results
    assert performance.render(page, results) == page, (
        "run 'make profile', or 'python -m qdq.studies.performance' after editing"
    )
    with pytest.raises(DeployError, match="restore the markers"):
        performance.render("no markers", results)


def test_results_are_outcomes_of_compile() -> None:
    assert list(RESULTS.glob("*.json"))
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        assert result["exit_code"] == 0
        assert result["benchmark"]["contestants"]["int8"]["samples"] >= 3


def test_readme_commands_are_make_targets() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^make (\w+)", readme, flags=re.MULTILINE)
    assert commands[:2] == ["engine", "test"]
    for command in commands:
        subprocess.run(["make", "-n", command], cwd=ROOT, check=True, capture_output=True, timeout=60)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


MARKDOWN = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("examples/*.md"),
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
    from dataclasses import fields

    from qdq.inject.spec import QuantSpec

    page = (ROOT / "docs" / "custom-model.md").read_text(encoding="utf-8")
    table = page.split("| key | default | meaning |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| ([^|]+) \|", table, flags=re.MULTILINE)
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == {field.name for field in fields(QuantSpec)}


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


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_page_commands_run(
    page: str, tmp_path: Path, tiny_checkpoint: CheckpointFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every ```bash block of a page runs as written, in a folder with a checkpoint and data of the names it uses."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-bert").symlink_to(tiny_checkpoint("bert", num_hidden_layers=1))
    words = ["the", "cat", "sat", "dog", "ran", "house", "red", "big", "small", "tree", "bird", "sun"]
    rows = [f"{words[i % 12]} {words[(i * 5 + 1) % 12]} number {i}\t{words[(i * 7) % 12]} {i} end" for i in range(120)]
    for name, lines in (("train.tsv", rows[:80]), ("dev.tsv", rows[80:])):
        body = "\n".join(f"{i % 2}\t{line}" for i, line in enumerate(lines))
        (tmp_path / name).write_text(f"label\tsentence1\tsentence2\n{body}\n", encoding="utf-8")
    found = commands(ROOT / "docs" / page)
    assert found
    for command in found:
        run_command(command)
