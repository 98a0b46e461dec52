"""The part of this project that a text model carries: its modules, and those they import when they are imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SERVING = "engines.serving.model"


def library(roots: Sequence[str]) -> dict[str, Path]:
    """Source files by path in the library, ``engines/pieces.py``: the modules `roots` and all they need.

    Imports inside functions do not count: runtimes and files of other targets wait there.
    """
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        for source in _sources(waiting.pop()):
            name = source.relative_to(ROOT).as_posix()
            if name not in found:
                found[name] = source
                waiting += _imports(ast.parse(source.read_text(encoding="utf-8")))
    return dict(sorted(found.items()))


def _sources(module: str) -> Iterator[Path]:
    """Files that are run when a module of ours is imported: its own, and those of the packages it lies in."""
    folder = ROOT
    for part in module.split("."):
        file, folder = (folder / part).with_suffix(".py"), folder / part
        if (folder / "__init__.py").is_file():
            yield folder / "__init__.py"
        elif file.is_file():
            yield file
        else:  # not ours, or a name in a module
            return


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
