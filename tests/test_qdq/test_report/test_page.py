"""The report: its numbers are the JSON files', texts stay text, it loads nothing, and every stage may be missing."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from qdq.pipeline.stages.report import command_of, facts_of
from qdq.placing.units import layer_of
from qdq.report.comparison import render_comparison
from qdq.report.html import fixed, megabytes, number, text
from qdq.report.page import render
from qdq.report.sections.ranges import clipped_words

ATTACK = "</pre><script>alert(1)</script><img src=x onerror=alert(2)> \u202e & \x07"
SEARCH = {
    "best": 1,
    "by": "metric",
    "limit": 0.5,
    "curve": [
        {"dropped": 0, "cost": 0.0, "divergence": 0.1, "drop_points": 2.0, "within": False, "measured": 0.0},
        {"dropped": 1, "cost": 0.3, "divergence": 0.05, "drop_points": 0.25, "within": True, "measured": None},
    ],
}


class Reader(HTMLParser):
    """Visible text, tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.said = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.said += f" {data} "


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(params=["openvino", "onnxruntime"])
def page(request: pytest.FixtureRequest, compiled: Path) -> tuple[Path, Reader]:
    """The target's folder, and the page of its compile."""
    return compiled / "work" / request.param, Reader(render(facts_of(compiled / "work", request.param)))


def test_a_compile_writes_its_page(compiled: Path) -> None:
    written = (compiled / "work" / "report.html").read_text(encoding="utf-8")
    assert "<title>tiny-bert: onnxruntime</title>" in written
    manifest = read(compiled / "work", "manifest")
    assert {"report.html", "README.md"} <= manifest["stages"]["report"]["outputs"].keys()


def test_every_number_is_the_files(page: tuple[Path, Reader]) -> None:
    folder, found = page
    build, accuracy, benchmark = (read(folder, name) for name in ("build", "accuracy", "benchmark"))
    expected = ["{} of {}".format(*build["int8"]["encoder_linear"])]
    metric = accuracy["metric"]
    expected += [f"{metric['fp32']:.4f}", f"{metric['int8']:.4f}", fixed(accuracy["cosine_mean"], 5)]
    expected += [f"{accuracy['agreement']:.2%}", number(accuracy["max_abs_error"])]
    for workload in (benchmark, benchmark["texts"]):
        for entry in workload["contestants"].values():
            said = f"{number(entry['latency_ms']['p50'], 4)} ms"
            expected += [said, f"{fixed(entry['sequences_per_s'], 1)} texts/s, {entry['samples']} samples"]
    files = {"openvino": ("model.xml", "model.bin"), "onnxruntime": ("engine.onnx",)}[folder.name]
    expected.append(megabytes(sum((folder / name).stat().st_size for name in files)))
    expected += [f"{point['amax']:.4g}" for point in read(folder.parent, "calibration")["activations"].values()]
    missing = [value for value in expected if value not in found.said]
    assert not missing


def test_every_point_has_a_cell_with_its_state_and_reason(page: tuple[Path, Reader]) -> None:
    folder, found = page
    titles = [value for name, value in found.attributes if name == "title"]
    for point in read(folder.parent, "placement")["points"]:
        state = "INT8" if point["placed"] else "floating point"
        if ".layer." in point["name"]:
            assert any(
                value and value.startswith(f"{point['name']}\n{state}: {point['reason']}") for value in titles
            ), point["name"]
        else:
            assert point["name"] in found.said


def test_reasons_of_float_points_are_read_without_a_mouse(page: tuple[Path, Reader]) -> None:
    folder, found = page
    points = read(folder.parent, "placement")["points"]
    said = " ".join(found.said.split())
    floats = [point for point in points if not point["placed"] and layer_of(point["name"]) is not None]
    assert floats
    for point in floats:
        starred = re.sub(r"\.\d+\.", ".*.", point["name"])  # where several layers have it
        assert " ".join(point["reason"].split()) in said and (starred in said or point["name"] in said)


def test_every_point_with_a_range_has_its_distribution(page: tuple[Path, Reader]) -> None:
    folder, found = page
    seen = read(folder.parent, "histograms")
    assert seen["points"].keys() == read(folder.parent, "calibration")["activations"].keys()
    assert found.tags.count("figure") == len(seen["points"])
    for point in seen["points"].values():
        assert point["zeros"] >= 0 and point["counts"][0] and point["counts"][-1]
        last = point["first"] + len(point["counts"])
        assert seen["edges"][last - 1] <= point["largest"] * 1.001 and point["largest"] <= seen["edges"][last] * 1.001


