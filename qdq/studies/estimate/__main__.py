"""Fit the estimator, judge it, and write the result everywhere it is shown; ``--compile`` counts the kernels anew.

Writes data/coefficients.json and data/validation.json of engines/estimate and the generated parts of docs/estimate.md;
with ``--compile``, which needs NVIDIA's compiler, first data/kernels.json and docs/results/estimate/lowering.json.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engines.estimate.model import COEFFICIENTS, VALIDATION, load_coefficients
from qdq.base.artifacts import write_json
from qdq.studies import pages
from qdq.studies.estimate.fit import coefficients_json, validate
from qdq.studies.estimate.lowering import LOWERING, lowering_json
from qdq.studies.estimate.networks import KERNELS, compile_published, kept_kernels
from qdq.studies.study import exit_code, parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for, in the order in which one needs the other."""
    command = parser("estimate", __doc__)
    command.add_argument("--compile", action="store_true", help="compile the networks and forms anew")
    typed = command.parse_args(arguments)
    if typed.compile:
        from engines.tensorrt_rtx import Compiler

        with Compiler() as compiler:
            write_json(KERNELS, compile_published(compiler))
        kept_kernels.cache_clear()
    # The fit, its errors, and what it says of the lowering.
    sys.stdout.write(f"wrote {write_json(COEFFICIENTS, coefficients_json())}\n")
    load_coefficients.cache_clear()
    write_json(VALIDATION, validate())
    if typed.compile:
        with Compiler() as compiler:
            write_json(LOWERING, lowering_json(compiler))
    pages.main()


if __name__ == "__main__":
    sys.exit(exit_code(main))
