"""machine() says what decides speed and nothing that identifies a person or a host."""

from __future__ import annotations

import getpass
import json
import platform
import stat
from pathlib import Path

import pytest

from engines.bench.machine import ISA, machine, parse_cpuinfo, parse_nvidia_smi

X86 = """\
processor\t: 0
model name\t: Some CPU @ 2.60GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8 rdtscp

processor\t: 1
model name\t: Some CPU @ 2.60GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8 rdtscp

processor\t: 2
model name\t: Some CPU @ 2.60GHz
physical id\t: 1
core id\t\t: 0
flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8 rdtscp
"""
ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd asimddp i8mm bf16\nCPU implementer\t: 0x41\n"
KEYS = {"cpu", "cores", "physical_cores", "memory_gib", "isa", "os", "gpu"}


def test_x86_cpuinfo_gives_model_instruction_sets_and_physical_cores() -> None:
    # processors 0 and 1 are two threads of one core
    assert parse_cpuinfo(X86) == {
        "cpu": "Some CPU @ 2.60GHz",
        "physical_cores": 2,
        "isa": ["avx2", "avx512f", "avx512_vnni", "amx_int8"],
    }


def test_arm_cpuinfo_has_no_model_name_but_has_features() -> None:
    assert parse_cpuinfo(ARM) == {"cpu": None, "physical_cores": None, "isa": ["asimddp", "i8mm", "bf16"]}


def test_gpu_names_come_without_their_uuids() -> None:
    one = "GPU 0: NVIDIA H200 (UUID: GPU-11111111-2222)\n  MIG 1g.18gb Device 0: (UUID: MIG-33)\n"
    assert parse_nvidia_smi(one) == "NVIDIA H200"
    two = "GPU 0: NVIDIA A10 (UUID: GPU-1)\nGPU 1: NVIDIA A10 (UUID: GPU-2)\nGPU 2: Tesla T4 (UUID: GPU-3)\n"
    assert parse_nvidia_smi(two) == "2 x NVIDIA A10, Tesla T4"
    assert parse_nvidia_smi("No devices found.\n") is None


def test_this_machine_is_described_completely_and_anonymously() -> None:
    facts = machine()
    assert facts.keys() == KEYS
    assert facts["cpu"] and facts["cores"] >= 1 and set(facts["isa"]) <= set(ISA)
    words = json.dumps(facts).replace('"', " ").replace(",", " ").split()  # also: it is JSON
    assert platform.node() not in words and getpass.getuser() not in words


def test_without_proc_and_without_a_driver_everything_still_answers(tmp_path: Path) -> None:
    facts = machine(cpuinfo=tmp_path / "absent", nvidia_smi=str(tmp_path / "absent"))
    assert facts.keys() == KEYS
    assert facts["cpu"] and facts["cores"] >= 1
    assert (facts["isa"], facts["physical_cores"], facts["gpu"]) == ([], None, None)


@pytest.mark.parametrize(
    ("script", "gpu"),
    [
        ("echo 'GPU 0: NVIDIA L4 (UUID: GPU-9)'", "NVIDIA L4"),
        ("echo 'NVIDIA-SMI has failed because it could not talk to the driver'; exit 9", None),
    ],
)
def test_nvidia_smi_is_asked_and_may_fail(tmp_path: Path, script: str, gpu: str | None) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    assert machine(nvidia_smi=str(tool))["gpu"] == gpu


def test_a_hanging_driver_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 30\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr("engines.bench.machine.TIMEOUT_S", 0.05)
    assert machine(nvidia_smi=str(tool))["gpu"] is None
