"""The command: ``python -m qdq.loading.convert FOLDER --out NEW``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qdq.errors import ConfigError, QdqError
from qdq.loading.convert.folder import convert


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert a folder and say what was written: 0 done, 1 failed, 2 wrong usage."""
    options = argparse.ArgumentParser(
        prog="python -m qdq.loading.convert",
        description="PaddleNLP's BERT, ERNIE, ERNIE-Gram, ERNIE-M, PP-MiniLM, TinyBERT, Chinese RoBERTa and UIE, and "
        "ERNIE-M of transformers 4, as a folder that 'qdq compile --model' takes. Nothing of a checkpoint is run.",
        allow_abbrev=False,
    )
    options.add_argument("folder", type=Path, help="model_config.json or config.json beside model_state.pdparams")
    options.add_argument("--out", type=Path, required=True, help="new folder")
    options.add_argument("--allow-pickle", action="store_true", help="read pytorch_model.bin, whose source you trust")
    given = options.parse_args(arguments)
    try:
        made = convert(given.folder, given.out, given.allow_pickle)
    except QdqError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    sys.stdout.write("\n".join([f"{given.out}: {made.architecture}", *made.notes]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
