"""The Triton repository says what the engine is, whole or not at all, and every wrong word in it is named."""

from __future__ import annotations

import dataclasses
import errno
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from engines.triton import (
    check_repository,
    write_repository,
)
from engines.triton import model_config as model_config_module
from engines.triton import repository as repository_module
from engines.types import BuiltEngine, TensorInfo
from qdq.base.artifacts import sha256_tree
from qdq.errors import ConfigError, DeployError, Unavailable

from .triton_parts import FEEDS, IDS, INPUTS, LOGITS, MASK, settings, tiny_onnx


def read(folder: Path) -> Any:
    return model_config_module.read_config(folder / "tiny" / "config.pbtxt")


# ---- what is written


@pytest.mark.document_row("000/48")
def test_cpu_repository_reads_back_as_the_engine(engine: BuiltEngine, tmp_path: Path) -> None:
    folder = tmp_path / "model_repository"
    written = write_repository(engine, settings(threads=2, labels=("no", "yes")), [FEEDS], folder)
    check_repository(folder, engine, settings())
    assert [path.relative_to(folder).as_posix() for path in written] == [
        "tiny/1/model.onnx",
        "tiny/README.md",
        "tiny/config.pbtxt",
        "tiny/labels.txt",
        "tiny/warmup/attention_mask.bin",
        "tiny/warmup/input_ids.bin",
    ]
    config = read(folder)
    pb2, _ = model_config_module.schema()
    assert (config.name, config.platform, config.backend) == ("tiny", "onnxruntime_onnx", "onnxruntime")
    assert config.max_batch_size == 40
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [
        ("input_ids", pb2.TYPE_INT64, [-1]),
        ("attention_mask", pb2.TYPE_INT64, [-1]),
    ]
    assert [(o.name, o.data_type, list(o.dims), o.label_filename) for o in config.output] == [
        ("logits", pb2.TYPE_FP32, [2], "labels.txt")
    ]
    assert not config.dynamic_batching.preferred_batch_size  # advised against but for plans of several profiles
    assert not config.dynamic_batching.HasField("default_queue_policy")  # with one Triton's batcher sleeps
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert [(g.kind, g.count) for g in config.instance_group] == [(pb2.ModelInstanceGroup.KIND_CPU, 1)]
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert (folder / "tiny/labels.txt").read_text() == "no\nyes\n"


def test_a_repository_says_what_a_client_has_to_know(engine: BuiltEngine, tmp_path: Path) -> None:
    about = ("logits are raw, one per class", "token_type_ids are zeros where the tokenizer makes none")
    write_repository(engine, settings(about=about, labels=("no", "yes")), [FEEDS], tmp_path / "repo")
    check_repository(tmp_path / "repo", engine, settings())  # comments are none of the schema's business
    config = (tmp_path / "repo/tiny/config.pbtxt").read_text()
    assert config.splitlines()[:2] == [f"# {line}" for line in about]
    readme = (tmp_path / "repo/tiny/README.md").read_text()
    for line in (*about, "| logits | TYPE_FP32 | [batch, 2] |", "up to 40 from requests of equal length", "labels.txt"):
        assert line in readme
    write_repository(engine, settings(backend="openvino"), [FEEDS], tmp_path / "other")
    readme = (tmp_path / "other/tiny/README.md").read_text()
    assert "forms no batches" in readme and "labels.txt" not in readme


def test_plan_repository_uses_the_tensorrt_spellings(plan: BuiltEngine, tmp_path: Path) -> None:
    folder = tmp_path / "model_repository"
    write_repository(plan, settings(backend="tensorrt", instances=2), [FEEDS], folder)
    config = read(folder)
    pb2, _ = model_config_module.schema()
    assert (config.platform, config.backend, config.default_model_filename) == (
        "tensorrt_plan",
        "tensorrt",
        "model.plan",
    )
    assert (folder / "tiny/1/model.plan").read_bytes() == b"a plan"
    assert {i.data_type for i in config.input} == {pb2.TYPE_INT32}
    assert [(o.data_type, list(o.dims)) for o in config.output] == [(pb2.TYPE_FP16, [-1, 384])]
    assert [(g.kind, g.count) for g in config.instance_group] == [(pb2.ModelInstanceGroup.KIND_GPU, 2)]


