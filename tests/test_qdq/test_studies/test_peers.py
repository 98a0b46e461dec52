"""Our engines beside other tools, on a tiny model: everything is built, checked and timed for real."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.openvino import has_bf16
from qdq.errors import BuildError, ConfigError, Unavailable
from qdq.studies.peers import TOOLS, Material, build_artifact
from qdq.studies.peers.build import OURS, TORCH, alone
from qdq.studies.peers.options import PeerOptions
from qdq.studies.peers.race import bench_peers, main
from qdq.studies.peers.table import render_peers
from qdq.studies.readme import peers_tables

HAS_NNCF = importlib.util.find_spec("nncf") is not None
MISSING = "NNCF is installed by 'make bench-peers' only, in an environment of its own"


REFERENCE = TORCH[0]


@pytest.mark.slow
def test_every_contestant_is_built_checked_and_timed(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out, work = tiny_checkpoint("bert", "text-classification"), tmp_path / "peers.json", tmp_path / "work"
    typed = ["--model", str(model), "--json", str(out), "--work", str(work), "--threads", "1", "--samples", "4"]
    assert main([*typed, "--eval-samples", "6", "--rounds", "3", "--shapes", "2x16,1x8"]) == 0
    shown, report = capsys.readouterr().out, json.loads(out.read_text())
    everyone = {*OURS, *TORCH, *TOOLS}
    absent = (set() if HAS_NNCF else {"nncf", "nncf-static"}) | (set() if has_bf16() else {"openvino-bf16"})
    expected = everyone - absent
    assert [(race["batch"], race["sequence"], race["rounds"]) for race in report["shapes"]] == [(2, 16, 3), (1, 8, 12)]
    entries = report["shapes"][0]["contestants"]
    assert set(entries) == set(report["rows"]) == expected and set(report["skipped"]) == everyone - expected
    if not HAS_NNCF:
        assert "nncf is not installed; 'make bench-peers' installs it" in report["skipped"]["nncf"]
    bases = {"onnxruntime-fp32", "openvino-fp32", "torch-fp32", *(("nncf", "nncf-static") if HAS_NNCF else ())}
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
    assert peers_tables({"tiny": report}) == render_peers(report)
    kept = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.suffix in (".onnx", ".xml", ".pt")}
    assert main([*typed, "--eval-samples", "6", "--rounds", "3", "--shapes", "2x16", "--only", *OURS]) == 0
    assert json.loads(out.read_text())["rows"] == {name: report["rows"][name] for name in OURS}
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())  # only timed again


def test_an_unknown_contestant_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"contestant.*'nncv'.*nncf"):
        bench_peers(PeerOptions("nowhere", work=tmp_path / "work", only=("nncv",)))
    assert not (tmp_path / "work").exists()


def test_a_build_has_a_process_of_its_own(tmp_path: Path) -> None:
    """Its seconds, its error, and its end."""
    assert alone(time.sleep, 0.2) >= 0.2
    with pytest.raises(ConfigError, match="'nncv'"):
        alone(build_artifact, "nncv", Material(tmp_path / "model.onnx", []), tmp_path / "out")
    with pytest.raises(BuildError, match="its process was killed"):
        alone(os._exit, 1)


def test_too_few_rounds_are_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ("--model", "nowhere", "--work", str(tmp_path / "work"), "--json", str(tmp_path / "out.json"))
    assert main([*typed, "--rounds", "2"]) == 2
    assert "qdq.studies.peers.race: --rounds: 2 is less than 3" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(has_bf16(), reason="this CPU has BF16")
def test_bf16_needs_a_cpu_that_has_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--precision-hint: this CPU has no BF16 instructions"):
        bench_peers(PeerOptions("nowhere", work=tmp_path / "work", precision_hint="bf16"))


@pytest.mark.skipif(HAS_NNCF, reason="this environment has NNCF")
def test_a_tool_that_is_not_installed_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"nncf is not installed; 'make bench-peers' installs it"):
        build_artifact("nncf", Material(tmp_path / "model.onnx", []), tmp_path / "nncf.xml")
