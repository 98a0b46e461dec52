"""Summary of a compile in words: what is INT8, what that costs, what it brings, and what to do next."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from qdq.report.facts import INT8, Facts
from qdq.report.html import fixed, megabytes

WIDE = 0.5  # points: an interval that reaches beyond says little about a loss people care about


class Tile(NamedTuple):
    """One answer of the summary: a question, the figure, and what has to be known of it."""

    kind: str
    question: str
    figure: str
    more: str


class Step(NamedTuple):
    """Something to do next, with its command where there is one."""

    sentence: str
    command: str = ""


def tiles(facts: Facts) -> tuple[Tile, ...]:
    """The four answers a reader looks for first."""
    return (
        Tile("int8", "In INT8", *coverage(facts)),
        Tile("cost", "Costs", *cost(facts)),
        Tile("gain", "Brings", *gain(facts)),
        Tile("size", "File", *size(facts)),
    )


def coverage(facts: Facts) -> tuple[str, str]:
    """Linears in INT8, and the rest of the sentence."""
    found = facts.coverage
    if found is None:
        return "not known", "no engine was built here, and no compiler said what becomes of the graph"
    (linear, linears), (attention, attentions) = found.linears, found.attention
    by = f", by {found.compiler}" if found.compiler else ", read back from the engine"
    return f"{linear} of {linears}", f"encoder linears, and {attention} of {attentions} {found.unit}{by}"


def cost(facts: Facts) -> tuple[str, str]:
    """Points lost with their interval; without labels, how close the outputs are."""
    report = facts.get("accuracy")
    if report is None:
        return "not measured", "the engine was not run here"
    metric = report["metric"]
    if metric is None:
        return closeness(report), f"{report['samples']} texts; no task metric: {report['metric_reason']}"
    drop = metric["drop_points"]
    figure = "no points" if abs(drop) < 5e-5 else f"{abs(drop):.2f} points {'lost' if drop > 0 else 'won'}"
    values = f"{metric['name']} {metric['fp32']:.4f} in FP32, {metric['int8']:.4f} in INT8"
    return figure, f"{values}{interval_words(metric)}, over {report['samples']} texts"


def closeness(report: Any) -> str:
    """The cosine to FP32, or of single numbers their correlation."""
    if report.get("cosine_mean") is not None:
        return f"cosine {fixed(report['cosine_mean'], 4)}"
    return f"Pearson {fixed(report.get('pearson'), 4)}"


def interval_words(metric: Any) -> str:
    """`` (95% interval of the loss: …)``, "" without one."""
    found = metric.get("drop_interval")
    if not found:
        return ""
    low, high = (value + 0.0 for value in found)  # no negative zero
    return f" (95% interval of the loss: {low:.2f} to {high:.2f} points)"


def gain(facts: Facts) -> tuple[str, str]:
    """The speedup over the fastest FP32 engine, on texts as they are."""
    report, verdict = facts.get("benchmark"), facts.verdict
    if report is None or verdict is None:
        return "not timed", "the engine was not run here"
    texts = "texts as they are" if "texts" in report else "full rows"
    slower = "" if verdict["pays"] else ": FP32 is faster on this machine"
    full = f", and {verdict['full']:.2f} × on full rows" if "texts" in report else ""
    return (
        f"{verdict['texts']:.2f} ×",
        f"the speed of {verdict['best']}, the fastest FP32 here, on {texts}{full}{slower}",
    )


def size(facts: Facts) -> tuple[str, str]:
    """Bytes of the engine beside those of the float graph."""
    engine, floating = facts.sizes
    if not engine:
        return "none yet", lacking(facts) if facts.missing else "the engine is not built"
    return megabytes(engine), f"the {facts.target} engine, instead of {megabytes(floating)} in FP32"


def sentences(facts: Facts) -> Iterator[str]:
    """The compile in a few sentences, from the reason of the first point to the machine."""
    figure, more = coverage(facts)
    yield f"{facts.name} ({facts.task}) for {facts.target}: {figure} {more}."
    if (found := facts.coverage) and found.not_int8:
        reasons = Counter(entry.reason for entry in found.not_int8)
        said = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3))
        yield f"Not in INT8: {said}."
    report = facts.get("accuracy")
    if report is not None:
        yield f"On {report['source']}: {closeness(report)} to FP32{_agreement(report)}."
    if report is not None and report["metric"] is not None:
        said = cost(facts)[1]
        yield f"{said[0].upper()}{said[1:]}."
    if facts.get("benchmark") is not None:
        figure, more = gain(facts)
        yield f"INT8 has {figure} {more}. {machine(facts)}."
    if facts.missing:
        yield f"{lacking(facts)}: see the next steps."


def lacking(facts: Facts) -> str:
    """First line of what this machine lacks."""
    return facts.missing.partition("\n")[0].rstrip(".:")


def _agreement(report: Any) -> str:
    if report.get("agreement") is None:
        return ""
    return (
        f", and the same answer for {report['agreement']:.2%} of {report['agreement_of']} {report['agreement_unit']}s"
    )


def machine(facts: Facts) -> str:
    """Machine and workload of the benchmark."""
    report = facts.get("benchmark")
    if report is None:
        return "Not timed"
    found = report["machine"]
    gpu = found.get("gpu") or "no NVIDIA GPU"
    isa = next((name for name in ("avx512_vnni", "avx_vnni", "avx2") if name in found.get("isa", ())), "")
    threads = f"{report['threads']} thread{'s' if report['threads'] != 1 else ''}"
    return (
        f"Timed on {found['cpu']}, {found['cores']} cores{f' ({isa})' if isa else ''}, {gpu}, {threads}, batch "
        f"{report['batch']} × sequence {report['sequence']}"
    )


def next_steps(facts: Facts) -> Iterator[Step]:
    """Steps that a person would take now, the most useful first."""
    folder, report, timed = shlex.quote(str(facts.folder)), facts.get("accuracy"), facts.get("benchmark")
    # What stands in the way of trusting or using it.
    if not facts.sizes[0]:
        yield _build_it(facts)
    if timed is not None and facts.verdict is not None and not facts.verdict["pays"]:
        yield Step(
            f"Serve FP32 on this machine: {facts.verdict['best']} is faster than INT8. The same calibrated graph "
            "serves an NVIDIA GPU.",
            f"qdq compile {_same(facts)} --target tensorrt",
        )
    if facts.options.get("calibration") is None:
        yield Step(
            "Calibrate on your own text: ranges were chosen on the bundled English sentences.",
            f"qdq compile {_same(facts)} --calibration my_texts.jsonl",
        )
    if report is not None and report["metric"] is None and facts.options.get("eval_data") is None:
        yield Step(
            "Give labelled text, to know what INT8 costs in your metric.",
            f"qdq compile {_same(facts)} --eval-data dev.tsv",
        )
    if report is not None and report["metric"] is not None:
        yield from _about_the_loss(facts, report["metric"], report["samples"])
    # Then on with it.
    if timed is not None and timed["contestants"][INT8]["latency_ms"].get("p99") is None:
        yield Step("Take more samples, when the slowest one percent of requests matters.", f"qdq bench --out {folder}")
    if (facts.folder / facts.target / "model_repository").is_dir():
        yield Step("Serve it: a Triton server that takes text.", f"qdq serve {folder}")
    if facts.sizes[0]:
        yield Step("Use it from Python.", f"import qdq\nengine = qdq.load({str(facts.folder)!r})")


def _build_it(facts: Facts) -> Step:
    """Build an engine that is not here, on a machine that can."""
    script = facts.folder / facts.target / "build_engine.py"
    command = f"cd {shlex.quote(str(script.parent))} && python {script.name}" if script.is_file() else ""
    asked = "\n".join(f"# {line}" for line in facts.missing.splitlines())
    lines = "\n".join(filter(None, (asked, command)))
    return Step(f"Build the engine on a machine that has what {facts.target} needs.", lines)


def _about_the_loss(facts: Facts, metric: Any, samples: int) -> Iterator[Step]:
    low, high = metric.get("drop_interval") or (metric["drop_points"],) * 2
    folder = shlex.quote(str(facts.folder))
    if low > 0 and metric["drop_points"] > WIDE:
        yield Step(
            f"{metric['drop_points']:.2f} points are lost, and that is no chance: see which points cost them, or "
            "search for a placement that loses less.",
            f"qdq sensitivity {folder}\nqdq compile {_same(facts)} --search --max-drop {WIDE}",
        )
    elif high > WIDE:
        yield Step(
            f"Evaluate on more rows before you decide: with {samples}, a loss of up to {high:.2f} points cannot be "
            "ruled out."
        )


def _same(facts: Facts) -> str:
    """Options that name this compile."""
    model = facts.options.get("model")
    named = f"--model {shlex.quote(str(model))} " if model else ""
    return f"{named}--out {shlex.quote(str(facts.folder))}"


def interval_of(metric: Any) -> tuple[float, float] | None:
    """The interval of a metric's loss in points, None without one."""
    found = metric.get("drop_interval")
    return (found[0] + 0.0, found[1] + 0.0) if found else None
