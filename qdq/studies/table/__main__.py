"""Measure the table that the compression documents print; ``python -m qdq.studies.pages`` writes it into the docs.

    python -m qdq.studies.table                                everything docs/results/table/ does not have yet
    python -m qdq.studies.table --only minilm-mrpc:time        this part, again
    python -m qdq.studies.table --list                         the parts, and the commands of those that run some

FP32, INT8, pruned FP32 and pruned INT8 of six models. Models and data lie beside the repository (`--shared`). Time on
an otherwise idle machine.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from qdq.base.artifacts import read_json
from qdq.studies.study import RESULTS, add_places, exit_code, parser
from qdq.studies.table.cases import CASES
from qdq.studies.table.measure import PARTS, Places, compression, finetuning, measure

NAMES = [f"{case}:{part}" for case in CASES for part in PARTS]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for, or what is missing."""
    command = parser("table", __doc__)
    command.add_argument("--only", nargs="+", choices=NAMES, metavar="MODEL:PART", help="measure these, again")
    command.add_argument("--list", action="store_true", help="print parts and commands, measure nothing")
    add_places(command, "table")
    options = command.parse_args(arguments)
    places = Places(options.shared, options.work, RESULTS / "table")
    for name in options.only or NAMES:
        case, part = CASES[name.partition(":")[0]], name.partition(":")[2]
        if options.list:
            commands = {"train": finetuning(places, case), "compress": [compression(places, case)]}.get(part, [])
            sys.stdout.write("".join([f"{name}\n", *(f"  {shlex.join(words)}\n" for words in commands)]))
            continue
        record = places.record(case)
        if options.only or not record.is_file() or part not in read_json(record):
            measure(places, case, part)


if __name__ == "__main__":
    sys.exit(exit_code(main))
