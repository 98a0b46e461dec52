"""`import qdq`: compile, what it returns, check, and how the package presents itself."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import qdq
from qdq.api.results import Coverage
from qdq.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[3]
SMALL = {"samples": 16, "batch": 2, "sequence": 32, "threads": 1, "bench_seconds": 0.2}


def test_a_compile_returns_what_its_files_say(compiled: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (compiled / "text.jsonl").read_text(encoding="utf-8").splitlines()]
    events: list[qdq.Progress] = []
    found = qdq.compile(
        compiled / "tiny-bert",
        target="onnxruntime",
        calibration=rows[:16],
        eval_data=rows[16:],
        out=tmp_path / "work",
        progress=events.append,
        **SMALL,
    )
    target = tmp_path / "work" / "onnxruntime"
    build, accuracy, benchmark = (
        json.loads((target / f"{name}.json").read_text(encoding="utf-8")) for name in ("build", "accuracy", "benchmark")
    )
    assert found.coverage and list(found.coverage.linears) == build["int8"]["encoder_linear"]
    assert [item.reason for item in found.coverage.not_int8] == [item["reason"] for item in build["int8"]["not_int8"]]
    assert found.accuracy and found.accuracy.metric
    assert found.accuracy.agreement == accuracy["agreement"]
    assert (found.accuracy.metric.fp32, found.accuracy.metric.int8) == (
        accuracy["metric"]["fp32"],
        accuracy["metric"]["int8"],
    )
    assert found.benchmark and found.benchmark.int8.p50_ms == benchmark["contestants"]["int8"]["latency_ms"]["p50"]
    assert found.engine_file == target / "engine.onnx" and found.model_repository == target / "model_repository"
    assert found.missing == ""
    # Every stage reports that it is done, in order.
    stages = [event.stage for event in events if event.finished]
    assert stages[:3] == ["load", "inject", "calibrate"] and {"build", "verify", "bench", "deploy"} <= set(stages)
    assert all(event.total is None or 0 <= event.done <= event.total for event in events)
    # Texts that were given are kept, so that the command line can go on from here.
    kept = (tmp_path / "work" / "calibration.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in kept] == rows[:16]
    # A second call finds everything up to date.
    events.clear()
    qdq.compile(
        compiled / "tiny-bert",
        target="onnxruntime",
        calibration=rows[:16],
        eval_data=rows[16:],
        out=tmp_path / "work",
        progress=events.append,
        **SMALL,
    )
    assert {event.result for event in events} == {"up to date"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sequense": 8}, ConfigError, "no option 'sequense'.*sequence"),
        ({"calibration": []}, DataError, "holds no text"),
        ({"calibration": [("a", "b", "c")]}, DataError, r"calibration\[0\]"),
        ({"target": "openvin"}, ConfigError, "openvino"),
    ],
)
def test_a_wrong_argument_is_named(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        qdq.compile(out=tmp_path / "work", **options)
    assert not (tmp_path / "work").exists()


def test_coverage_without_an_engine_is_the_compilers() -> None:
    compiled = {"by": "TensorRT for RTX 1.7", "linears": [6, 6], "attentions": [1, 1], "not_int8": []}
    found = Coverage.read({"int8": None, "compiled": compiled})
    assert found == Coverage((6, 6), (1, 1), (), "TensorRT for RTX 1.7")
    assert Coverage.read({"int8": None}) is None


def test_check_takes_a_file_or_a_work_directory(compiled: Path) -> None:
    findings = qdq.check(compiled / "work")
    assert findings == qdq.check(compiled / "work" / "model.qdq.onnx")
    assert {finding.severity for finding in findings} <= {"error", "accuracy", "performance", "note"}
    with pytest.raises(ConfigError, match="is not a file"):
        qdq.check(compiled / "nothing.onnx")


def test_the_package_is_light_and_its_load_is_a_function() -> None:
    code = (
        "import sys, qdq; assert not {'torch', 'transformers', 'onnx', 'numpy'} & set(sys.modules), sys.modules;"
        "import qdq.loading.source, qdq.loading.kinds; assert callable(qdq.load), qdq.load;"
        "assert all(hasattr(qdq, name) for name in qdq.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_help_reads_like_a_library() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "import qdq; help(qdq)"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    for name in ("compile(", "load(", "check(", "class Engine", "class Compiled"):
        assert name in shown


def test_users_find_types() -> None:
    """mypy itself takes minutes without a cache; that every signature is whole is what it would need."""
    for package in ("qdq", "export", "engines"):
        assert (ROOT / package / "py.typed").is_file()
    public = [qdq.compile, qdq.load, qdq.check]
    public += [method for method in vars(qdq.Engine).values() if inspect.isfunction(method)]
    for function in public:
        signature = inspect.signature(function)
        named = [parameter for name, parameter in signature.parameters.items() if name not in ("self", "_", "__")]
        assert all(parameter.annotation is not inspect.Parameter.empty for parameter in named), function
        assert function.__name__ == "<lambda>" or signature.return_annotation is not inspect.Signature.empty, function