def test_warmup_files_hold_the_real_sample_as_little_endian_bytes(plan: BuiltEngine, tmp_path: Path) -> None:
    folder = tmp_path / "model_repository"
    feeds = {"input_ids": IDS[np.newaxis], "attention_mask": MASK}  # [1,S] and [S] mean the same
    write_repository(plan, settings(backend="tensorrt"), [feeds], folder)
    assert (folder / "tiny/warmup/input_ids.bin").read_bytes() == IDS.astype("<i4").tobytes()
    assert (folder / "tiny/warmup/attention_mask.bin").read_bytes() == MASK.astype("<i4").tobytes()
    samples = read(folder).model_warmup
    assert [(s.name, s.batch_size) for s in samples] == [("batch_1", 1), ("batch_40", 40)]
    assert {i.input_data_file for s in samples for i in s.inputs.values()} == {"input_ids.bin", "attention_mask.bin"}
    assert {tuple(i.dims) for s in samples for i in s.inputs.values()} == {(6,)}


def test_openvino_backend_takes_the_clients_batch(engine: BuiltEngine, tmp_path: Path) -> None:
    """Triton's openvino backend refuses any batch but max_batch_size, so the file must not promise batching."""
    folder = tmp_path / "model_repository"
    write_repository(
        engine, settings(backend="openvino", threads=2, instances=3, labels=("no", "yes")), [FEEDS], folder
    )
    config = read(folder)
    assert (config.backend, config.platform, config.default_model_filename) == ("openvino", "", "model.onnx")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert config.output[0].label_filename == ""  # Triton would rank classes over the whole request
    assert (folder / "tiny/labels.txt").read_text() == "no\nyes\n"
    assert [list(i.dims) for i in config.input] == [[-1, -1], [-1, -1]]
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "INFERENCE_NUM_THREADS": "6",  # of all streams together
        "NUM_STREAMS": "3",
    }
    assert [(s.batch_size, list(s.inputs["input_ids"].dims)) for s in config.model_warmup] == [
        (1, [1, 6]),
        (1, [40, 6]),
    ]
    assert (folder / "tiny/warmup/batch_40.input_ids.bin").read_bytes() == np.tile(IDS, (40, 1)).tobytes()


def test_openvino_ir_is_served_under_the_names_the_backend_looks_for(tmp_path: Path) -> None:
    for suffix in (".xml", ".bin"):
        (tmp_path / f"encoder{suffix}").write_text(suffix)
    files = (tmp_path / "encoder.bin", tmp_path / "encoder.xml")
    ir = BuiltEngine("openvino", files, INPUTS, (LOGITS,), None, {})
    folder = tmp_path / "model_repository"
    write_repository(ir, settings(backend="openvino"), [FEEDS], folder)
    assert (folder / "tiny/1/model.xml").read_text() == ".xml"
    assert (folder / "tiny/1/model.bin").read_text() == ".bin"
    with pytest.raises(DeployError, match=r"must list exactly one \.onnx file .*encoder\.xml"):
        write_repository(ir, settings(), [FEEDS], folder)