def test_the_page_is_one_file_that_loads_and_runs_nothing(page: tuple[Path, Reader]) -> None:
    _, found = page
    assert not {"script", "iframe", "object", "embed", "form", "base"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    links = [value for name, value in found.attributes if name in ("href", "src", "action", "data", "srcset")]
    assert all(link and link.startswith(("#", "data:")) for link in links)
    assert not found.open[:-2] or found.open == []
    anchors = {value for name, value in found.attributes if name == "id"}
    assert {str(link)[1:] for link in links if str(link).startswith("#")} <= anchors


def test_texts_that_try_to_break_out_stay_text(workplace: Path) -> None:
    folder = workplace / "work" / "openvino"
    found = {"count": 1, "of": 2, "moved": [{"text": ATTACK, "cosine": 0.5}]}
    found["texts"] = [{"text": ATTACK, "pair": ATTACK, "label": ATTACK, "fp32": ATTACK, "int8": ATTACK}]
    (folder / "disagreements.json").write_text(json.dumps(found), encoding="utf-8")
    placement = read(folder.parent, "placement")
    placement["points"][5]["reason"] = ATTACK
    (folder.parent / "placement.json").write_text(json.dumps(placement), encoding="utf-8")
    page = render(facts_of(folder.parent, "openvino"))
    reader = Reader(page)
    assert "script" not in reader.tags and "img" not in reader.tags
    assert reader.said.count("<script>alert(1)</script>") == 7
    assert "\u202e" not in page and "\x07" not in page  # no text may turn its neighbours around


@pytest.mark.parametrize(
    "gone",
    [
        "histograms",
        "placement",
        "calibration",
        "onnxruntime/accuracy",
        "onnxruntime/benchmark",
        "onnxruntime/build",
        "onnxruntime/disagreements",
        "*",
    ],
)
def test_what_was_not_measured_is_said(workplace: Path, gone: str) -> None:
    for path in list((workplace / "work").glob(f"{gone}.json")) + list((workplace / "work").glob(f"*/{gone}.json")):
        if path.name != "manifest.json":
            path.unlink()
    found = Reader(render(facts_of(workplace / "work", "onnxruntime", "a GPU is lacking")))
    words = {
        "onnxruntime/accuracy": "Not measured",
        "onnxruntime/benchmark": "Not timed",
        "onnxruntime/build": "not known",
        "histograms": "No distributions were kept",
        "*": "Not timed",
    }
    assert words.get(gone, "tiny-bert") in found.said and "a GPU is lacking" in found.said


def test_nothing_is_said_to_be_int8_that_no_engine_has_confirmed(workplace: Path) -> None:
    (workplace / "work" / "onnxruntime" / "build.json").unlink()
    said = render(facts_of(workplace / "work", "onnxruntime"))
    assert "runs every multiplication" not in said
    assert "No engine was built here" in said


def test_a_clip_inside_a_bin_is_no_promise_that_nothing_was_clipped() -> None:
    seen = {"first": 0, "counts": [5, 5], "zeros": 0, "largest": 1.9}
    assert clipped_words(2.0, seen, [0.0, 1.0, 2.0]) == "nothing clipped"
    assert clipped_words(1.5, seen, [0.0, 1.0, 2.0]) == "less than 50.000% beyond amax"
    assert clipped_words(1.0, seen, [0.0, 1.0, 2.0]) == "50.000% beyond amax"


def test_a_search_and_a_sensitivity_study_are_drawn_in_the_readers_units(workplace: Path) -> None:
    work = workplace / "work"
    (work / "search.json").write_text(json.dumps(SEARCH), encoding="utf-8")
    entry = {
        "name": "point <b>",
        "damage": 0.5,
        "gain": 0.1,
        "metric_damage_points": 1.25,
        "kind": "group",
        "points": 2,
    }
    whole = {"divergence": 0.6, "metric": 0.75}
    study = {
        "samples": 9,
        "source": "rows",
        "divergence": "kl",
        "points": [entry],
        "groups": [entry],
        "everything": whole,
        "floating": {"metric": 0.8},
    }
    (work / "sensitivity.json").write_text(json.dumps(study), encoding="utf-8")
    page = render(facts_of(work, "onnxruntime"))
    found = Reader(page)
    timed = read(work / "onnxruntime", "benchmark")["contestants"]
    fastest = min(entry["latency_ms"]["p50"] for name, entry in timed.items() if name.endswith("-fp32"))
    chosen = 100 * timed["int8"]["latency_ms"]["p50"] / fastest
    assert f"{chosen:.1f}" in found.said  # the chosen placement has the benchmark's own time
    assert "1 units float" in page and "1.25 points lost" in found.said and "point &lt;b&gt;" in page


def test_a_tensorrt_graph_has_kernels_and_an_estimate(workplace: Path) -> None:
    layers = [{"kernels": 9, "megabytes": 111.5}, {"kernels": 10, "megabytes": 122.25}]
    plain = [{"kernels": 12, "megabytes": 140.5}, {"kernels": 12, "megabytes": 141.0}]
    proof = {
        "by": "TensorRT for RTX 1.7",
        "compute_capability": 75,
        "note": "compiled, not run",
        "shape": [2, 32],
        "linears": [6, 6],
        "attentions": [0, 1],
        "not_int8": [{"name": "a.0.Softmax", "reason": "not fused"}],
        "int8": {"kernels": 19, "megabytes": 233.75, "layers": layers},
        "float": {"type": "fp16", "kernels": 24, "megabytes": 281.5, "layers": plain},
    }
    shutil.copytree("work/onnxruntime", "work/tensorrt")
    build = {"target": "tensorrt", "engine_files": [], "int8": None, "compiled": proof, "settings": {}}
    Path("work/tensorrt/build.json").write_text(json.dumps(build), encoding="utf-8")
    found = Reader(render(facts_of(Path("work"), "tensorrt")))
    for said in ("111.5 MB, 9 kernels", "141.0 MB, 12 kernels", "6 of 6", "0 of 1 attentions", "not fused"):
        assert said in found.said


def test_a_page_of_twelve_layers_is_far_below_three_megabytes(workplace: Path) -> None:
    """BERT-base's has 243 points: those of the tiny model's one layer stand for every layer here."""
    work, depth = workplace / "work", 12
    names = [point["name"] for point in read(work, "placement")["points"]]
    assert max(layer for name in names if (layer := layer_of(name)) is not None) == 0
    for name in ("placement", "calibration", "histograms"):
        said = read(work, name)
        if name == "placement":
            said["points"] = [
                dict(point, name=other) for point in said["points"] for other in copies(point["name"], depth)
            ]
        for key in {"activations", "weights", "points"} & (said.keys() if name != "placement" else set()):
            said[key] = {other: value for point, value in said[key].items() for other in copies(point, depth)}
        (work / f"{name}.json").write_text(json.dumps(said), encoding="utf-8")
    page = render(facts_of(work, "openvino"))
    assert Reader(page).tags.count("figure") == len(read(work, "histograms")["points"]) >= 8 * depth
    assert len(page.encode()) < 1_000_000


def copies(name: str, depth: int) -> list[str]:
    """A point's name in every layer."""
    return [name.replace(".layer.0.", f".layer.{layer}.") for layer in range(depth if ".layer.0." in name else 1)]


def test_two_compiles_stand_side_by_side(compiled: Path, workplace: Path, qdq: Callable[..., Any]) -> None:
    ran = qdq("report", "work/openvino", "work/onnxruntime", "--out", "both.html")
    assert (ran.code, ran.out) == (0, "both.html\n"), ran.err
    found = Reader(Path("both.html").read_text(encoding="utf-8"))
    for target in ("openvino", "onnxruntime"):
        timed = read(workplace / "work" / target, "benchmark")["contestants"]["int8"]["latency_ms"]["p50"]
        assert f"{number(timed, 4)} ms" in found.said
    assert "in another state" in found.said and "script" not in found.tags
    one = facts_of(compiled / "work", "openvino")
    assert "Options and versions are the same" in render_comparison(one, one)


def test_the_command_writes_page_and_card_of_an_older_directory(workplace: Path, qdq: Callable[..., Any]) -> None:
    for name in ("report.html", "README.md"):
        (workplace / "work" / name).unlink()
    ran = qdq("report", "work")
    assert (ran.code, ran.out.split()) == (0, ["work/report.html", "work/README.md"]), ran.err
    assert qdq("report", "work", "--out", "page.html").out == "page.html\n" and Path("page.html").is_file()
    assert qdq("report", "tiny-bert").code == 1
    assert qdq("report", "work", "work", "work").code == 2


def test_the_command_to_repeat_has_what_was_not_default(compiled: Path) -> None:
    options = read(compiled / "work", "manifest")["options"]
    words = command_of(options, Path("work"))
    assert words[:4] == ("qdq", "compile", "--model", "tiny-bert") and words[-2:] == ("--out", "work")
    assert ("--target", "onnxruntime") in itertools.pairwise(words)
    assert "--samples" in words and "--max-drop" not in words
    assert "--no-smoothing" in command_of({**options, "smoothing": False}, Path("w"))


def test_numbers_are_readable() -> None:
    shown = [number(value) for value in (None, 0, 12345.6, 0.00001234, 1.5, -0.25)]
    assert shown == ["–", "0", "12,346", "1.23e-05", "1.5", "-0.25"]
    assert text("<a href='x'>") == "&lt;a href=&#x27;x&#x27;&gt;"
    assert re.search("␇", text("\x07"))
