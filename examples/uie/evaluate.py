"""Score a UIE checkpoint, or an engine of one, on a prompt file.

    python examples/uie/evaluate.py --model_path checkpoint/model_best --test_path data/dev.txt --batch_size 16 \\
        --max_seq_len 512 --debug

The flags are those of PaddleNLP's evaluate.py; `qdq evaluate` has more. --debug scores each class of prompts that have
answers, those about a subject as X的…
"""

import sys
from collections.abc import Sequence
from typing import Any

from qdq.base.edge import Parser, run_script
from qdq.base.screen import Screen
from qdq.cli.evaluate import EvaluateOptions, evaluate, render


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Score as the flags say, print the table; returns the report of `qdq evaluate`."""
    parser = Parser(description=__doc__)
    parser.add_argument("--model_path", required=True, help="checkpoint folder, engine file or work directory")
    parser.add_argument("--test_path", required=True, help="prompt file")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_seq_len", type=int, default=512, help="tokens; longer contents become several rows")
    parser.add_argument("--debug", action="store_true", help="score each class of prompts, too")
    parser.add_argument(
        "--multilingual", action="store_true", help="for uie-m; the checkpoint says it itself, so unused"
    )
    parser.add_argument("--schema_lang", default="ch", choices=("ch", "en"), help="language of the prompts")
    given = parser.parse_args(arguments)
    # As `qdq evaluate` does it
    report = evaluate(
        EvaluateOptions(
            what=(given.model_path,),
            data=given.test_path,
            sequence=given.max_seq_len,
            batch=given.batch_size,
            debug=given.debug,
            schema_lang=given.schema_lang,
        ),
        Screen(),
    )
    sys.stdout.write(render(report))
    return report


if __name__ == "__main__":
    sys.exit(run_script(main))
