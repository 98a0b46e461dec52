"""``python -m qdq.studies.fuzz --mutations 10000``: damage tiny checkpoints, and count what becomes of them.

Exit code 1 when one ended in an internal error, in a model that its library does not make of the same files, or in one
that the library refuses. ``--out`` writes counts and faults as JSON.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from qdq.base.artifacts import write_json
from qdq.errors import QdqError
from qdq.studies.fuzz.checkpoints import write_classifier, write_embedder
from qdq.studies.fuzz.judge import FAULTS, judge, outputs_of
from qdq.studies.fuzz.mutations import mutate

REPORT = 100  # mutations between two lines of progress


def fuzz(mutations: int, seed: int, scratch: Path, first: int = 0) -> dict[str, Any]:
    """Damage copies in `scratch`, each by the seed and its number, from `first` on; returns counts and faults."""
    # Whole checkpoints and what they compute
    wholes = [write_classifier(scratch / "classifier"), write_embedder(scratch / "embedder")]
    before = [outputs_of(folder) for folder in wholes]
    counts: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    started = time.monotonic()
    # One damaged copy after the other
    for number in range(first, first + mutations):
        rng = Random(f"{seed}/{number}")
        which = rng.randrange(len(wholes))
        copied = scratch / "damaged"
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(wholes[which], copied)
        done = [mutate(copied, rng) for _ in range(rng.choice((1, 1, 1, 2)))]
        verdict = judge(copied, before[which])
        counts[verdict.kind] += 1
        if verdict.kind in FAULTS:
            faults.append({"number": number, "done": done, "kind": verdict.kind, "said": verdict.said})
            sys.stderr.write(f"{number} {wholes[which].name} {verdict.kind}: {done}\n{verdict.said}\n\n")
        if (number + 1) % REPORT == 0:
            sys.stderr.write(f"{number + 1}: {dict(counts)}, {time.monotonic() - started:.0f} s\n")
    return {
        "mutations": mutations,
        "seed": seed,
        "first": first,
        "outcomes": dict(sorted(counts.items())),
        "faults": faults,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; 0 without faults."""
    parser = argparse.ArgumentParser(prog="python -m qdq.studies.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation, to repeat one")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    logging.getLogger().setLevel(logging.CRITICAL)  # warnings of thousands of damaged checkpoints
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        report = fuzz(options.mutations, options.seed, Path(scratch), options.first)
    if options.out is not None:
        write_json(options.out, report)
    sys.stdout.write(f"{report['mutations']} mutations: {report['outcomes']}\n")
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QdqError as error:
        sys.exit(str(error))
