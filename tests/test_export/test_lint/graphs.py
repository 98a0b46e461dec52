"""Reports and tables of edits that the linter's tests share."""

from __future__ import annotations

from collections.abc import Callable

from export.lint import LintReport
from qdq.studies.linter.graphs.edits import Edit

Check = Callable[..., LintReport]
Cases = dict[str, tuple[list[tuple[Edit, tuple[str, ...]]], list[Edit]]]  # rule -> (edit, culprits) pairs, near misses


def fired(report: LintReport) -> tuple[str, ...]:
    """Ids of the rules that fired, each once, in order."""
    return tuple(dict.fromkeys(finding.rule for finding in report.findings))
