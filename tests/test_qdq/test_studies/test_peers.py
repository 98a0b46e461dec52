"""Our engines beside other tools, on a tiny model: everything is built, checked and timed for real."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.instructions import int8_sums
from engines.openvino import has_bf16
from qdq.base.config import choice
from qdq.errors import BuildError, ConfigError, Unavailable
from qdq.studies.peers.build import OURS, TORCH, alone
from qdq.studies.peers.race import main
from qdq.studies.peers.table import render_peers
from qdq.studies.peers.tools import TOOLS, build_artifact

HAS_NNCF = importlib.util.find_spec("nncf") is not None
MISSING = "NNCF is installed by 'make bench-peers' only, in an environment of its own"


REFERENCE = TORCH[0]


def read(folder: Path) -> Any:
    """The one report in a folder, which is named after the model and the CPU."""
    (path,) = folder.iterdir()
    assert path.name == f"tiny-bert-{(*int8_sums().instructions, 'unknown')[0]}.json"
    return json.loads(path.read_text())


@pytest.mark.slow
def test_every_contestant_is_built_checked_and_timed(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out, work = tiny_checkpoint("bert", "text-classification"), tmp_path / "results", tmp_path / "work"
    typed = ["--model", str(model), "--json", str(out), "--work", str(work), "--threads", "1", "--samples", "4"]
    main([*typed, "--eval-samples", "6", "--rounds", "3", "--shapes", "2x16,1x8", "--texts", "3x32"])
    shown, report = capsys.readouterr().out, read(out)
    everyone = {*OURS, *TORCH, *TOOLS}
    absent = (set() if HAS_NNCF else {"nncf", "nncf-static"}) | (set() if has_bf16() else {"openvino-bf16"})
    expected = everyone - absent
    assert [(race["batch"], race["sequence"], race["rounds"]) for race in report["shapes"]] == [(2, 16, 3), (1, 8, 6)]
    assert all(race["workload"]["padding_share"] == 0 for race in report["shapes"])
    entries = report["shapes"][0]["contestants"]
    assert set(entries) == set(report["rows"]) == expected and set(report["skipped"]) == everyone - expected
    if not HAS_NNCF:
        assert "nncf is not installed; 'make bench-peers' installs it" in report["skipped"]["nncf"]
    bases = {"onnxruntime-fp32", "openvino-fp32", "torch-fp32", *(("nncf", "nncf-static") if HAS_NNCF else ())}
    # Texts as they are, for everyone padded and cropped; a tool's model of one shape takes padded ones only.
    texts = report["texts"]
    assert (texts["batch"], texts["sequence"], texts["rounds"]) == (3, 32, 3) and texts["workload"]["padding_share"] > 0
    assert set(texts["contestants"]) == expected | {f"{name}-cropped" for name in expected - {"nncf-static"}}
    assert "| texts, padded | texts, cropped |" in shown
    for name, row in report["rows"].items():
        assert entries[name]["samples"] == 3 and set(entries[name]["speedup"]) == bases
        assert row["bytes"] > 1000 and row["build_s"] > 0 and row["accuracy"]["samples"] == 6
        assert row["peak_rss_bytes"] > 100_000
        assert f"| {f'**{name}**' if name in OURS else name} |" in shown
    errors = {name: row["accuracy"]["mean_abs_error"] for name, row in report["rows"].items()}
    assert errors[REFERENCE] == 0
    assert max(errors["onnxruntime-fp32"], errors["openvino-fp32"]) < 1e-4
    quantized = [name for name in expected if not name.endswith(("fp32", "bf16"))]
    assert all(0 < errors[name] < 0.5 for name in quantized)  # really quantized, and no nonsense
    sizes_mb = {name: row["bytes"] for name, row in report["rows"].items()}
    assert sizes_mb["onnxruntime-dynamic"] < sizes_mb["onnxruntime-fp32"]
    assert shown.endswith(render_peers(report) + "\n")  # NNCF draws its progress on standard output, before it
    again = tmp_path / "again"
    only = ["--only", "onnxruntime-dynamic", "--eval-samples", "6", "--rounds", "3", "--shapes", "2x16"]
    main([*typed, "--json", str(again), "--work", str(tmp_path / "other"), *only])
    (row,) = read(again)["rows"].values()
    assert row["accuracy"] == report["rows"]["onnxruntime-dynamic"]["accuracy"]
    assert not (tmp_path / "other" / "qdq").exists()  # nothing that was not asked for is built


@pytest.mark.slow
def test_taggers_race_by_answers_per_token(
    tiny_checkpoint: Callable[..., Path], text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tiny_checkpoint("bert", "token-classification"), tmp_path / "results"
    typed = ["--model", str(model), "--calibration", str(text_file), "--json", str(out), "--threads", "1"]
    typed += ["--work", str(tmp_path / "work"), "--samples", "4", "--eval-samples", "6", "--rounds", "3"]
    main([*typed, "--only", "qdq-openvino", "onnxruntime-fp32", "--shapes", "2x16"])
    report = read(out)
    assert report["texts"] is None and "texts, padded" not in capsys.readouterr().out
    accuracy = {name: row["accuracy"] for name, row in report["rows"].items()}
    assert {found["agreement_unit"] for found in accuracy.values()} == {"token"}
    assert accuracy["onnxruntime-fp32"]["mean_abs_error"] < 1e-4 < accuracy["qdq-openvino"]["mean_abs_error"]


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Answer to wrong usage, before any work."""
    typed = ("--model", "nowhere", "--work", str(tmp_path / "work"), "--json", str(tmp_path / "out"))
    with pytest.raises(SystemExit) as ended:
        main([*typed, *words])
    assert ended.value.code == 2 and not list(tmp_path.iterdir())
    return capsys.readouterr().err


def test_wrong_usage_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(tmp_path, capsys, "--only", "nncv")
    assert "--only: invalid choice: 'nncv'" in said and "nncf" in said
    assert "--rounds: 2 is less than 3" in refused(tmp_path, capsys, "--rounds", "2")
    assert "2by3" in refused(tmp_path, capsys, "--shapes", "2by3")
    assert "none twice" in refused(tmp_path, capsys, "--shapes", "1x8,1x8")
    assert "'1x8,2x8' is not one shape" in refused(tmp_path, capsys, "--texts", "1x8,2x8")


def test_a_build_has_a_process_of_its_own() -> None:
    """Its seconds and result, its error, and its end."""
    assert alone(time.sleep, 0.2)[0] >= 0.2
    seconds, process = alone(os.getpid)
    assert seconds > 0 and process != os.getpid()
    with pytest.raises(ConfigError, match="'nncv'"):
        alone(choice, "nncv", ("nncf",), "tool")
    with pytest.raises(BuildError, match="its process was killed"):
        alone(os._exit, 1)


@pytest.mark.skipif(has_bf16(), reason="this CPU has BF16")
def test_bf16_needs_a_cpu_that_has_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--precision-hint: this CPU has no BF16 instructions"):
        main(["--model", "nowhere", "--json", str(tmp_path / "out.json"), "--precision-hint", "bf16"])


@pytest.mark.skipif(HAS_NNCF, reason="this environment has NNCF")
def test_a_tool_that_is_not_installed_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"nncf is not installed; 'make bench-peers' installs it"):
        build_artifact(tmp_path / "model.onnx", [], tmp_path / "nncf.xml")
