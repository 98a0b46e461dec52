"""Make prompt files (train.txt, dev.txt, test.txt) of a Label Studio export (JSON), with the flags of doccano.py.

python examples/uie/label_studio.py --label_studio_file ./label_studio.json --task_type ext --save_dir ./data
"""

import sys
from collections.abc import Sequence

from doccano import convert

from qdq.base.edge import run_script
from qdq.uie.annotations import read_label_studio


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert as the flags say."""
    convert("label_studio_file", read_label_studio, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(run_script(main))
