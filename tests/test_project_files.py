"""The project's own files: templates and workflows parse, and CI runs the gate on every Python version named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
YAML = sorted((*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "examples" / "config.yml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_files_parse(path: Path) -> None:
    assert isinstance(read(path), dict)


def test_the_workflow_runs_the_gate_on_every_python_version_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    job = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == named
    assert project["requires-python"] == f">={named[0]}"
    assert job["env"]["TORCH_INDEX"] == "https://download.pytorch.org/whl/cpu"
    assert "make test PYTHON=python" in [step.get("run") for step in job["steps"]]


def test_pre_commit_runs_the_tools_of_the_environment() -> None:
    hooks = [hook for repo in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    tools = [hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks]
    assert sorted(set(tools)) == ["lint-imports", "mypy", "ruff"]
    assert all(tool in makefile for tool in tools)  # a part of `make test`, not something beside it
    assert all(hook["language"] == "system" for hook in hooks)


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")), ids=lambda path: path.name)
def test_issue_templates_ask_for_something(path: Path) -> None:
    template = read(path)
    assert template["name"] and template["description"]
    assert any(field.get("validations", {}).get("required") for field in template["body"])


def test_the_changelog_begins_with_the_version() -> None:
    from qdq.base.versions import __version__

    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings[0] == __version__
