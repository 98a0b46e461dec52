"""INT8 products of this CPU: summed exactly, or added in pairs that saturate.

A runtime multiplies a u8 activation by an s8 weight. VNNI and AMX (x86) and the dot products of Arm add such products
in INT32. An x86 CPU without them multiplies with ``pmaddubsw``, which adds two neighbouring products in a saturating
INT16: 255 x 127 + 255 x 127 becomes 32767. Activations coded around 128 are all large, so ordinary values reach that.
Engines for such a CPU are therefore built so that no pair can (`engines.onnxruntime`, `engines.openvino`).

Sources: Intel's Software Developer's Manual (PMADDUBSW, VPDPBUSD, TDPBUSD) and Arm's reference manual (UDOT, SMMLA) for
the instructions; flags as Linux spells them in /proc/cpuinfo. Run for this repository: AVX-512 VNNI and AVX2 on
hardware (tests/without_avx512 hides the former), SSE emulated. OpenVINO saturates on both of these, ONNX Runtime
with AVX2.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
X86 = ("x86_64", "AMD64", "i686", "i386")
EXACT = ("avx512_vnni", "avx_vnni", "amx_int8")  # of x86: these sum in INT32
PAIRS = ("avx512bw", "avx2", "ssse3")  # of x86: the widest of these multiplies where none of EXACT is there
DOTS = ("i8mm", "asimddp")  # of Arm
LARGEST_PAIR = 128  # of two weights of one sign: 255 x 128 is 32640, and INT16 ends at 32767


@dataclass(frozen=True)
class Int8Sums:
    """INT8 products of one CPU: the instruction sets that decide (as /proc/cpuinfo spells them), and how they sum."""

    instructions: tuple[str, ...]
    saturate: bool  # pairs of products are cut to INT16

    @property
    def reach(self) -> str:
        """CPUs on which an engine built for this one is right, when nobody looks at the CPU it is opened on."""
        return "every CPU" if self.saturate else "CPUs that sum INT8 products exactly (x86: with VNNI or AMX)"

    @property
    def gain(self) -> str:
        """One sentence: the reason on this CPU when INT8 is not faster than FP32."""
        names = ", ".join(self.instructions)
        if self.saturate:
            return (
                f"This x86 CPU has no VNNI ({names or 'no INT8 instructions seen'}): INT8 products are at most about "
                "twice as fast as FP32 on it, and rounding activations takes its share of that."
            )
        if not names:
            return "This CPU has no INT8 dot products, so INT8 saves memory and no arithmetic."
        return f"This CPU multiplies INT8 fast ({names}): the model's layers are too small for that to count."

    def as_json(self) -> dict[str, Any]:
        """The ``int8_sums`` object of build.json and of the doctor's report."""
        return {"instructions": list(self.instructions), "sums": "saturating pairs" if self.saturate else "exact"}

    def __str__(self) -> str:
        """One clause for the screen: ``avx512_vnni, sums are exact``."""
        names = ", ".join(self.instructions) or "no INT8 instructions seen"
        return f"{names} without VNNI, pairs of products saturate" if self.saturate else f"{names}, sums are exact"


def int8_sums(cpuinfo: Path = CPUINFO, machine: str | None = None) -> Int8Sums:
    """The sums of this CPU. Of an x86 CPU that tells nothing the worse is assumed; the arguments exist for tests."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    flags = cpu_flags(text)
    if (machine or platform.machine()) not in X86:
        return Int8Sums(tuple(name for name in DOTS if name in flags), saturate=False)
    exact = tuple(name for name in EXACT if name in flags)
    return Int8Sums(exact or tuple(name for name in PAIRS if name in flags)[:1], saturate=not exact)


def cpu_flags(text: str) -> frozenset[str]:
    """Instruction sets of the first processor in the text of /proc/cpuinfo (x86: flags, Arm: Features)."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()
