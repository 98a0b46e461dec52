"""Every CUDA, NVML and TensorRT name the GPU benchmark uses exists in the releases data/gpu_api.json was read from.

The names were looked up in the real packages: cuda-bindings and nvidia-ml-py from their wheels, pycuda built from its
source, tensorrt from its bindings' public names. Where a package is installed, it is asked again.
"""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "engines" / "bench_gpu"
DATA = Path(__file__).parent / "data"
API: dict[str, Any] = json.loads((DATA / "gpu_api.json").read_text(encoding="utf-8"))
TRT_API: dict[str, Any] = json.loads((DATA / "trt_api.json").read_text(encoding="utf-8"))
# (file, variable) -> the module or class behind it
VARIABLES = {
    ("device_cudart.py", "cudart"): ("cuda.bindings.runtime", ""),
    ("device_pycuda.py", "driver"): ("pycuda.driver", ""),
    ("device_pycuda.py", "native"): ("pycuda.driver", "Device"),
    ("device_pycuda.py", "context"): ("pycuda.driver", "Context"),
    ("device_pycuda.py", "event"): ("pycuda.driver", "Event"),
    ("device_pycuda.py", "end"): ("pycuda.driver", "Event"),
    ("nvml.py", "nvml"): ("pynvml", ""),
    ("plan.py", "trt"): ("tensorrt", ""),
    ("plan.py", "context"): ("tensorrt", "IExecutionContext"),
}


def dotted(node: ast.Attribute) -> list[str]:
    """``a.b.c`` as [a, b, c]; empty when it does not start at a name."""
    parts: list[str] = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        parts.append(inner.attr)
        inner = inner.value
    return [*reversed([*parts, inner.id])] if isinstance(inner, ast.Name) else []


def names_used() -> Iterator[tuple[str, str]]:
    """(module, dotted name) of every use."""
    for file in sorted(PACKAGE.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            path = dotted(node) if isinstance(node, ast.Attribute) else []
            if path[:2] in (["self", "_context"], ["self", "_runtime"]):
                path = [path[1].removeprefix("_"), *path[2:]]
            if path and (file.name, path[0]) in VARIABLES and path[1:]:
                module, owner = VARIABLES[file.name, path[0]]
                yield module, ".".join(filter(None, [owner, *path[1:]]))
            if isinstance(node, ast.Constant) and str(node.value).startswith("nvmlClocks"):
                yield "pynvml", str(node.value)


def test_names_are_those_of_the_releases() -> None:
    known = {module: {*entry["names"]} | {"__version__"} for module, entry in API.items()}
    known["tensorrt"] |= {"Logger", "Runtime"}  # classes in trt_api.json
    used = set(names_used())
    prefixes = {module: {name.rpartition(".")[0] for name in names} for module, names in known.items()}
    assert not {(module, name) for module, name in used if name not in known[module] | prefixes[module]}
    assert len({name for module, name in used if module == "cuda.bindings.runtime"}) > 30
    assert len({name for module, name in used if module == "pynvml"}) > 25


def test_engine_names_are_in_every_tensorrt_release() -> None:
    tree = ast.parse((PACKAGE / "plan.py").read_text(encoding="utf-8"))
    used = [dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    engine = {path[1] for path in used if path[:1] == ["engine"] and len(path) > 1}
    assert "get_tensor_profile_shape" in engine
    assert {TRT_API["names"]["ICudaEngine"].get(name) for name in engine} == {"all"}
    assert TRT_API["names"]["ICudaEngine"]["create_execution_context"] == "all"
    assert TRT_API["names"]["Runtime"]["deserialize_cuda_engine"] == "all"
    assert {release.split(".")[0] for release in API["tensorrt"]["versions"]} == {"10", "11"}


@pytest.mark.parametrize("module", sorted(API))
def test_names_are_in_the_installed_package(module: str) -> None:
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        pytest.skip(f"{module} cannot be imported here: {error}")
    for name in API[module]["names"]:
        value: Any = found
        for part in name.split("."):
            value = getattr(value, part)
