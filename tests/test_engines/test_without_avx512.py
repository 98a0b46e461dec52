"""Engines as on a CPU without AVX-512, which hides its instructions for that: sums stay exact, and nothing else breaks.

The files below run a second time, in a process in which every library takes the code for AVX2. `make test-avx2` runs
all tests so.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engines.instructions import int8_sums

HERE = Path(__file__).parent
RUN = HERE.parent / "without_avx512" / "run"
PROOF = (
    "import torch; from engines.instructions import int8_sums; from engines.bench.machine import machine; "
    "from qdq.calibrate.treatments.rounding import integer_products_pay as pay; "
    "print(torch.backends.cpu.get_cpu_capability(), pay(), int8_sums().as_json()['sums'], machine()['cpu'])"
)


def _reason() -> str | None:
    """Why instructions cannot be hidden here, or need not be."""
    if int8_sums().saturate:
        return "this CPU has no INT8 dot products: the tests themselves run on saturating pairs"
    if "cpuid_fault" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        return "this CPU cannot hide instructions (no cpuid_fault in /proc/cpuinfo)"
    return None if shutil.which("cc") else "no C compiler"


pytestmark = pytest.mark.skipif(_reason() is not None, reason=_reason() or "")


def hidden(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(RUN), sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[1], timeout=900, check=False)


def test_what_is_hidden_is_hidden_from_all() -> None:
    ran = hidden("-c", PROOF)
    assert ran.stdout.startswith("AVX2 False saturating pairs "), ran.stderr
    assert ran.stdout.endswith(", AVX-512 hidden\n")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["test_exact_sums", "test_openvino", "test_onnxruntime", "test_packing"])
def test_engines_are_right_without_it(file: str) -> None:
    ran = hidden("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / f"{file}.py"))
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert " passed" in ran.stdout
