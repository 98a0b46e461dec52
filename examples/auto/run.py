"""Compress a text classifier by one YAML file: prune, distil and quantize on a CLUE or GLUE task.

    python examples/auto/run.py --config_path=examples/auto/configs/afqmc.yaml --save_dir=save_afqmc
    python examples/auto/run.py --config_path=examples/auto/configs/afqmc.yaml --eval

The configurations name a model and data of yours: change model_dir, and dataset to a folder with the tasks' folders
where the hub is out of reach. docs/auto.md has every section.
"""

import sys
from collections.abc import Sequence
from typing import Any

from qdq.base.edge import Parser, run_script
from qdq.base.screen import Screen

CLASSIFIER = "text-classification"


def main(arguments: Sequence[str] | None = None, about: str | None = __doc__, task: str = CLASSIFIER) -> Any:
    """Do what the flags ask for; returns the run's Result, or the metrics of --eval."""
    parser = Parser(description=about)
    parser.add_argument("--config_path", required=True, help="YAML file")
    parser.add_argument("--save_dir", default="output", help="folder of the compressed model (default: output)")
    parser.add_argument("--eval", action="store_true", help="score model_dir as it is, and end")
    flags = parser.parse_args(arguments)
    from qdq.auto.command import evaluate_file, run_file

    if flags.eval:
        found = evaluate_file(flags.config_path, Screen(), task)
        sys.stdout.write("".join(f"{name}: {value:.4f}\n" for name, value in found.items()))
        return found
    return run_file(flags.config_path, flags.save_dir, Screen(), task)


if __name__ == "__main__":
    sys.exit(run_script(main))
