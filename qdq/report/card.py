"""The model card: what a person uploads with the engine; the Hub's YAML, then the compile in words and two tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qdq.base.versions import __version__
from qdq.report.facts import INT8, Facts
from qdq.report.html import fixed, megabytes, number
from qdq.report.words import closeness, cost, coverage, gain, lacking, machine

BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"  # what is compiled when no model is named
# Our task -> the Hub's pipeline tag, where it has one
TAGS = {
    name: name
    for name in ("text-classification", "token-classification", "question-answering", "fill-mask", "feature-extraction")
}
PIPELINE = 'transformers.pipeline("{}", model=engine, tokenizer=engine.tokenizer)("{}")'
CALLS = {
    "text-classification": PIPELINE.format("text-classification", "a text"),
    "token-classification": PIPELINE.format("ner", "a text"),
    "fill-mask": PIPELINE.format("fill-mask", "a [MASK] text"),
    "question-answering": 'engine.answer("a question", "its context")',
    "feature-extraction": 'engine.encode(["a text", "another one"])',
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def render_card(facts: Facts) -> str:
    """The card of one compile as Markdown, from the work directory's files alone; what is not there is said."""
    import yaml

    head = yaml.safe_dump(metadata(facts), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n\n".join(_parts(facts)) + "\n"


def metadata(facts: Facts) -> dict[str, Any]:
    """The YAML at the top, as huggingface_hub's ModelCardData reads it."""
    found: dict[str, Any] = {"library_name": "qdq-compiler", "tags": ["int8", "quantized", facts.target, "qdq"]}
    if base := base_model(facts):
        found |= {"base_model": base, "base_model_relation": "quantized"}
    if tag := TAGS.get(facts.task):
        found["pipeline_tag"] = tag
    if named := list(dict.fromkeys(filter(None, (_dataset(facts, "calibration"), _dataset(facts, "eval_data"))))):
        found["datasets"] = named
    report = facts.get("accuracy")
    if report is not None and report["metrics"]:
        found["metrics"] = sorted(report["metrics"])
        found["model-index"] = [{"name": facts.name, "results": [_result(facts, report)]}]
    return found


def base_model(facts: Facts) -> str:
    """The hub id it was compiled from; "" of a local folder, which names none."""
    model = facts.options.get("model")
    if model is None:
        return BUNDLED
    return str(model) if HUB_ID.fullmatch(str(model)) and not Path(str(model)).exists() else ""


def _dataset(facts: Facts, option: str) -> str:
    """Hub id of a data set; "" of a local file."""
    value = str(facts.options.get(option) or "")
    return value.removeprefix("datasets:").partition(":")[0].split(" ")[0] if value.startswith("datasets:") else ""


def _result(facts: Facts, report: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of INT8 as the Hub's model index has them, with FP32's beside."""
    place = str(facts.options.get("eval_data") or facts.options.get("calibration") or "bundled text")
    name = _dataset(facts, "eval_data") or Path(place).name
    metrics = []
    for metric, entry in sorted(report["metrics"].items()):
        metrics.append({"type": metric, "value": entry["int8"], "name": f"{metric} (INT8)"})
        metrics.append({"type": metric, "value": entry["fp32"], "name": f"{metric} (FP32)"})
    return {
        "task": {"type": TAGS.get(facts.task, facts.task)},
        "dataset": {"type": name, "name": name},
        "metrics": metrics,
    }


def _parts(facts: Facts) -> Iterator[str]:
    # Where it comes from, then the figures, then how to run it.
    base = base_model(facts)
    origin = (
        f"[{base}](https://huggingface.co/{base})" if base else f"the local checkpoint `{facts.options.get('model')}`"
    )
    yield f"# {facts.name}, INT8 for {facts.target}"
    yield (
        f"{origin}, quantized to INT8 and compiled for {facts.target} by qdq {__version__}. Task: {facts.task}. "
        "Licence and intended use are those of the base model."
    )
    yield "## In short"
    yield "\n".join(
        f"- **{title}:** {figure}, {more}."
        for title, (figure, more) in (("in INT8", coverage(facts)), ("costs", cost(facts)), ("brings", gain(facts)))
    )
    yield "## Accuracy"
    yield from _accuracy(facts)
    yield "## Speed"
    yield from _speed(facts)
    yield "## Quantization"
    yield "\n".join(f"- {line}" for line in scheme(facts))
    yield "## How to run"
    yield from _usage(facts)


def _accuracy(facts: Facts) -> Iterator[str]:
    report = facts.get("accuracy")
    if report is None:
        yield f"Not measured: the engine was not run on the machine that compiled it. {lacking(facts)}".strip()
        return
    if not report["metrics"]:
        yield f"No task metric: {report['metric_reason']}. {closeness(report)} to FP32 over {report['samples']} texts."
        return
    rows = ["| metric | FP32 | INT8 | points lost | 95% interval |", "|---|--:|--:|--:|--:|"]
    for name, entry in sorted(report["metrics"].items()):
        low_high = entry.get("drop_interval")
        interval = f"{low_high[0] + 0.0:.2f} to {low_high[1] + 0.0:.2f}" if low_high else "–"
        lost = f"{entry['drop_points'] + 0.0:.2f}"
        rows.append(f"| {name} | {entry['fp32']:.4f} | {entry['int8']:.4f} | {lost} | {interval} |")
    yield "\n".join(rows)
    yield f"Over {report['samples']} samples; {closeness(report)} of the outputs to FP32's."


def _speed(facts: Facts) -> Iterator[str]:
    report = facts.get("benchmark")
    if report is None:
        yield f"Not timed: the engine was not run on the machine that compiled it. {lacking(facts)}".strip()
        return
    rows = ["| contestant | ms, full rows | texts/s | ms, texts as they are |", "|---|--:|--:|--:|"]
    texts = report.get("texts", {}).get("contestants", {})
    for name, entry in sorted(report["contestants"].items(), key=lambda item: item[1]["latency_ms"]["p50"]):
        forms = [texts[form]["latency_ms"]["p50"] for form in (name, f"{name}-cropped") if form in texts]
        shown = f"**{name}**" if name == INT8 else name
        best = number(min(forms), 4) if forms else "–"
        rows.append(
            f"| {shown} | {number(entry['latency_ms']['p50'], 4)} | {fixed(entry['sequences_per_s'], 1)} | {best} |"
        )
    yield "\n".join(rows)
    yield f"{machine(facts)}. Medians; texts in the better of padded and cropped batches."


def scheme(facts: Facts) -> Iterator[str]:
    """The quantization scheme, a line each."""
    calibration, named = facts.get("calibration") or {}, facts.options.get("placement")
    yield "INT8 with zero-point 0; a scale per activation tensor and per output channel of a weight"
    placed = sum(1 for point in facts.points if point["placed"])
    yield f"placement {named or 'of the checkpoint'}: {placed} of {len(facts.points)} candidate points quantized"
    if calibration.get("tokens"):
        texts = f"{calibration['samples']} texts ({calibration['tokens']} tokens)"
        yield f"ranges by {calibration['algorithm']} over {texts}"
    treated = [name.replace("_", " ") for name, rows in calibration.get("treatments", {}).items() if rows]
    if treated:
        yield f"treatments: {', '.join(treated)}"
    engine, floating = facts.sizes
    if engine:
        yield f"engine {megabytes(engine)}, FP32 graph {megabytes(floating)}"
    else:
        yield f"no engine was built: {lacking(facts) or 'the build stage has not run'}"


def _usage(facts: Facts) -> Iterator[str]:
    call = CALLS.get(facts.task, 'engine(engine.tokenizer("a text", return_tensors="np"))')
    imports = "import qdq\nimport transformers\n" if "transformers" in call else "import qdq\n"
    yield f'```python\n{imports}\nengine = qdq.load("path/of/this/folder")\n{call}\n```'
    yield "As a Triton server that takes text: `qdq serve path/of/this/folder`. The whole account is `report.html`."
