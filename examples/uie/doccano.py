"""Make prompt files (train.txt, dev.txt, test.txt) of a doccano export.

    python examples/uie/doccano.py --doccano_file ./data/doccano_ext.json --task_type ext --save_dir ./data \\
        --splits 0.8 0.1 0.1

The flags are those of PaddleNLP's doccano.py. Texts marked as a whole: --task_type cls --options 正向 负向
--prompt_prefix 情感倾向; entities with a class are labelled 评价维度##正向 (--separator).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from qdq.base.edge import Parser, run_script
from qdq.errors import ConfigError
from qdq.uie.annotations import Annotation, read_doccano
from qdq.uie.examples import Rules
from qdq.uie.files import TASKS, Division, write_prompts

TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def truth(word: str) -> bool:
    """True or False as documents type it after a flag."""
    if word.lower() not in TRUTH:
        raise ConfigError(f"--is_shuffle: '{word}' is neither True nor False")
    return TRUTH[word.lower()]


def convert(
    flag: str, read: Callable[[Path], list[Annotation]], about: str | None, arguments: Sequence[str] | None
) -> None:
    """Convert the export that `flag` names and say what was written."""
    parser = Parser(description=about)
    add = parser.add_argument
    add(f"--{flag}", required=True, type=Path, help="the export")
    add("--save_dir", type=Path, default=Path("data"), help="folder of the prompt files (default: ./data)")
    add("--task_type", default="ext", choices=TASKS, help="ext: entities and relations; cls: classes of texts")
    add("--negative_ratio", type=int, default=5, help="negatives for a positive in train.txt; -1: all (default: 5)")
    add("--splits", type=float, nargs="*", default=[0.8, 0.1, 0.1], help="shares of train, dev, test; none: all train")
    add("--options", nargs="+", default=["正向", "负向"], help="classes (default: 正向 负向)")
    add("--prompt_prefix", default="", help="of a classification (default: 情感倾向, or Sentiment Classification)")
    add("--separator", default="##", help="between an entity's label and its class (default: ##)")
    add("--schema_lang", default="ch", choices=("ch", "en"), help="of the labels (default: ch)")
    add("--is_shuffle", type=truth, default=True, help="shuffle texts and training rows (default: True)")
    add("--seed", type=int, default=1000)
    given = parser.parse_args(arguments)
    # Read, convert, write
    started = time.perf_counter()
    rules = Rules(
        given.negative_ratio, tuple(given.options), given.prompt_prefix, given.separator, language=given.schema_lang
    )
    annotations = read(getattr(given, flag))
    division = Division(tuple(given.splits), given.is_shuffle, given.seed)
    written = write_prompts(annotations, given.save_dir, rules, division, given.task_type)
    for path, count in written.items():
        sys.stdout.write(f"{path}: {count} rows\n")
    sys.stdout.write(f"{len(annotations)} texts in {time.perf_counter() - started:.1f} s\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert as the flags say."""
    convert("doccano_file", read_doccano, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(run_script(main))
