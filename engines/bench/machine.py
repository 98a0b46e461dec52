"""The machine a benchmark ran on: CPU, cores, memory, instruction sets, GPU; never a host or user name.

Sources: /proc/cpuinfo on Linux, sysctl on macOS, `nvidia-smi -L` where it is installed. What cannot be found out is
null (or an empty list), never an error.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from engines.cores import available_cores

CPUINFO = Path("/proc/cpuinfo")
TIMEOUT_S = 5  # a wedged driver must not hang a benchmark
# What decides the speed of INT8 and reduced-precision kernels, in the spelling of /proc/cpuinfo (x86, then Arm).
ISA = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)


def machine(cpuinfo: Path = CPUINFO, nvidia_smi: str = "nvidia-smi") -> dict[str, Any]:
    """Return the ``machine`` object of benchmark.json; the arguments exist for tests.

    ``cores`` are the logical cores this process may use; ``physical_cores`` counts the whole machine.
    """
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""  # no /proc: macOS and others
    cpu = parse_cpuinfo(text)
    return {
        "cpu": cpu["cpu"] or _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine(),
        "cores": available_cores(),
        "physical_cores": cpu["physical_cores"],
        "memory_gib": _memory_gib(),
        "isa": cpu["isa"],
        # Only the leading digits of the release: vendors and administrators append names to it.
        "os": f"{platform.system()} {_leading_version(platform.release())} {platform.machine()}",
        "gpu": parse_nvidia_smi(_output([nvidia_smi, "-L"])),
    }


def parse_cpuinfo(text: str) -> dict[str, Any]:
    """Model name, physical cores and instruction sets from the text of /proc/cpuinfo (null, null, [] when absent)."""
    fields = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in text.splitlines())]
    first = dict(reversed(fields))  # reversed: the first processor's value wins
    flags = set((first.get("flags") or first.get("Features") or "").split())
    sockets = [value for key, value in fields if key == "physical id"]
    cores = [value for key, value in fields if key == "core id"]
    return {
        "cpu": first.get("model name"),
        "physical_cores": len(set(zip(sockets, cores, strict=False))) or None,
        "isa": [name for name in ISA if name in flags],
    }


def parse_nvidia_smi(text: str) -> str | None:
    """GPU names from `nvidia-smi -L`, such as ``2 x NVIDIA A10``; UUIDs are dropped. None when it lists none."""
    names = Counter(re.findall(r"^GPU \d+: (.+?)(?: \(UUID:.*)?$", text, flags=re.MULTILINE))
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in names.items()) or None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # not a POSIX system, or names it does not know
        return None


def _leading_version(release: str) -> str:
    found = re.match(r"\d+(\.\d+)*", release)
    return found.group() if found else ""


def _sysctl(name: str) -> str:
    return _output(["sysctl", "-n", name]).strip() if platform.system() == "Darwin" else ""


def _output(command: list[str]) -> str:
    """Standard output of a short command; empty when it is absent, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
