"""Compress a UIE by one YAML file, on prompt files.

    python examples/auto/run_uie.py --config_path=examples/auto/configs/uie.yaml --save_dir=save_uie
    python examples/auto/run_uie.py --config_path=examples/auto/configs/uie.yaml --eval

The metric is the F1 of spans. examples/uie has what makes prompt files and fine-tunes; docs/auto.md every section.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdq.base.choices import INFORMATION_EXTRACTION
from qdq.base.edge import run_script

sys.path.insert(0, str(Path(__file__).parent))
from run import main as run


def main(arguments: Sequence[str] | None = None) -> Any:
    """Do what the flags ask for; returns the run's Result, or the metrics of --eval."""
    return run(arguments, __doc__, INFORMATION_EXTRACTION)


if __name__ == "__main__":
    sys.exit(run_script(main))
