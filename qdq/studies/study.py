"""The frame of every study: its folders and recorded results, its command line, and how it ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdq.base.artifacts import read_json
from qdq.errors import ConfigError, QdqError

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RESULTS = DOCS / "results"  # one JSON file per run
SHARED = Path("../shared")  # models/ and data/ beside the repository, as recorded commands name them


def load_results(folder: Path) -> dict[str, Any]:
    """The JSON files of `folder` by name without suffix, in order of names. Raises DeployError for a damaged one."""
    return {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}


def parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for ``python -m qdq.studies.<module>`` that shows the module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m qdq.studies.{module}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_places(options: argparse.ArgumentParser, work: str) -> None:
    """Add --shared and --work."""
    options.add_argument("--shared", type=Path, default=SHARED, help="folder with models/ and data/")
    options.add_argument("--work", type=Path, default=Path("build") / work, help="work directories")


def exit_code(main: Callable[[], None]) -> int:
    """Run `main`: 0 done, 1 failed, 2 wrong usage. An error of this project becomes one line on standard error."""
    try:
        main()
    except QdqError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    return 0
