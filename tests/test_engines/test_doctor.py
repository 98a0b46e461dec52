"""The doctor: what it says is possible follows from what is there, it fits a terminal, and it imports nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engines.doctor import CORE, PACKAGES, WIDTH, abilities, doctor, installed_version, render, warnings
from engines.instructions import Int8Sums
from engines.targets import TARGETS
from engines.tensorrt.availability import Probe

OBSTACLE = "no usable NVIDIA GPU (no driver): use a machine with an NVIDIA GPU and its driver"
NO_GPU = {"tensorrt": Probe(missing=(OBSTACLE,)), "tensorrt-rtx": Probe()}
EVERYTHING: dict[str, str | None] = dict.fromkeys(PACKAGES, "1.0")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return doctor()


def test_report_is_json_and_names_every_target(report: dict[str, Any]) -> None:
    json.dumps(report)
    assert list(report["targets"]) == [*TARGETS, "triton repository", "training"]
    assert report["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(report["packages"]) == set(PACKAGES)
    assert report["disk_free_gib"] > 0


def test_text_fits_80_columns(report: dict[str, Any]) -> None:
    lacking = {
        name: {**target, "missing": [["x " * 60, "pip install y"]]} for name, target in report["targets"].items()
    }
    for one in (report, {**report, "targets": lacking, "warnings": ["word " * 40]}):
        text = render(one)
        assert max(map(len, text.splitlines())) <= WIDTH
        assert all(name in text for name in one["targets"])
        assert text == "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def test_a_complete_machine_lacks_nothing() -> None:
    ready = Probe("NVIDIA T4, compute capability 7.5", "11.4.0", "0.53.6")
    found = abilities(EVERYTHING, {"tensorrt": ready, "tensorrt-rtx": Probe()}, server=True)
    assert all(not target.missing for target in found.values())
    assert all(can is not False for target in found.values() for can in (target.build, target.run, target.benchmark))


def test_cpu_targets_do_not_need_a_gpu() -> None:
    found = abilities(EVERYTHING, NO_GPU, server=False)
    assert found["openvino"].build
    assert found["openvino"].benchmark
    tensorrt = found["tensorrt"]
    assert not tensorrt.build
    assert not tensorrt.run
    assert (found["tensorrt-rtx"].build, found["tensorrt-rtx"].run) == (True, None)  # a GPU elsewhere runs its plan
    assert tensorrt.missing == (
        ("no usable NVIDIA GPU (no driver)", "use a machine with an NVIDIA GPU and its driver"),
    )
    assert found["triton repository"].build
    assert not found["triton repository"].run


@pytest.mark.parametrize("package", CORE)
def test_a_missing_core_package_stops_every_build_but_not_running(package: str) -> None:
    found = abilities({**EVERYTHING, package: None}, NO_GPU, server=False)
    assert not found["openvino"].build
    assert found["openvino"].run
    assert (package, "make setup") in found["openvino"].missing


def test_a_missing_runtime_concerns_only_its_target() -> None:
    found = abilities({**EVERYTHING, "openvino": None}, NO_GPU, server=False)
    assert not found["openvino"].run
    assert found["onnxruntime"].build
    assert found["onnxruntime"].missing == ()


def test_folder_need_not_exist(tmp_path: Path) -> None:
    assert doctor(tmp_path / "build" / "model")["disk_free_gib"] > 0


def test_warnings() -> None:
    assert warnings(Int8Sums(("avx512_vnni",), saturate=False), 100.0) == []
    saturating, full = warnings(Int8Sums(("avx2",), saturate=True), 1.5)
    assert "no VNNI" in saturating and "onnxruntime, which --target auto will find to be faster" in saturating
    assert "Only 1.5 GiB" in full
    (slow,) = warnings(Int8Sums((), saturate=False), 100.0)  # an old Arm
    assert "INT8 may not be faster than FP32" in slow


def test_the_instruction_sets_and_how_they_sum_are_printed(report: dict[str, Any]) -> None:
    avx2 = {**report, "int8_sums": Int8Sums(("avx2",), saturate=True).as_json()}
    assert "INT8      avx2; sums of products: saturating pairs\n" in render(avx2)
    nothing = {**report, "int8_sums": Int8Sums((), saturate=False).as_json()}
    assert "INT8      no instructions seen; sums of products: exact\n" in render(nothing)


def test_absent_package() -> None:
    assert installed_version("surely-not-a-package") is None
    assert installed_version("pytest") == pytest.__version__


def test_doctor_imports_nothing_heavy() -> None:
    code = (
        "import sys, engines.doctor as d; d.render(d.doctor());"
        "print([m for m in ('torch','transformers','onnx','openvino','onnxruntime','polygraphy') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
