"""Lowering a whole exported model: the files it leaves, their bytes, and what it says when it cannot."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.names import IR_VERSION, OPSET
from export.passes import lower, lowered_step_by_step, pipeline
from export.passes.pipeline import passes_for
from export.to_onnx import save_proto
from export.unoptimized import open_unoptimized, run
from qdq.base.artifacts import sha256_file
from qdq.errors import ConfigError, DeployError, PassError, QdqError

CPU_TARGETS = ["onnxruntime", "openvino"]
TARGETS = [*CPU_TARGETS, "tensorrt"]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def logits(path: Path, feeds: Any) -> Any:
    return run(open_unoptimized(str(path), path.parent), feeds, ["logits"])[0]


@pytest.mark.parametrize("target", TARGETS)
def test_leaves_a_valid_pinned_model_and_its_report(canonical: Path, tmp_path: Path, target: str) -> None:
    report = lower(canonical, target, tmp_path)
    assert names(tmp_path) == ["model.onnx", "passes.json"]
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == IR_VERSION
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert json.loads((tmp_path / "passes.json").read_text()) == report
    assert report["target"] == target
    assert report["canonical_sha256"] == sha256_file(canonical)
    assert [step["pass"] for step in report["passes"]] == [step.name for step in passes_for(target)]
    assert all(step["modified"] == bool(step["changed"]) and step["why"] for step in report["passes"])


@pytest.mark.parametrize("target", CPU_TARGETS)
def test_computes_what_the_canonical_graph_does(tiny: Any, canonical: Path, tmp_path: Path, target: str) -> None:
    """Tolerance none: run node by node, no pass for the CPU changes one bit."""
    lower(canonical, target, tmp_path)
    for shape in ((2, 9), (1, 1), (3, 64)):
        feeds = tiny.feeds(*shape)
        np.testing.assert_array_equal(logits(tmp_path / "model.onnx", feeds), logits(canonical, feeds))


def test_keeps_the_interface_and_recodes_every_activation(canonical: Path, tmp_path: Path) -> None:
    steps = {step["pass"]: step for step in lower(canonical, "onnxruntime", tmp_path)["passes"]}
    before, after = onnx.load(canonical).graph, onnx.load(tmp_path / "model.onnx").graph
    assert list(before.input) == list(after.input)
    assert list(before.output) == list(after.output)
    quantizers = [node.name for node in before.node if node.op_type == "QuantizeLinear"]
    shared = set(steps["share_quantizers"]["changed"])
    rows = {node.name for node in after.node if node.op_type == "QuantizeLinear" and node.name.endswith(".row_0")}
    assert len(rows) == 1  # the query of the last block
    assert sorted(steps["recode_unsigned"]["changed"]) == sorted(set(quantizers) - shared | rows)
    assert {tensor.data_type for tensor in after.initializer if ".zero_point_u8" in tensor.name} == {
        onnx.TensorProto.UINT8
    }


@pytest.mark.parametrize("target", TARGETS)
def test_twice_gives_the_same_bytes(canonical: Path, tmp_path: Path, target: str) -> None:
    for folder in ("first", "second"):
        lower(canonical, target, tmp_path / folder)
    for name in names(tmp_path / "first"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.parametrize("target", CPU_TARGETS)
def test_lowering_a_lowered_graph_changes_nothing(canonical: Path, tmp_path: Path, target: str) -> None:
    lower(canonical, target, tmp_path)
    again = lower(tmp_path / "model.onnx", target, tmp_path / "again")
    assert not any(step["modified"] for step in again["passes"])
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


@pytest.mark.parametrize("target", CPU_TARGETS)
def test_external_data_goes_in_and_out(tiny: Any, canonical: Path, tmp_path: Path, target: str) -> None:
    """Models over 2 GB, with a threshold of 1000 bytes in place of 2 GB."""
    source = tmp_path / "in" / "model.qdq.onnx"
    save_proto(onnx.load(canonical), source, external_data_bytes=1000)
    whole, split, again = (tmp_path / name for name in ("whole", "split", "again"))
    lower(source, target, whole)
    assert names(whole) == ["model.onnx", "passes.json"]
    for folder in (split, again):
        lower(source, target, folder, external_data_bytes=1000)
        assert names(folder) == ["model.onnx", "model.onnx.data", "passes.json"]
    assert all((split / name).read_bytes() == (again / name).read_bytes() for name in names(split))
    onnx.checker.check_model(str(split / "model.onnx"), full_check=True)
    feeds = tiny.feeds(2, 9)
    np.testing.assert_array_equal(logits(whole / "model.onnx", feeds), logits(canonical, feeds))
    np.testing.assert_array_equal(logits(split / "model.onnx", feeds), logits(canonical, feeds))
    lower(source, target, split)
    assert names(split) == ["model.onnx", "passes.json"]  # the data file of before is gone


def test_an_unknown_target_names_the_nearest_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"target: unknown value 'openvin'; did you mean 'openvino'\?"):
        lower(tmp_path / "absent.onnx", "openvin", tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello world", b"\xff" * 50, None], ids=["empty", "text", "junk", "cut"])
def test_a_damaged_file_is_a_pass_error_and_leaves_nothing(
    canonical: Path, tmp_path: Path, content: bytes | None
) -> None:
    source = tmp_path / "in.onnx"
    whole = canonical.read_bytes()
    source.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(PassError, match=r"in.onnx: .*; run the export stage again"):
        lower(source, "openvino", tmp_path / "out")
    with pytest.raises(PassError, match=r"absent.onnx: cannot be read as ONNX"):
        lower(tmp_path / "absent.onnx", "openvino", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_external_data_is_named(canonical: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    save_proto(onnx.load(canonical), source, external_data_bytes=1000)
    (tmp_path / "in.onnx.data").unlink()
    with pytest.raises(PassError, match=r"cannot be read as ONNX .*in\.onnx\.data.*run the export stage again"):
        lower(source, "openvino", tmp_path / "out")


def test_another_opset_is_refused(canonical: Path, tmp_path: Path) -> None:
    model = onnx.load(canonical)
    model.opset_import[0].version = 18
    onnx.save(model, tmp_path / "in.onnx")
    with pytest.raises(PassError, match="expected ONNX opset 20, found 18; run the export stage again"):
        lower(tmp_path / "in.onnx", "openvino", tmp_path / "out")


def test_a_folder_that_cannot_be_made_is_one_clear_error(canonical: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(DeployError, match=r"cannot write .*taken.*--out"):
        lower(canonical, "openvino", tmp_path / "taken" / "openvino")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file size limit")
@pytest.mark.parametrize("external_data_bytes", [1000, 2**30], ids=["external", "inline"])
def test_a_full_disk_leaves_what_was_there(
    canonical: Path, tmp_path: Path, external_data_bytes: int, full_disk: Any
) -> None:
    lower(canonical, "openvino", tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    refusal = r"cannot write .*free space or choose a writable folder"
    with full_disk(20_000), pytest.raises(DeployError, match=refusal):
        lower(canonical, "onnxruntime", tmp_path, external_data_bytes)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def fails_with(error: Exception) -> Any:
    """A pass that raises it."""

    def run_pass(graph: Any) -> Any:
        raise error

    return run_pass


@pytest.mark.parametrize("entry", [lower, lowered_step_by_step])
def test_a_failing_pass_names_itself_its_graph_and_the_passes_before(
    canonical: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: Any
) -> None:
    cause = KeyError("embeddings")
    monkeypatch.setattr(pipeline, "CODES", replace(pipeline.CODES, run=fails_with(cause)))
    with pytest.raises(PassError) as caught:
        entry(canonical, "onnxruntime", tmp_path)
    assert str(caught.value) == (
        f"{canonical}: pass gather_codes failed after share_factors, share_quantizers, needed_rows "
        "(KeyError: 'embeddings'); this is an error of ours, please report it"
    )
    assert caught.value.__cause__ is cause


def test_an_error_of_ours_in_the_first_pass(canonical: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "FACTORS", replace(pipeline.FACTORS, run=fails_with(ValueError("odd"))))
    with pytest.raises(PassError, match=r"pass share_factors failed before any other \(ValueError: odd\)"):
        lower(canonical, "tensorrt", tmp_path)


@pytest.mark.parametrize("kind", [PassError, ConfigError])
def test_what_a_pass_refuses_keeps_its_type_and_gains_its_name(
    canonical: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[QdqError]
) -> None:
    monkeypatch.setattr(pipeline, "SHARE", replace(pipeline.SHARE, run=fails_with(kind("q: export it again"))))
    with pytest.raises(kind, match=r"^pass share_quantizers: q: export it again$") as caught:
        lower(canonical, "openvino", tmp_path)
    assert type(caught.value) is kind


def test_memory_that_runs_out_in_a_pass_is_said_as_such(
    canonical: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "SHARE", replace(pipeline.SHARE, run=fails_with(MemoryError())))
    with pytest.raises(MemoryError):
        lower(canonical, "openvino", tmp_path)
