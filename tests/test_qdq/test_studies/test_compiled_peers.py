"""Our TensorRT graph beside other tools' in NVIDIA's compiler, on a tiny model: built, scored and compiled for real."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.tensorrt_rtx import missing
from qdq.studies.peers.compiled import HALF, OURS, TOOLS, main
from qdq.studies.peers.compiled_table import render_compiled

HAS_MODELOPT = importlib.util.find_spec("modelopt") is not None


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=f"the compiler is not here: {missing()}")
def test_every_graph_is_built_scored_and_compiled(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tiny_checkpoint("bert", "text-classification"), tmp_path / "compiled.json"
    typed = ["--model", str(model), "--json", str(out), "--work", str(tmp_path / "work"), "--threads", "1"]
    main([*typed, "--samples", "4", "--eval-samples", "6", "--sm", "75", "--shape", "4", "16"])
    shown, report = capsys.readouterr().out, json.loads(out.read_text())
    rows = report["rows"]
    assert set(rows) == {OURS, HALF, *TOOLS}
    assert (
        "modelopt is not installed; 'make compare-compiled' installs it" in rows["modelopt"]["failed"] or HAS_MODELOPT
    )
    ours, half = rows[OURS]["sm"]["75"], rows[HALF]["sm"]["75"]
    assert ours["linears"][0] == ours["linears"][1] == ours["fp32_scales"][0] > 0
    assert half["linears"][0] == 0 and ours["megabytes"] < half["megabytes"]
    assert rows[HALF]["accuracy"]["cosine_mean"] > rows[OURS]["accuracy"]["cosine_mean"]
    assert (
        rows["onnxruntime-static"]["sm"]["75"]["nodes"] > 0
    )  # UINT8 with a zero-point: refused, and the table says so
    assert "refused at" in shown
    assert shown.endswith(render_compiled(report) + "\n")
