"""Sums of INT8 products on this CPU follow from its flags, and the flags tell the truth: OpenVINO's kernel agrees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import pytest
from openvino import opset13 as operators

from engines.instructions import Int8Sums, int8_sums

ROWS, INNER, COLUMNS = 8, 64, 32


@pytest.mark.parametrize(
    ("machine", "flags", "instructions", "saturate"),
    [
        ("x86_64", "fpu ssse3 avx2 avx512f avx512bw avx512_vnni", ("avx512_vnni",), False),
        ("x86_64", "fpu ssse3 avx2 avx_vnni", ("avx_vnni",), False),
        ("x86_64", "ssse3 avx2 avx512bw avx512_vnni amx_tile amx_int8", ("avx512_vnni", "amx_int8"), False),
        ("x86_64", "ssse3 avx2 avx512f avx512bw", ("avx512bw",), True),  # Skylake's servers
        ("x86_64", "ssse3 avx2", ("avx2",), True),
        ("AMD64", "sse2 ssse3", ("ssse3",), True),
        ("x86_64", "", (), True),  # nothing known: the worse is assumed
        ("aarch64", "fp asimd asimddp i8mm", ("i8mm", "asimddp"), False),
        ("aarch64", "fp asimd", (), False),
    ],
)
def test_flags_decide(tmp_path: Path, machine: str, flags: str, instructions: tuple[str, ...], saturate: bool) -> None:
    key = "Features" if machine == "aarch64" else "flags\t\t"
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\n{key}: {flags}\n\nprocessor\t: 1\n{key}: other\n")
    assert int8_sums(file, machine) == Int8Sums(instructions, saturate)


@pytest.mark.parametrize(
    ("sums", "reason"),
    [
        (Int8Sums(("avx2",), True), "This x86 CPU has no VNNI (avx2): INT8 products are at most about twice as fast"),
        (Int8Sums((), True), "has no VNNI (no INT8 instructions seen)"),
        (Int8Sums((), False), "This CPU has no INT8 dot products"),
        (Int8Sums(("avx_vnni",), False), "This CPU multiplies INT8 fast (avx_vnni): the model's layers are too small"),
    ],
)
def test_the_reason_why_int8_may_not_be_faster_is_the_cpu_s(sums: Int8Sums, reason: str) -> None:
    assert reason in sums.gain


def test_without_cpuinfo_an_x86_is_taken_for_the_worse(tmp_path: Path) -> None:
    assert int8_sums(tmp_path / "absent", "x86_64") == Int8Sums((), saturate=True)
    assert int8_sums(tmp_path / "absent", "arm64") == Int8Sums((), saturate=False)


def test_the_words_say_what_it_means() -> None:
    exact, pairs = Int8Sums(("avx512_vnni",), saturate=False), Int8Sums(("avx2",), saturate=True)
    assert str(exact) == "avx512_vnni, sums are exact"
    assert str(pairs) == "avx2 without VNNI, pairs of products saturate"
    assert pairs.as_json() == {"instructions": ["avx2"], "sums": "saturating pairs"}
    assert (exact.reach, pairs.reach) == ("CPUs that sum INT8 products exactly (x86: with VNNI or AMX)", "every CPU")


def test_this_cpu_sums_as_its_flags_say() -> None:
    """Codes of 255 times weights of 127 through OpenVINO with nothing of ours: cut to 32767 where pairs saturate."""
    x = operators.parameter([ROWS, INNER], np.float32)
    low, high = np.float32(0), np.float32(255)
    left = operators.fake_quantize(x, low, high, low, high, 256)
    codes = operators.convert(operators.constant(np.full((COLUMNS, INNER), 127, np.int8)), np.float32)
    right = operators.multiply(codes, operators.constant(np.full((COLUMNS, 1), 1.0, np.float32)))
    model = openvino.Model([operators.matmul(left, right, False, True)], [x], "product")
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    result = compiled(np.full((ROWS, INNER), 255, np.float32))[0]
    expected = INNER // 2 * 32767 if int8_sums().saturate else INNER * 255 * 127
    assert (result == expected).all()
