"""The doctor: targets this machine can build, run and benchmark, and the command for everything it lacks.

Packages are looked up, never imported, so the answer comes at once and does not depend on a heavy import succeeding.
The exception is a target's own probe, which loads things in child processes. No host or user name is reported.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from engines.bench.machine import machine
from engines.instructions import Int8Sums, int8_sums
from engines.targets import BASELINE, TARGETS
from engines.tensorrt.availability import Probe
from engines.tensorrt_rtx.libraries import installed_version as compiler_version
from engines.tensorrt_rtx.libraries import missing as compiler_missing
from qdq.base.screen import WIDTH

FREE_DISK_GIB = 4.0  # an installation takes about 3 GiB, a base-size model with its engines under 1

SETUP = "make setup"
COMMANDS: Mapping[str, str] = {  # what gets a package, where it is not SETUP
    "datasets": ".venv/bin/pip install '.[train]'",
    "accelerate": ".venv/bin/pip install '.[train]'",
    "seqeval": ".venv/bin/pip install '.[train]'",
}
SERVER = "see https://github.com/triton-inference-server/server (a container image)"
MODULES: Mapping[str, str] = {  # distribution name -> module, where they differ
    "onnx-graphsurgeon": "onnx_graphsurgeon",
    "pytorch-quantization": "pytorch_quantization",
}
PACKAGES = (  # in the order of the report
    *("torch", "transformers", "pytorch-quantization", "onnx", "onnx-graphsurgeon", "onnxscript", "openvino"),
    *("onnxruntime", "tritonclient", "polygraphy", "tensorrt", "pycuda", "datasets", "accelerate", "seqeval"),
)
# load, inject, calibrate, export and lower: everything before a target's own engine
CORE = ("torch", "transformers", "pytorch-quantization", "onnx", "onnx-graphsurgeon", "onnxscript")
MARKS = {True: "yes", False: "no", None: "-"}


@dataclass(frozen=True)
class Ability:
    """Possible here for one target (None where it means nothing); `missing` holds (what is missing, how to get it)."""

    build: bool | None
    run: bool | None
    benchmark: bool | None
    missing: tuple[tuple[str, str], ...] = ()


def doctor(folder: Path = Path()) -> dict[str, Any]:
    """The report as JSON-ready data; `folder` is where artifacts would go (its free disk space is reported; it need
    not exist).

    Keys: python, packages {name: version or null}, compiler {version, missing: a sentence; one is null}, machine,
    int8_sums {instructions, sums}, disk_free_gib, targets {name: {build, run, benchmark, missing [[what, command]]}},
    warnings. A package that is installed but broken is not detected.
    """
    packages = {name: installed_version(name) for name in PACKAGES}
    hardware, sums = machine(), int8_sums()
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = round(shutil.disk_usage(existing).free / 2**30, 1)
    probes = {name: target.probe() for name, target in TARGETS.items() if target.probe}
    gpu = next((found.gpu for found in probes.values() if found.gpu), hardware["gpu"])
    server = shutil.which("tritonserver") is not None
    return {
        "python": platform.python_version(),
        "packages": packages,
        "compiler": {"version": compiler_version(), "missing": compiler_missing()},
        "machine": {**hardware, "gpu": gpu},
        "int8_sums": sums.as_json(),
        "disk_free_gib": free,
        "targets": {name: asdict(ability) for name, ability in abilities(packages, probes, server).items()},
        "warnings": warnings(sums, free),
    }


def installed_version(package: str) -> str | None:
    """Version of an installed package, found without importing it; None when it is not there."""
    if importlib.util.find_spec(MODULES.get(package, package)) is None:
        return None
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"  # a module without package data, such as one on PYTHONPATH


def abilities(packages: Mapping[str, str | None], probes: Mapping[str, Probe], server: bool) -> dict[str, Ability]:
    """Abilities of every target: from the installed packages, the targets' probes, and whether Triton is here."""

    def lacking(*names: str) -> tuple[tuple[str, str], ...]:
        return tuple((name, COMMANDS.get(name, SETUP)) for name in names if packages.get(name) is None)

    core = lacking(*CORE)
    found = {}
    for name in TARGETS:
        if name in probes:  # which also looks for the runtime's packages
            runtime, baselines = tuple(_split(sentence) for sentence in probes[name].missing), lacking()
        else:
            runtime, baselines = lacking(name), lacking(BASELINE, "torch", "transformers")
        built = not core and not runtime
        missing = tuple(dict.fromkeys((*core, *runtime, *baselines)))
        found[name] = Ability(built, not runtime, built and not baselines, missing)
        if TARGETS[name].portable:  # another machine runs it
            found[name] = Ability(built, None, None, missing)
    triton = lacking("tritonclient") + (() if server else (("a Triton server", SERVER),))
    training = lacking("torch", "transformers", "pytorch-quantization", "datasets", "accelerate", "seqeval")
    return {
        **found,
        "triton repository": Ability(packages.get("tritonclient") is not None, server, None, triton),
        "training": Ability(None, not training, None, training),
    }


