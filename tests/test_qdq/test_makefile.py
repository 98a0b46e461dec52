"""The Makefile hands what the user typed to qdq as text: nothing in it is expanded or executed on the way."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

import pytest

from qdq.base.option import help_of
from qdq.pipeline.options import CompileOptions

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "a b;\"c'd$(touch x)`touch y`$(shell touch z)$HOME"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The Makefile beside a finished set-up whose qdq prints its arguments and exits with $STUB_EXIT."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "requirements-demo.txt", "requirements-serve.txt"):
        shutil.copy(ROOT / name, tmp_path)
    stub = tmp_path / ".venv/bin/qdq"
    stub.parent.mkdir(parents=True)
    stub.write_text('#!/bin/sh\nfor argument; do printf "<%s>\\n" "$argument"; done\nexit ${STUB_EXIT:-0}\n')
    stub.chmod(0o755)
    (tmp_path / ".venv/.installed").touch()
    return tmp_path


def make(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(
        ["make", *arguments], cwd=tree, env=clean | environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_hostile_model_name_arrives_as_typed(tree: Path) -> None:
    before = {path.name for path in tree.iterdir()}
    assert make(tree, "engine", f"MODEL={HOSTILE}", "OUT=-o p").stdout.splitlines() == [
        "<compile>",
        f"<--model={HOSTILE}>",
        "<--out=-o p>",
    ]
    assert f"<--task={HOSTILE}>" in make(tree, "engine", TASK=HOSTILE).stdout
    assert {path.name for path in tree.iterdir()} == before


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("CALIBRATION=x", "did you mean CALIB? "),
        ("BATCH_SIZE=8", "did you mean BATCH? "),
        ("BENCH=5", "did you mean BENCH_SECONDS? "),
        ("MODLE=x", "did you mean MODEL? "),
        ("MODE';exit;'=x", ""),
        ("EPOCHS=3", ""),
    ],
)
def test_a_variable_that_nothing_takes_is_refused(tree: Path, typed: str, meant: str) -> None:
    done = make(tree, "engine", typed)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"unknown variable {typed.partition('=')[0]}; {meant}'make help' lists all" in done.stderr


def test_only_what_was_set_is_passed(tree: Path) -> None:
    assert make(tree, "engine").stdout.splitlines() == ["<compile>"]


def test_exit_code_three_is_explained(tree: Path) -> None:
    done = make(tree, "engine", STUB_EXIT="3")
    assert done.returncode == 2 and "qdq exited with 3: done as far as this machine can" in done.stdout


def test_bench_t4_builds_three_plans_and_races_them(tree: Path) -> None:
    done = make(tree, "bench-t4", f"MODEL={HOSTILE}", "BATCH=8", "TARGET=openvino")
    assert done.stdout.split("\n<") == [
        "<compile>",
        f"--model={HOSTILE}>",
        *("--batch=8>", "--out=build/bench-t4>", "--target>", "tensorrt>"),
        *("variants>", "--out=build/bench-t4>", "--target>", "tensorrt>"),
        *("bench>", "--engine=build/bench-t4>", "--batch=8>\n"),
    ]
    done = make(tree, "bench-t4", "OUT=a b", STUB_EXIT="3")
    assert done.returncode == 2 and "qdq exited with 3: done as far as this machine can" in done.stdout
    assert "<--out=a b>" in done.stdout and "<variants>" not in done.stdout


def test_help_is_the_default_and_fits_a_terminal(tree: Path) -> None:
    lines = make(tree).stdout.splitlines()
    assert any("make engine" in line for line in lines) and max(map(len, lines)) <= 80


def test_help_of_the_variables_is_that_of_the_options() -> None:
    """`make help` works before anything is installed, so the Makefile holds a copy of what the declarations say."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    table = re.search(r"^ENGINE_OPTIONS := (.*?[^\\])\n", makefile, flags=re.DOTALL | re.MULTILINE)
    assert table is not None
    declared = {known.name.replace("_", "-"): known for known in fields(CompileOptions)}
    lines = []
    for variable, option in (pair.split("=") for pair in table[1].replace("\\\n", " ").split()):
        first = f"#|   {f'{variable}=':<15}"
        form = {"initial_indent": first, "subsequent_indent": f"#|{' ' * 18}", "break_on_hyphens": False}
        lines += textwrap.wrap(help_of(declared[option]), 80, **form)
    expected = "\n".join(lines)
    assert f"details):\n{expected}\n#|\n#| Variables of setup" in makefile, f"should be:\n{expected}"


def test_a_set_up_that_does_not_fit_the_disk_says_so_before_it_installs_anything(tmp_path: Path, tree: Path) -> None:
    shutil.rmtree(tree / ".venv")
    full = tmp_path / "full/sitecustomize.py"  # imported by every python that starts
    full.parent.mkdir()
    full.write_text(
        "import shutil\nfree = shutil._ntuple_diskusage(9, 9, 287 << 20)\nshutil.disk_usage = lambda _: free\n"
    )
    told = make(tree, "setup", f"PYTHON={sys.executable}", PYTHONPATH=str(full.parent))
    assert told.returncode == 2
    assert re.match(r"287 MB are free here and \.venv takes \d+: free some space\n", told.stderr)
    assert not (tree / ".venv").exists()


def test_serving_takes_what_is_there_and_compiles_what_is_asked_for_or_missing(tree: Path) -> None:
    def ran(*words: str) -> list[str]:
        return [line for line in make(tree, "serve", *words).stdout.splitlines() if not line.startswith("<--")]

    assert ran() == ["<compile>", "<serve>"], "nothing is there"
    (tree / "build/mine/openvino/model_repository").mkdir(parents=True)
    assert ran() == ["<serve>"]
    assert ran("OUT=build/mine") == ["<serve>", "<build/mine>"]
    assert ran("OUT=build/other") == ["<compile>", "<serve>", "<build/other>"]
    assert ran("MODEL=other") == ran("TARGET=onnxruntime") == ["<compile>", "<serve>"]
