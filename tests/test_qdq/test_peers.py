"""Our engines beside other tools, on a tiny model: everything is built, checked and timed for real."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.peers import TOOLS, Material, build_tool
from qdq.errors import ConfigError, Unavailable
from qdq.peers import OURS, REFERENCE, PeerOptions, bench_peers, main, render_peers

HAS_NNCF = importlib.util.find_spec("nncf") is not None
MISSING = "NNCF is installed by 'make bench-peers' only, in an environment of its own"


@pytest.mark.slow
def test_every_contestant_is_built_checked_and_timed(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tiny_checkpoint("bert", "text-classification"), tmp_path / "peers.json"
    sizes = ("--batch", "2", "--sequence", "16", "--samples", "4", "--eval-samples", "6", "--rounds", "3")
    code = main(["--model", str(model), "--json", str(out), "--work", str(tmp_path / "work"), "--threads", "1", *sizes])
    shown = capsys.readouterr().out
    assert code == 0
    report = json.loads(out.read_text())
    expected = {*OURS, REFERENCE, "torch-dynamic", *TOOLS} - (set() if HAS_NNCF else {"nncf"})
    entries = report["benchmark"]["contestants"]
    assert set(entries) == set(report["rows"]) == expected
    assert set(report["skipped"]) == {*TOOLS, *OURS, REFERENCE, "torch-dynamic"} - expected
    if not HAS_NNCF:
        assert "nncf is not installed; 'make bench-peers' installs it" in report["skipped"]["nncf"]
    for name, row in report["rows"].items():
        assert entries[name]["samples"] == 3 and entries[name]["speedup"]["onnxruntime-fp32"] > 0
        assert row["bytes"] > 1000 and row["build_s"] > 0 and row["accuracy"]["samples"] == 6
        assert f"| {f'**{name}**' if name in OURS else name} |" in shown
    errors = {name: row["accuracy"]["mean_abs_error"] for name, row in report["rows"].items()}
    assert errors[REFERENCE] == 0
    assert max(errors["onnxruntime-fp32"], errors["openvino-fp32"]) < 1e-4
    quantized = [name for name in expected if not name.endswith(("fp32", "bf16"))]
    assert all(0 < errors[name] < 0.5 for name in quantized)  # really quantized, and no nonsense
    sizes_mb = {name: row["bytes"] for name, row in report["rows"].items()}
    assert sizes_mb["onnxruntime-dynamic"] < sizes_mb["onnxruntime-fp32"]
    assert shown.endswith(render_peers(report) + "\n")  # NNCF draws its progress on standard output, before it


def test_an_unknown_contestant_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"contestant.*'nncv'.*nncf"):
        bench_peers(PeerOptions("nowhere", work=tmp_path / "work", only=("nncv",)))
    assert not (tmp_path / "work").exists()


@pytest.mark.skipif(HAS_NNCF, reason="this environment has NNCF")
def test_a_tool_that_is_not_installed_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"nncf is not installed; 'make bench-peers' installs it"):
        build_tool("nncf", Material(tmp_path / "model.onnx", [], tmp_path, 1))