def warnings(sums: Int8Sums, free_gib: float) -> list[str]:
    """Sentences about what works but will disappoint."""
    sentences = []
    if sums.saturate:
        sentences.append(
            "This x86 CPU has no VNNI (avx512_vnni, avx_vnni, amx_int8): it adds INT8 products in pairs that saturate "
            "at 32767, and multiplies INT8 at most about twice as fast as FP32. Engines built here are right all the "
            "same: onnxruntime, which --target auto will find to be faster, codes weights in u8 and sums exactly; "
            "openvino gets weights that fit, up to one bit coarser, and float attention, and is not faster than FP32."
        )
    elif not sums.instructions:
        sentences.append(
            "This CPU shows no INT8 instructions (Arm: asimddp, i8mm): INT8 may not be faster than FP32 here."
        )
    if free_gib < FREE_DISK_GIB:
        sentences.append(f"Only {free_gib:g} GiB of disk are free; {FREE_DISK_GIB:g} GiB are comfortable.")
    return sentences


def render(report: Mapping[str, Any]) -> str:
    """The report as plain text, at most 80 columns wide."""
    hardware = report["machine"]
    # The machine, and a table of what every target can do on it.
    lines = [
        *_field("Python", report["python"]),
        *_field("CPU", f"{hardware['cpu']}, {hardware['cores']} cores usable"),
        *_field("INT8", _int8(report["int8_sums"])),
        *_field("GPU", hardware["gpu"] or "none"),
        *_field("Disk", f"{report['disk_free_gib']:g} GiB free"),
        *_field("Compiler", _compiler(report["compiler"])),
        *_field("Packages", ", ".join(f"{name} {version or '-'}" for name, version in report["packages"].items())),
        "",
        f"{'target':<20}{'build':<8}{'run':<8}bench",
    ]
    for name, target in report["targets"].items():
        marks = "".join(f"{MARKS[target[can]]:<8}" for can in ("build", "run", "benchmark"))
        lines.append(f"{name:<20}{marks}".rstrip())
    # The command for everything that is missing.
    for name, target in report["targets"].items():
        if target["missing"]:
            lines += ["", f"{name} lacks:"]
            for what, command in target["missing"]:
                text = f"{what}: {command}"
                lines += textwrap.wrap(text, WIDTH, initial_indent="  - ", subsequent_indent="    ")
    for sentence in report["warnings"]:
        lines += ["", *textwrap.wrap(f"Warning: {sentence}", WIDTH)]
    return "\n".join(lines) + "\n"


def _compiler(compiler: Mapping[str, str | None]) -> str:
    version = compiler["version"]
    return f"TensorRT for RTX {version}, needs no GPU" if version else str(compiler["missing"])


def _field(name: str, value: str) -> list[str]:
    return textwrap.wrap(value, WIDTH, initial_indent=f"{name:<10}", subsequent_indent=" " * 10)


def _int8(sums: Mapping[str, Any]) -> str:
    return f"{', '.join(sums['instructions']) or 'no instructions seen'}; sums of products: {sums['sums']}"


def _split(sentence: str) -> tuple[str, str]:
    """A probe's "obstacle: command" as its two parts."""
    what, _, command = sentence.rpartition(": ")
    return (what, command) if what else (sentence, "")
