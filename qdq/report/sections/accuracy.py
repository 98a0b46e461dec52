"""Accuracy: metrics of both sides with intervals, closeness of outputs, and the texts that come out otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qdq.report.facts import Facts
from qdq.report.html import details, element, fixed, number, paragraph, section, table, text
from qdq.report.words import interval_of

WIDTH = 320


def accuracy(facts: Facts) -> str:
    """Section "Accuracy"."""
    report = facts.get("accuracy")
    if report is None:
        return section("accuracy", "Accuracy", paragraph("Not measured: the engine was not run on this machine."))
    content = [paragraph(f"On {report['source']}.", *report.get("notes", ()))]
    if report["metrics"]:
        content.append(_metrics(report["metrics"], report["metric"]["name"]))
    else:
        content.append(paragraph(f"No task metric: {report['metric_reason']}.", class_="warn"))
    content.append(_closeness(report))
    content.append(_texts(facts))
    return section("accuracy", "Accuracy", *content)


def _metrics(metrics: Mapping[str, Any], main: str) -> str:
    reach = max(
        (abs(bound) for entry in metrics.values() for bound in interval_of(entry) or (entry["drop_points"],)), default=1
    )
    names = [main, *sorted(set(metrics) - {main})]
    rows = [
        (
            f"<b>{text(name)}</b>" if name == main else text(name),
            fixed(metrics[name]["fp32"], 4),
            fixed(metrics[name]["int8"], 4),
            f"{metrics[name]['drop_points'] + 0.0:+.2f}".replace("+0.00", "0.00"),
            _interval(metrics[name], max(reach, 0.1)),
        )
        for name in names
    ]
    head = ("metric", "FP32", "INT8", "points lost", "95% interval of the loss")
    return table(head, rows, (1, 2, 3))


def _interval(metric: Mapping[str, Any], reach: float) -> str:
    """The loss as a dot with its interval as a line; zero is the dashed line."""
    found = interval_of(metric)
    if found is None:
        return "–"
    middle, scale = WIDTH / 2, (WIDTH / 2 - 46) / reach
    low, high, dot = (middle + value * scale for value in (*found, metric["drop_points"]))
    said = f"{found[0]:.2f} to {found[1]:.2f}"
    marks = (
        f'<path class="zero" d="M{middle} 0V22"/>'
        f'<path class="whisker" d="M{low:.1f} 11H{high:.1f}M{low:.1f} 6v10M{high:.1f} 6v10"/>'
        f'<circle class="dot" cx="{dot:.1f}" cy="11" r="4"/>'
    )
    picture = f'<svg class="interval" viewBox="0 0 {WIDTH} 22" role="img" aria-label="{said} points lost">{marks}</svg>'
    return picture + element("span", f"{said} points", class_="soft")


def _closeness(report: Mapping[str, Any]) -> str:
    rows = []
    if report["cosine_mean"] is not None:
        rows.append(
            ("cosine of the outputs", fixed(report["cosine_mean"], 5), f"worst {fixed(report['cosine_min'], 4)}")
        )
    if report.get("pearson") is not None:
        rows.append(("Pearson of the scores", fixed(report["pearson"], 5), f"Spearman {fixed(report['spearman'], 5)}"))
    if report["agreement"] is not None:
        share = f"{report['agreement']:.2%}"
        rows.append(("same answer as FP32", share, text(f"of {report['agreement_of']} {report['agreement_unit']}s")))
    rows.append(
        ("difference of outputs", number(report["mean_abs_error"]), f"at most {number(report['max_abs_error'])}")
    )
    if report.get("logit_mse") is not None:
        rows.append(("squared error of logits", number(report["logit_mse"]), ""))
    title = element("h3", "How close the outputs are")
    return title + table(("", "mean", ""), rows, (1,))


def _texts(facts: Facts) -> str:
    """Texts with another answer, or whose embedding moved most."""
    found = facts.get("disagreements")
    if found is None:
        return paragraph("Texts with other answers were not kept by this compile.", class_="soft")
    content = ""
    if found["of"]:
        content += element("h3", text(f"{found['count']} of {found['of']} answers differ from FP32's"))
        content += _answers(found["texts"], found["count"]) if found["count"] else ""
    if found["moved"]:
        rows = [
            (fixed(entry["cosine"], 4), element("div", text(entry["text"]), class_="say")) for entry in found["moved"]
        ]
        content += element("h3", "Texts whose embedding moves most") + table(("cosine", "text"), rows, (0,))
    return content


def _answers(texts: Sequence[Mapping[str, Any]], count: int) -> str:
    labelled = any("label" in entry for entry in texts)
    rows = []
    for entry in texts:
        said = element("div", text(entry["text"]), class_="say")
        said += element("div", text(entry["pair"]), class_="say soft") if "pair" in entry else ""
        right = (text(entry.get("label", "")),) if labelled else ()
        rows.append(
            (
                said,
                element("span", text(entry["fp32"]), class_="said"),
                element("span", text(entry["int8"]), class_="said"),
                *right,
            )
        )
    head = ("text", "FP32 says", "INT8 says", *(("label",) if labelled else ()))
    shown = element("div", table(head, rows), class_="texts")
    more = paragraph(f"{count - len(texts)} more are not kept.", class_="soft") if count > len(texts) else ""
    return details(f"the first {len(texts)}", shown, more, open_=len(texts) <= 8)