def test_external_data_travels_with_the_model_and_the_copy_runs(engine: BuiltEngine, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    model = tiny_onnx(engine.files[0], external=True)
    folder = tmp_path / "model_repository"
    write_repository(engine, settings(), [FEEDS], folder)
    assert (folder / "tiny/1/model.onnx.data").is_file()
    model.with_name("model.onnx.data").unlink()  # the copy must not need the original
    session = ort.InferenceSession(str(folder / "tiny/1/model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {name: feed[np.newaxis] for name, feed in FEEDS.items()})
    assert logits.shape == (1, 2)
    assert np.isfinite(logits).all()
    with pytest.raises(DeployError, match=r"model\.onnx\.data is missing"):
        write_repository(engine, settings(), [FEEDS], folder)


def test_same_input_gives_the_same_bytes(engine: BuiltEngine, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_repository(
            engine, settings(threads=1, labels=("a", "b")), [dict(reversed(FEEDS.items()))], tmp_path / name
        )
    write_repository(engine, settings(threads=1, labels=("a", "b")), [FEEDS], tmp_path / "b")
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "b")


# ---- what is refused before anything is written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "not a plain folder name"),
        ({"name": "../escape"}, "not a plain folder name"),
        ({"name": ".hidden"}, "not a plain folder name"),
        ({"name": "two\n"}, "not a plain folder name"),
        ({"backend": "onnxruntim"}, "did you mean 'onnxruntime'"),
        ({"max_batch_size": 0}, "max_batch_size is 0; it must be at least 1"),
        ({"instances": 0}, "instances is 0"),
        ({"about": ("two\nlines",)}, "one line, because a comment of config.pbtxt is"),
        ({"threads": 0}, "threads is 0"),
        ({"max_queue_delay_us": -1}, "max_queue_delay_us is -1"),
        ({"queue_size": -1}, "queue_size is -1"),
        ({"queue_timeout_ms": -1}, "queue_timeout_ms is -1"),
        ({"labels": ("a\nb", "c")}, "one non-empty line"),
        ({"labels": ("", "c")}, "one non-empty line"),
        ({"backend": "tensorrt", "threads": 2}, "threads has no meaning"),
    ],
)
def test_settings_triton_would_refuse_are_configuration_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": (TensorInfo("input_ids", "int64", (8, "sequence")), INPUTS[1])}, "fixed batch of 8.*1 to 40"),
        ({"outputs": (TensorInfo("pooled", "float32", (384,)),)}, r"pooled: shape \[384\] has no batch dimension"),
        ({"outputs": (TensorInfo("tokens", "float32", ("sequence", 384)),)}, "tokens: shape .* has no batch dimension"),
        ({"outputs": (TensorInfo("logits", "bfloat16", (None, 2)),)}, "no Triton data type for 'bfloat16'"),
        ({"outputs": (TensorInfo("logits", "float32", (None, 0)),)}, "dimension below 1"),
        ({"target": "tensorrt"}, "'onnxruntime' cannot serve a tensorrt engine; possible: tensorrt"),
        ({"files": ()}, r"must list exactly one \.onnx file"),
        ({"files": (Path("nowhere/model.onnx"),)}, r"nowhere/model\.onnx is missing"),
    ],
)
def test_engine_that_cannot_be_served_is_named(
    engine: BuiltEngine, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DeployError, match=message):
        write_repository(dataclasses.replace(engine, **changes), settings(), [FEEDS], tmp_path / "model_repository")
    assert not (tmp_path / "model_repository").exists()


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"input_ids": IDS}, r"feeds \['input_ids'\] are not the engine's inputs"),
        ({**FEEDS, "attention_mask": np.tile(MASK, (2, 1))}, "'attention_mask' has shape .* expected one sample"),
        ({**FEEDS, "input_ids": IDS[:0]}, "'input_ids' has shape"),
        ({**FEEDS, "input_ids": IDS + 0.5}, "does not fit the engine's int64 input"),
    ],
)
def test_warmup_feeds_must_match_the_inputs(
    engine: BuiltEngine, tmp_path: Path, feeds: dict[str, Any], message: str
) -> None:
    with pytest.raises(DeployError, match=message):
        write_repository(engine, settings(), [feeds], tmp_path / "model_repository")


def test_labels_belong_to_classification_logits_only(engine: BuiltEngine, plan: BuiltEngine, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"3 labels fit no \[batch, 3\] output \(outputs: logits \[batch, 2\]\)"):
        write_repository(engine, settings(labels=("a", "b", "c")), [FEEDS], tmp_path / "model_repository")
    with pytest.raises(DeployError, match="only for classification logits"):
        write_repository(plan, settings(backend="tensorrt", labels=("a", "b")), [FEEDS], tmp_path / "model_repository")


def test_a_repository_of_other_models_is_never_replaced(engine: BuiltEngine, tmp_path: Path) -> None:
    other = tmp_path / "model_repository" / "somebody_elses"
    other.mkdir(parents=True)
    with pytest.raises(DeployError, match="holds 'somebody_elses' beside the model 'tiny'"):
        write_repository(engine, settings(), [FEEDS], tmp_path / "model_repository")
    assert other.is_dir()


