"""Versions of everything that shapes an artifact, for the manifest and the benchmark.

The version of this project is for people: between two of them the code changes. A digest of the source files says
whether the code that made an artifact is the code that is installed now.
"""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata
from pathlib import Path

from qdq.base.artifacts import sha256_file, sha256_json

__version__ = "0.2.0"

PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "pytorch-quantization",
    "numpy",
    "onnx",
    "onnxscript",
    "onnx-graphsurgeon",
    "polygraphy",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu12-bindings",
    "onnxruntime-ep-nv-tensorrt-rtx-cu12",
    "tritonclient",
)


SOURCE = "source"  # key of the digest among the versions
ROOT = Path(__file__).resolve().parents[2]  # of a checkout, or site-packages


def versions() -> dict[str, str]:
    """Installed versions by package name, absent packages left out, and the digest of our own source files."""
    found = {"qdq": __version__, SOURCE: source_digest(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def source_digest(root: Path = ROOT) -> str:
    """SHA-256 over every file, code and data, of the packages in `root`. Computed once per process."""
    files = (path for package in ("qdq", "export", "engines") for path in sorted((root / package).rglob("*")))
    return sha256_json(
        {
            path.relative_to(root).as_posix(): sha256_file(path)
            for path in files
            if path.is_file() and path.parent.name != "__pycache__"
        }
    )
