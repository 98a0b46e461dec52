"""Find out whether this machine can build and run TensorRT engines, without risking this process.

Loading a driver or a compiled module that does not fit the machine can abort the interpreter, so each of them is
loaded in a child process with a time limit. What is not installed is not loaded at all.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qdq.base.versions import versions

CHILD = Path(__file__).with_name("availability_child.py")
TIMEOUT_S = 60.0  # importing tensorrt for the first time reads about 1 GB of libraries
MINIMUM_TENSORRT = 10
MINIMUM_CAPABILITY = 7.5  # Turing (T4): the oldest GPU with INT8 tensor cores, and the oldest TensorRT 10.5+ accepts

INSTALL_TENSORRT = "pip install '.[tensorrt]' (10.x or 11.x)"
INSTALL_DRIVER = "use a machine with an NVIDIA GPU and its driver"


@dataclass(frozen=True)
class Probe:
    """Result of `probe`: a version or description, or None where absent; one sentence per obstacle in `missing`."""

    gpu: str | None = None
    tensorrt: str | None = None
    polygraphy: str | None = None
    pycuda: str | None = None  # nothing here needs it; reported because deployment code often does
    missing: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """True when an engine can be built and run here."""
        return not self.missing

    @property
    def capability(self) -> float | None:
        """Compute capability of the GPU (7.5 for a T4), None without one."""
        return float(self.gpu.rpartition(" ")[2]) if self.gpu else None

    @property
    def release(self) -> tuple[int, ...]:
        """Major and minor version of TensorRT, () without it."""
        return tuple(map(int, self.tensorrt.split(".")[:2])) if self.tensorrt else ()


def probe(timeout_s: float = TIMEOUT_S) -> Probe:
    """Probe GPU, driver, tensorrt and polygraphy. Takes at most `timeout_s` seconds for each of the first three."""
    gpu, no_gpu = _gpu(timeout_s)
    tensorrt, no_tensorrt = _tensorrt(timeout_s)
    polygraphy = versions().get("polygraphy")
    no_polygraphy = () if polygraphy else ("the Python package 'polygraphy' is not installed: make setup",)
    pycuda, _ = _child("pycuda", timeout_s) if _installed("pycuda") else (None, "")
    return Probe(gpu, tensorrt, polygraphy, pycuda, no_gpu + no_tensorrt + no_polygraphy)


def _gpu(timeout_s: float) -> tuple[str | None, tuple[str, ...]]:
    answer, reason = _child("gpu", timeout_s)
    if answer is None:
        return None, (f"no usable NVIDIA GPU ({reason}): {INSTALL_DRIVER}",)
    name, _, capability = answer.rpartition(", compute capability ")
    if float(capability) < MINIMUM_CAPABILITY:
        return answer, (f"the GPU {name} has compute capability {capability}; INT8 needs {MINIMUM_CAPABILITY} or more",)
    return answer, ()


def _tensorrt(timeout_s: float) -> tuple[str | None, tuple[str, ...]]:
    if not _installed("tensorrt"):
        return None, (f"the Python module 'tensorrt' is not installed: {INSTALL_TENSORRT}",)
    version, reason = _child("tensorrt", timeout_s)
    if version is None:
        return None, (f"the Python module 'tensorrt' cannot be loaded ({reason}): {INSTALL_TENSORRT}",)
    if int(version.split(".")[0]) < MINIMUM_TENSORRT:
        return version, (f"TensorRT {version} is too old: {INSTALL_TENSORRT}",)
    return version, ()


def _child(what: str, timeout_s: float) -> tuple[str | None, str]:
    """Run the child for one question; return (answer, "") or (None, reason)."""
    command = [sys.executable, "-P", str(CHILD), what]  # -P: this folder must not shadow installed modules
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return None, f"no answer within {timeout_s:g} seconds"
    except OSError as error:
        return None, f"cannot start a child process, {error.strerror}"
    if done.returncode != 0:
        return None, f"the child process ended with status {done.returncode}"
    return _parse(done.stdout)


def _parse(output: str) -> tuple[str | None, str]:
    """Read the child's last line; libraries may print before it."""
    lines = output.strip().splitlines()
    try:
        reply = json.loads(lines[-1]) if lines else {}
    except ValueError:
        reply = {}
    if not isinstance(reply, dict):
        reply = {}
    return reply.get("answer"), str(reply.get("reason", "the child process gave no answer"))


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
