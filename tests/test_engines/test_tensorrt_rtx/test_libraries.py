"""Without the packages, or on another machine, one sentence says so and how to get them."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from engines.doctor import doctor, render
from engines.tensorrt_rtx import installed_version, libraries, missing, parse
from qdq.errors import Unavailable


def test_absent_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(libraries, "PACKAGES", (("some-package", "surely_no_such_module"),) * 2)
    model = tmp_path / "model.onnx"
    model.write_bytes(b"")
    with pytest.raises(
        Unavailable, match=r"not installed, some-package .* missing: \.venv/bin/pip install '\.\[rtx\]'"
    ):
        parse(model)
    assert installed_version() is None
    report = doctor()
    assert report["compiler"]["version"] is None
    assert "pip install '.[rtx]'" in " ".join(render(report).split())


def test_another_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert missing() == (
        "NVIDIA's compiler (TensorRT for RTX) needs Linux on x86-64, this is Linux on aarch64: use such a machine"
    )


def test_packages_without_their_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "PACKAGES", (("engines", "engines"),) * 2)
    assert "libtensorrt_rtx.so and libtensorrt_onnxparser_rtx.so not in" in (missing() or "")


def test_the_doctor_names_the_version() -> None:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    version = doctor()["compiler"]["version"]
    assert version == installed_version()
    assert f"Compiler  TensorRT for RTX {version}, needs no GPU" in render(doctor())
