"""Versions of everything that shapes an artifact, for the manifest and the benchmark."""

from __future__ import annotations

import platform
from importlib import metadata

__version__ = "0.2.0"

PACKAGES = (
    "torch",
    "transformers",
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
    "tritonclient",
)


def versions() -> dict[str, str]:
    """Installed versions by package name; absent packages are left out."""
    found = {"qdq": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
