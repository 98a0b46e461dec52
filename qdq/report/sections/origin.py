"""Origin: the commands that make this again, options, versions and hashes."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from qdq.report.facts import Facts
from qdq.report.html import code, details, element, section, table, text


def origin(facts: Facts) -> str:
    """Section "Made with"."""
    content = [element("h3", "The same again"), code(commands(facts))]
    content.append(details("every option", _pairs(facts.options, ("option", "value"))))
    content.append(details("versions", _pairs(facts.manifest.get("versions", {}), ("package", "version"))))
    content.append(
        details("SHA-256 of every file that was written", table(("file", "stage", "SHA-256"), _hashes(facts)))
    )
    if passes := facts.get("passes"):
        rows = [
            (text(entry["pass"]), str(len(entry["changed"])), str(len(entry["declined"])), text(entry["why"]))
            for entry in passes["passes"]
        ]
        content.append(details("lowering passes", table(("pass", "changed", "declined", "why"), rows, (1, 2))))
    return section("origin", "Made with", *content)


def commands(facts: Facts) -> str:
    """The compile, and the evaluation and the page of what is there, as shell lines."""
    folder = shlex.quote(str(facts.folder))
    return "\n".join((shlex.join(facts.command), f"qdq bench --out {folder}", f"qdq report {folder}"))


def _pairs(values: object, head: tuple[str, str]) -> str:
    items = values.items() if hasattr(values, "items") else ()
    rows = [(text(name), element("span", text(_value(value)), class_="mono")) for name, value in items]
    return table(head, rows)


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None else str(value)


def _hashes(facts: Facts) -> Iterator[tuple[str, str, str]]:
    for stage, record in facts.manifest.get("stages", {}).items():
        if stage == "report":  # a page does not know its own
            continue
        for name, digest in record.get("outputs", {}).items():
            yield text(name), text(stage), element("span", text(digest), class_="mono")
