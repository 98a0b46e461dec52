"""Write a Label Studio export (JSON) in doccano's layout, which doccano.py reads.

python examples/uie/labelstudio2doccano.py --labelstudio_file label-studio.json --doccano_file doccano_ext.jsonl
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from qdq.base.artifacts import write_text
from qdq.base.edge import Parser, run_script
from qdq.uie.annotations import read_label_studio
from qdq.uie.files import TASKS


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert as the flags say."""
    parser = Parser(description=__doc__)
    parser.add_argument("--labelstudio_file", type=Path, required=True, help="Label Studio's JSON export")
    parser.add_argument("--doccano_file", type=Path, default=Path("doccano_ext.jsonl"), help="file to write")
    parser.add_argument("--task_type", default="ext", choices=TASKS, help="ext: entities and relations; cls: classes")
    given = parser.parse_args(arguments)
    annotations = read_label_studio(given.labelstudio_file)
    rows = [one.as_doccano(number, given.task_type) for number, one in enumerate(annotations)]
    write_text(given.doccano_file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    sys.stdout.write(f"{given.doccano_file}: {len(rows)} texts\n")


if __name__ == "__main__":
    sys.exit(run_script(main))
