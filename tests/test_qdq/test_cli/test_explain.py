"""`qdq explain`: what it says of a layer is what the work directory's files say."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.tensorrt_rtx import missing
from qdq.errors import ConfigError
from qdq.pipeline.folders import newest_run

Qdq = Callable[..., Any]
QUERY = "bert.encoder.layer.0.attention.self.query"


def explained(qdq: Qdq, *words: str) -> list[dict[str, Any]]:
    ran = qdq("explain", *words, "--out", "work", "--json")
    assert ran.code == 0, ran.err
    found: list[dict[str, Any]] = json.loads(ran.out)["owners"]
    return found


def test_a_linear_is_explained_by_its_points_and_treatments(qdq: Qdq, workplace: Path) -> None:
    (owner,) = explained(qdq, "self.query")
    assert (owner["name"], owner["layer"]) == (QUERY, 0)
    calibration = json.loads(Path("work/calibration.json").read_text())
    points = {point["name"].rpartition(".")[2]: point for point in owner["points"]}
    assert points["input_quantizer"]["amax"] == calibration["activations"][f"{QUERY}.input_quantizer"]["amax"]
    assert points["input_quantizer"]["scale"] == pytest.approx(points["input_quantizer"]["amax"] / 127)
    assert points["weight_quantizer"]["weight"] == calibration["weights"][f"{QUERY}.weight_quantizer"]
    assert all(point["int8"] for point in points.values())
    assert {entry["treatment"] for entry in owner["treatments"]} >= {"rounding", "bias_correction"}
    # A neighbour's treatments are not its own.
    (around,) = [owner for owner in explained(qdq, "attention.self") if owner["name"].endswith("self")]
    assert "rounding" not in {entry["treatment"] for entry in around["treatments"]}


def test_a_point_that_is_float_has_its_reason(qdq: Qdq, workplace: Path) -> None:
    ran = qdq("explain", "classifier.input_quantizer", "--out", "work")
    placement = json.loads(Path("work/placement.json").read_text())
    reasons = {point["name"]: point["reason"] for point in placement["points"]}
    text = " ".join(ran.out.split())
    assert f"linear input float {reasons['classifier.input_quantizer']}" in text
    assert max(map(len, ran.out.splitlines())) <= 80


def test_targets_say_what_they_make_of_it(qdq: Qdq, workplace: Path, small: tuple[str, ...]) -> None:
    assert qdq("lower", "--out", "work", "--target", "tensorrt").code == 0
    (query, *_) = explained(qdq, "self.query")
    assert query["targets"]["tensorrt"]["predicted"] == ["int8 gemm, int8, with bias and quantize"]
    assert "weight_ratios" in query["targets"]["tensorrt"]["changed_by"]
    assert query["targets"].keys() == {"openvino", "onnxruntime", "tensorrt"}


@pytest.mark.skipif(missing() is not None, reason=missing() or "")
def test_kernels_are_those_of_the_compiler(qdq: Qdq, workplace: Path) -> None:
    assert qdq("lower", "--out", "work", "--target", "tensorrt").code == 0
    (query, *_) = explained(qdq, "self.query", "--compile")
    assert any("int8" in kernel and "->" in kernel for kernel in query["targets"]["tensorrt"]["kernels"])


def test_names_of_a_graph_are_known_and_the_engine_has_the_last_word(qdq: Qdq, workplace: Path) -> None:
    attention = "bert.encoder.layer.0.attention.self"
    (owner,) = explained(qdq, f"{attention}.MatMul_1")
    assert owner["name"] == attention
    assert [point["kind"] for point in owner["points"]] == ["matmul a", "matmul v"]
    build = json.loads(Path("work/openvino/build.json").read_text())["int8"]
    floats = {item["name"]: item["reason"] for item in build["not_int8"]}
    assert owner["targets"]["openvino"]["engine"] == [f"MatMul_1 runs in float: {floats[f'{attention}.MatMul_1']}"]
    # The first product has its points in INT8; whether it runs so is the engine's to say
    (owner,) = explained(qdq, f"{attention}.MatMul")
    assert all(point["int8"] for point in owner["points"])
    (said,) = owner["targets"]["onnxruntime"]["engine"]
    assert said.startswith("MatMul runs in float: ")
    (query,) = explained(qdq, f"{QUERY}.Gemm")
    assert query["name"] == QUERY and query["targets"]["openvino"]["engine"] == [
        "runs in INT8, as the engine reports it"
    ]
    (head,) = explained(qdq, "classifier.Gemm")
    assert head["targets"]["openvino"]["engine"] == [f"Gemm runs in float: {floats['classifier.Gemm']}"]
    assert [owner["name"] for owner in explained(qdq, "MatMul_1")] == [attention]


@pytest.mark.parametrize(("kind", "second"), [("relative_key", "MatMul_2"), ("relative_key_query", "MatMul_3")])
def test_products_of_relative_positions_are_no_products_of_the_softmax(
    qdq: Qdq, workplace: Path, kind: str, second: str
) -> None:
    config = Path("work/checkpoint/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"position_embedding_type": kind}))
    (owner,) = explained(qdq, f"bert.encoder.layer.0.attention.self.{second}")
    assert [point["kind"] for point in owner["points"]] == ["matmul a", "matmul v"]
    owner, *_ = explained(qdq, "bert.encoder.layer.0.attention.self.MatMul_1")
    assert len(owner["points"]) == 4, "the whole block, as no point is on its operands"


def test_nothing_outside_the_layers_is_said_to_run_in_int8(qdq: Qdq, workplace: Path) -> None:
    placement, build = (json.loads(Path(f"work/{name}.json").read_text()) for name in ("placement", "openvino/build"))
    for point in placement["points"]:
        point["placed"] |= point["name"].startswith("classifier")
    build["int8"]["not_int8"] = []
    Path("work/placement.json").write_text(json.dumps(placement))
    Path("work/openvino/build.json").write_text(json.dumps(build))
    (head,) = explained(qdq, "classifier")
    assert head["targets"]["openvino"]["engine"] == []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("encoder.layers.0", "'encoder.layer.0'"),
        ("attention.self.qeury", "'attention.self.query'"),
        ("layer0", "'layer.0'"),
        ("something", "'bert.encoder.layer.0' or 'bert.embeddings.word_embeddings'"),
    ],
)
def test_a_name_that_is_none_gets_one_that_is(qdq: Qdq, workplace: Path, typed: str, meant: str) -> None:
    assert f"nothing is called '{typed}'; did you mean {meant}" in qdq("explain", typed, "--out", "work").err


def test_what_sensitivity_measured_is_shown(qdq: Qdq, workplace: Path) -> None:
    row = {"name": f"{QUERY}.input_quantizer", "damage": 0.25, "gain": 0.125, "metric_damage_points": 1.5}
    Path("work/sensitivity").mkdir()
    Path("work/sensitivity/sensitivity.json").write_text(json.dumps({"points": [row]}))
    out = " ".join(qdq("explain", f"{QUERY}.input_quantizer", "--out", "work").out.split())
    assert "alone it moves the answers by 0.25, without it 0.12 is gained" in out


def test_one_message_for_a_name_or_folder_that_is_not_there(qdq: Qdq, workplace: Path) -> None:
    ran = qdq("explain", "self.qury", "--out", "work")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "nothing is called 'self.qury'; did you mean 'self.query'" in ran.err
    assert qdq("explain", "layer.00", "--out", "work").code == 2
    ran = qdq("explain", "query", "--out", "elsewhere")
    assert (ran.code, "elsewhere: no placement.json; give the work directory" in ran.err) == (2, True)


def test_the_newest_run_is_meant_when_none_is_named(qdq: Qdq, workplace: Path) -> None:
    with pytest.raises(ConfigError, match=r"no work directory below .*/build; name one"):
        newest_run()
    Path("build").mkdir()
    Path("work").rename("build/tiny-bert")
    assert newest_run() == Path("build/tiny-bert")
    assert qdq("explain", "query").out.startswith("work directory  build/tiny-bert\n")
    Path("build/other").mkdir()
    shutil.copy("build/tiny-bert/manifest.json", "build/other")
    os.utime("build/other/manifest.json", (1, 1))
    assert newest_run() == Path("build/tiny-bert")


@pytest.mark.parametrize("command", ["check", "estimate"])
def test_a_work_directory_stands_for_its_graph(qdq: Qdq, workplace: Path, command: str) -> None:
    if command == "estimate":
        ran = qdq(command, "work")
        assert ran.code == 2
        assert "work: has no tensorrt/model.onnx" in ran.err
        assert "qdq lower --target tensorrt" in ran.err
    assert qdq("lower", "--out", "work", "--target", "tensorrt").code == 0
    by_folder, by_file = qdq(command, "work"), qdq(command, "work/tensorrt/model.onnx")
    assert by_folder.code == by_file.code == 0
    assert by_folder.out == by_file.out


def test_profile_takes_the_engines_of_a_work_directory(qdq: Qdq, workplace: Path) -> None:
    ran = qdq("profile", "work", "--batch", "2", "--sequence", "16", "--rounds", "2")
    assert ran.code == 0, ran.err
    assert "openvino" in ran.out and "onnxruntime" in ran.out
