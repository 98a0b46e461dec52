"""`qdq report`: the page of an older work directory, or two compiles side by side."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from engines.targets import TARGETS
from qdq.base.artifacts import write_text
from qdq.base.option import check, option
from qdq.errors import ConfigError

COMPARISON = "comparison.html"


@dataclass(frozen=True)
class ReportOptions:
    """Options of `qdq report`."""

    what: tuple[str, ...] = option(
        MISSING,
        "work directory of a compile, or its folder of a target; two are compared",
        metavar="DIR",
        positional=True,
    )
    target: str | None = option(None, "whose files (default: the last run's)", choices=TARGETS)
    out: str | None = option(
        None, "file to write (default: report.html in DIR; of two, comparison.html here)", metavar="FILE"
    )


def report(options: ReportOptions) -> str:
    """Write the page and return what was written. Raises WorkError for a folder that no compile made, ConfigError."""
    from qdq.api.work import open_work
    from qdq.pipeline.stages.report import CARD, PAGE, facts_of
    from qdq.report.card import render_card
    from qdq.report.comparison import render_comparison
    from qdq.report.page import render

    check(options)
    works = [open_work(what, options.target) for what in options.what]
    facts = [facts_of(work.folder, work.target) for work in works]
    if len(facts) > 2:
        raise ConfigError(f"qdq report compares two compiles, not {len(facts)}; give one or two folders")
    if len(facts) == 2:
        page = write_text(Path(options.out or COMPARISON), render_comparison(*facts))
        return f"{page}\n"
    if options.out is not None:
        return f"{write_text(Path(options.out), render(facts[0]))}\n"
    folder = facts[0].folder
    written = write_text(folder / PAGE, render(facts[0])), write_text(folder / CARD, render_card(facts[0]))
    return "".join(f"{path}\n" for path in written)
