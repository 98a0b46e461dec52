"""What the GPU tests do before and beside the GPU, run on any machine: a broken preparation must not wait for one."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.interface import interface
from engines.tensorrt import TensorRTSettings, write_build_files
from export.lint import fusion_map

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_tiny_graphs_are_what_a_build_takes(tiny: Any, tools: Any) -> None:
    inputs, _ = interface(tiny.int8)
    assert {tensor.dtype for tensor in inputs} == {"int32"}
    assert len(write_build_files(tiny.int8, tiny.int8.parent, inputs, TensorRTSettings())) == 2
    layers = fusion_map(onnx.load(tiny.int8), 75, 64)
    # q, k and v are one product in the first layer; in the last, whose other rows nobody reads, k and v are
    assert sum(layer.kind == "int8_gemm" and layer.role != "" for layer in layers) == 9
    # The last attention has one query row, which the compiler does not fuse.
    assert [layer.kind for layer in layers if "attention" in layer.kind] == ["int8_fused_attention"]
    kinds = {node.op_type for node in onnx.load(tiny.fp16).graph.node}
    assert "QuantizeLinear" not in kinds
    feeds = tools.feeds_of(tiny.int8, 4, 32)
    assert all(array.dtype == np.int32 for array in feeds.values())
    int8, fp16 = (tools.reference(model, feeds) for model in (tiny.int8, tiny.fp16))
    assert tools.least_cosine(int8, fp16) > 0.9  # the same model


@pytest.mark.slow
def test_tolerance_holds_for_a_second_runtime_and_notices_a_fault(tiny: Any, tools: Any) -> None:
    for batch, sequence in ((1, 1), (4, 32), (8, 64)):
        feeds = tools.feeds_of(tiny.int8, batch, sequence)
        expected = tools.reference(tiny.int8, feeds)
        assert tools.least_cosine(tools.reference(tiny.int8, feeds, optimized=True), expected) > tools.tolerance
    unmasked = feeds | {"attention_mask": np.ones_like(feeds["attention_mask"])}
    assert tools.least_cosine(tools.reference(tiny.int8, unmasked), expected) < tools.tolerance


def test_cosine_of_a_broken_output_is_the_worst(tools: Any) -> None:
    good = {"logits": np.array([[1.0, 2.0], [3.0, -1.0]])}
    assert tools.least_cosine(good, good) == pytest.approx(1)
    assert tools.least_cosine({"logits": np.array([[1.0, 2.0], [np.nan, 1.0]])}, good) == -1
    assert tools.least_cosine({"logits": -good["logits"]}, good) == pytest.approx(-1)


def test_medians_are_measured_in_turns(tools: Any) -> None:
    calls: list[str] = []

    def runner(name: str) -> Any:
        def run(feeds: Any) -> dict[str, Any]:
            calls.append(name)
            return {"logits": np.ones(1, np.float32)}

        return run

    feeds = {"input_ids": np.arange(6).reshape(2, 3)}
    found = tools.medians({"int8": runner("int8"), "fp16": runner("fp16")}, feeds, rounds=10)
    assert set(found) == {"int8", "fp16"} and min(found.values()) > 0
    assert calls.count("int8") == calls.count("fp16") == 13
    assert max(sum(name == "int8" for name in calls[start : start + 4]) for start in range(20)) < 4


def test_waiting_for_a_server(tools: Any) -> None:
    class Ready(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.endswith("/ready") else 503)
            self.end_headers()

        def log_message(self, format: str, *values: Any) -> None:
            return None

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/v2"
        alive = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        try:
            tools.wait_until_ready(f"{address}/ready", alive, 10)
            with pytest.raises(pytest.fail.Exception, match="was not ready within"):
                tools.wait_until_ready(f"{address}/loading", alive, 0.3)
        finally:
            alive.kill()
            alive.wait()
            server.shutdown()
        with pytest.raises(AssertionError, match="the server ended with status"):
            tools.wait_until_ready(f"{address}/ready", alive, 10)


def test_gpu_tests_say_why_they_are_skipped() -> None:
    from engines.tensorrt import probe

    if probe().ready:
        pytest.skip("this machine can build TensorRT engines, so they run")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-q", "-p", "no:cacheprovider", "tests/test_gpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "this machine cannot build a TensorRT engine: " in done.stdout
    assert "passed" not in done.stdout.splitlines()[-1] and "skipped" in done.stdout.splitlines()[-1]
