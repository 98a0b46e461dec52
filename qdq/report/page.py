"""The page of one compile: summary first, then what it rests on; one file that loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from qdq.base.versions import __version__
from qdq.report.facts import Facts
from qdq.report.html import code, element, paragraph, section, text
from qdq.report.sections.accuracy import accuracy
from qdq.report.sections.choices import sensitivity, trade_off
from qdq.report.sections.compiled import compiled, estimate
from qdq.report.sections.layers import layers
from qdq.report.sections.origin import origin
from qdq.report.sections.ranges import ranges
from qdq.report.sections.speed import speed
from qdq.report.words import Tile, next_steps, sentences, tiles

STYLE = Path(__file__).with_name("style.css")
# Nothing may be loaded and nothing run, whatever a text says.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
# Anchor, name in the menu, and the function that makes the section, in their order on the page.
SECTIONS: tuple[tuple[str, str, Callable[[Facts], str]], ...] = (
    ("speed", "Speed", speed),
    ("accuracy", "Accuracy", accuracy),
    ("layers", "Layers", layers),
    ("trade-off", "Trade-off", trade_off),
    ("sensitivity", "Sensitivity", sensitivity),
    ("compiled", "Kernels", compiled),
    ("estimate", "Estimate", estimate),
    ("ranges", "Ranges", ranges),
    ("origin", "Made with", origin),
)


def render(facts: Facts) -> str:
    """The page of one compile as HTML."""
    made = [(anchor, name, content) for anchor, name, make in SECTIONS if (content := make(facts))]
    head = element(
        "header",
        paragraph(f"{facts.task} · {facts.target}", class_="kind"),
        element("h1", text(facts.name)),
        menu([("next", "What to do next"), *((anchor, name) for anchor, name, _ in made)]),
    )
    return document(
        f"{facts.name}: {facts.target}", head, shown(tiles(facts)), _summary(facts), *(content for *_, content in made)
    )


def _summary(facts: Facts) -> str:
    said = element("ul", *(element("li", text(sentence)) for sentence in sentences(facts)), class_="said")
    steps = [
        element("li", text(step.sentence), code(step.command) if step.command else "") for step in next_steps(facts)
    ]
    return said + section("next", "What to do next", element("ol", *steps, class_="next") if steps else "")


def shown(found: Sequence[Tile]) -> str:
    """The tiles of the summary."""
    return element(
        "div",
        *(
            element(
                "div",
                paragraph(tile.question, class_="what"),
                element("p", text(tile.figure), class_="big"),
                paragraph(tile.more, class_="more"),
                class_=f"tile {tile.kind}",
            )
            for tile in found
        ),
        class_="tiles",
    )


def menu(entries: Sequence[tuple[str, str]]) -> str:
    """Links to sections, by anchor and name."""
    return element("nav", *(element("a", text(name), href=f"#{anchor}") for anchor, name in entries))


def document(title: str, *content: str) -> str:
    """A whole page around `content`, which is markup."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{text(POLICY)}">'
        '<meta name="referrer" content="no-referrer">'
        f'<link rel="icon" href="data:,"><title>{text(title)}</title><style>{STYLE.read_text(encoding="utf-8")}</style>'
    )
    foot = element(
        "footer", text(f"Written by qdq {__version__} from the JSON files beside it; this page loads nothing.")
    )
    body = element("body", element("main", *content, foot))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>{body}</html>\n'
