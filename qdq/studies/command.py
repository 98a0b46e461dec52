"""The command line of a study: its parser, and how it ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qdq.base.artifacts import to_json, write_json
from qdq.errors import ConfigError, QdqError
from qdq.studies.results import SHARED


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


def add_calibration(options: argparse.ArgumentParser) -> None:
    """Add what calibrating one model in this process takes."""
    for name in ("model", "calibration"):
        options.add_argument(f"--{name}", required=True)
    for name, default in (("samples", 128), ("sequence", 128), ("threads", 0)):
        options.add_argument(f"--{name}", type=int, default=default)
    options.add_argument("--out", type=Path, help="JSON file for the report, which is printed as well")


def publish(report: Mapping[str, Any], out: Path | None) -> None:
    """Print a report as JSON, and write it to `out`."""
    if out is not None:
        write_json(out, report)
    sys.stdout.write(to_json(report))


def check_shared(folder: Path) -> None:
    """Raise ConfigError when the folder with models and data is not there."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is not there; name the folder with models/ and data/ with --shared")


def exit_code(main: Callable[[], None]) -> int:
    """Run `main`: 0 done, 1 failed, 2 wrong usage. An error of this project becomes one line on standard error."""
    try:
        main()
    except QdqError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    return 0