# ---- interruptions and missing software


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(OSError(errno.ENOSPC, "No space left on device"), DeployError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_interrupted_write_leaves_the_previous_repository(
    engine: BuiltEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    raised: type[BaseException],
) -> None:
    folder = tmp_path / "out" / "model_repository"
    write_repository(engine, settings(), [FEEDS], folder)
    before = sha256_tree(folder)

    def fail(*_: object) -> NoReturn:
        raise failure

    monkeypatch.setattr(repository_module, "render", fail)  # the last file written
    with pytest.raises(raised):
        write_repository(engine, settings(max_batch_size=41), [FEEDS], folder)
    assert sha256_tree(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model_repository"]


def test_missing_tritonclient_names_the_extra(
    engine: BuiltEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc.model_config_pb2", None)
    with pytest.raises(Unavailable, match=r"pip install '\.\[triton\]'"):
        write_repository(engine, settings(), [FEEDS], tmp_path / "model_repository")
    assert not (tmp_path / "model_repository").exists()


def test_import_needs_neither_tritonclient_nor_onnx() -> None:
    code = "import sys, engines.triton; print(sorted({'onnx', 'tritonclient', 'google.protobuf'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- what reading back finds


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_batch_size", "max_batchsize", r"config\.pbtxt is not a Triton .* has no field named \"max_batchsize\""),
        ("dims: 2\n", "dims: 3\n", r"dims of output 'logits': found \[3\], the engine needs \[2\]"),
        ("  dims: -1\n", "", r"dims of input 'input_ids': found \[\], the engine needs \[-1\]"),
        ("TYPE_INT64", "TYPE_INT32", "data_type of input 'input_ids': found 'TYPE_INT32', .* 'TYPE_INT64'"),
        ("TYPE_INT64", "TYPE_LONG", 'has no value named "?TYPE_LONG'),
        ("data_type: TYPE_FP32", "data_type: 99", "data_type of output 'logits': found 'unknown data type 99'"),
        ('name: "logits"', 'name: "logit"', r"output names: found \['logit'\], the engine needs \['logits'\]"),
        ('name: "tiny"', 'name: "huge"', "name .*: found 'huge', the engine needs 'tiny'"),
        ('backend: "onnxruntime"', 'backend: "onnxruntme"', "did you mean 'onnxruntime'"),
        ("onnxruntime_onnx", "tensorrt_plan", "platform: found 'tensorrt_plan'"),
        ("max_batch_size: 40", "max_batch_size: -1", "max_batch_size is -1"),
        ("KIND_CPU", "KIND_GPU", "needs one instance_group of KIND_CPU"),
        ("model.onnx", "other.onnx", "default_model_filename: found 'other.onnx'"),
        ("batch_size: 40\n  inputs", "batch_size: 41\n  inputs", "warm-up 'batch_40' has batch_size 41"),
        ("dims: 6", "dims: 7", r"attention_mask\.bin: bytes: found 48, the engine needs 56"),
        ("input_ids.bin", "ids.bin", r"needs the data file .*ids\.bin"),
        ('key: "input_ids"', 'key: "ids"', "warm-up 'batch_1' inputs: found"),
        ("labels.txt", "names.txt", "label_filename of 'logits': found 'names.txt'"),
    ],
)
def test_check_names_what_was_changed(engine: BuiltEngine, tmp_path: Path, old: str, new: str, message: str) -> None:
    folder = tmp_path / "model_repository"
    write_repository(engine, settings(labels=("no", "yes")), [FEEDS], folder)
    path = folder / "tiny" / "config.pbtxt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DeployError, match=message):
        check_repository(folder, engine, settings())


def test_check_finds_a_missing_output(engine: BuiltEngine, tmp_path: Path) -> None:
    write_repository(engine, settings(), [FEEDS], tmp_path / "repo")
    second = dataclasses.replace(engine, outputs=(LOGITS, dataclasses.replace(LOGITS, name="probabilities")))
    with pytest.raises(DeployError, match=r"output names: found \['logits'\], .* \['logits', 'probabilities'\]"):
        check_repository(tmp_path / "repo", second, settings())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1/model.onnx", b"another engine", r"1/model\.onnx is not the engine's"),
        ("1/model.onnx", None, r"files: found \[\], the engine needs \['model\.onnx'\]"),
        ("1/stray.onnx", b"", r"files: found \['model\.onnx', 'stray\.onnx'\]"),
        ("warmup/input_ids.bin", None, "which is missing"),
        ("labels.txt", b"no\n", r"1 labels fit no \[batch, 1\] output"),
        ("labels.txt", None, r"labels\.txt is missing"),
        ("config.pbtxt", None, "cannot be read"),
        ("config.pbtxt", b"\xff\xfe", "cannot be read"),
    ],
)
def test_check_names_the_damaged_file(
    engine: BuiltEngine, tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    folder = tmp_path / "model_repository"
    write_repository(engine, settings(labels=("no", "yes")), [FEEDS], folder)
    path = folder / "tiny" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DeployError, match=message):
        check_repository(folder, engine, settings())


def test_check_wants_exactly_one_model(engine: BuiltEngine, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"models: found \[\], the engine needs \['tiny'\]"):
        check_repository(tmp_path / "absent", engine, settings())
