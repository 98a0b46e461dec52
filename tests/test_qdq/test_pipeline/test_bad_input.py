"""Bad input ends in one clear message and the right exit code, never a traceback, and leaves nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

Qdq = Callable[..., Any]
CheckpointFactory = Callable[..., Path]


@pytest.fixture
def refused(workplace: Path, qdq: Qdq, small: tuple[str, ...]) -> Callable[..., str]:
    """`refused(code, *arguments)`: compile fails so, says one thing, and writes nothing; returns the message."""

    def run(code: int, *arguments: str | Path) -> str:
        given = {"--model": "tiny-bert", "--calibration": "text.jsonl", "--target": "openvino", "--out": "fresh/work"}
        pairs = zip(arguments[::2], arguments[1::2], strict=True)
        given |= {str(name): str(value) for name, value in pairs}
        before = sorted(workplace.rglob("*"))
        ran = qdq("compile", *small, *(word for pair in given.items() for word in pair))
        assert (ran.code, ran.out) == (code, ""), ran.err
        messages = [line for line in ran.err.splitlines() if line.startswith("qdq: ")]
        assert messages == ran.err.splitlines()[-1:], ran.err
        assert "Traceback" not in ran.err
        assert "internal error" not in ran.err
        assert sorted(workplace.rglob("*")) == before
        return messages[0].removeprefix("qdq: ")

    return run


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# The model


def test_unknown_model(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    started = time.perf_counter()
    message = refused(1, "--model", "nobody/no-such-model")
    assert message.startswith("model 'nobody/no-such-model': no such folder here")
    assert time.perf_counter() - started < 5


def test_a_model_name_with_shell_characters(refused: Any) -> None:
    message = refused(1, "--model", "x; touch pwned; $(touch pwned) `touch pwned`")
    assert "not a hub id such as org/name" in message


def test_a_folder_that_is_no_checkpoint(refused: Any) -> None:
    Path("folder").mkdir()
    assert "folder: is not a checkpoint folder, it has no config.json" in refused(1, "--model", "folder")
    assert "text.jsonl: is a file" in refused(1, "--model", "text.jsonl")
    Path("folder/config.json").write_text("{}")
    assert "cannot tell the task from its architectures (none); give --task" in refused(1, "--model", "folder")


def test_truncated_safetensors(refused: Any) -> None:
    weights = Path("tiny-bert/model.safetensors")
    content = weights.read_bytes()
    for kept in (0, 100, len(content) // 2, len(content) - 1):
        weights.write_bytes(content[:kept])
        assert "tiny-bert/model.safetensors: is " in refused(1)


def test_unsupported_architecture(refused: Any) -> None:
    changed(Path("tiny-bert/config.json"), model_type="gpt2", architectures=["GPT2ForSequenceClassification"])
    message = refused(1)
    assert "model family 'gpt2' is not supported" in message
    assert all(family in message for family in ("bert", "roberta", "mpnet"))


def test_pickled_weights_are_refused(refused: Any) -> None:
    Path("tiny-bert/model.safetensors").rename("tiny-bert/pytorch_model.bin")
    assert "pass --allow-pickle" in refused(1)


def test_a_task_the_checkpoint_was_not_trained_for(refused: Any) -> None:
    assert "was not fine-tuned for question-answering" in refused(1, "--task", "question-answering")


# Shapes


def test_sequence_beyond_the_positions(refused: Any) -> None:
    message = refused(2, "--sequence", "65")
    assert "--sequence (SEQ=): 65 is beyond the 64 positions of tiny-bert; give at most 64" in message


def test_batch_beyond_the_memory(refused: Any, tiny_checkpoint: CheckpointFactory) -> None:
    """4096 x 16384 tokens with their attention scores are beyond any machine."""
    model = tiny_checkpoint("bert", "feature-extraction", num_hidden_layers=1, max_position_embeddings=16384)
    message = refused(2, "--model", model, "--batch", "4096", "--sequence", "16384")
    assert "--batch (BATCH=): 4096 x 16384 needs about " in message
    assert "give a smaller batch or sequence" in message


def test_shapes_are_checked_when_calibration_is_up_to_date(workplace: Path, qdq: Qdq) -> None:
    ran = qdq("bench", "--out", "work", "--target", "openvino", "--sequence", "65")
    assert ran.code == 2
    assert "beyond the 64 positions" in ran.err


# Texts


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_calibration_file(refused: Any, content: bytes) -> None:
    Path("empty.txt").write_bytes(content)
    assert "empty.txt: no rows" in refused(1, "--calibration", "empty.txt")
    assert "empty.txt: no rows" in refused(1, "--eval-data", "empty.txt")


def test_wrong_encoding(refused: Any) -> None:
    Path("latin.txt").write_bytes("ein süßer Brei\n".encode("latin-1"))
    message = refused(1, "--calibration", "latin.txt")
    assert "latin.txt, line 1: not UTF-8 at byte 5 (0xfc); save it as UTF-8" in message
    Path("wide.txt").write_text("hello there\n", encoding="utf-16")
    assert "UTF-16" in refused(1, "--calibration", "wide.txt")


def test_a_column_that_is_not_there(refused: Any) -> None:
    assert "text.jsonl: no column 'txt'; did you mean 'text'?" in refused(1, "--text-columns", "txt")
    assert "text.jsonl: no column 'lable'; did you mean 'label'?" in refused(1, "--label-column", "lable")


def test_a_file_that_is_not_there(refused: Any) -> None:
    assert "text.json does not exist; did you mean text.jsonl?" in refused(1, "--calibration", "text.json")
    assert "other.jsonl does not exist" in refused(1, "--eval-data", "other.jsonl")


def test_labels_the_model_does_not_know(refused: Any, sentences: tuple[str, ...]) -> None:
    rows = [json.dumps({"text": text, "mood": "happy"}) for text in sentences]
    Path("moods.jsonl").write_text("\n".join(rows) + "\n")
    named = ("--calibration", "moods.jsonl", "--label-column", "mood")
    message = refused(1, *named)
    assert "evaluation text 1 has label 'happy', unknown to the model (it knows LABEL_0, LABEL_1)" in message
    Path("moods.jsonl").write_text("\n".join(rows).replace('"happy"', "null") + "\n")
    message = refused(1, *named)
    assert "no text of moods.jsonl from row 17 on, 20 texts has a label; name another --label-column" in message


def test_labels_that_calibration_used_up(workplace: Path, qdq: Qdq, small: tuple[str, ...]) -> None:
    rows = Path("text.jsonl").read_text().splitlines()[:16]
    Path("few.jsonl").write_text("\n".join(rows) + "\n")
    command = ("calibrate", "--model", "tiny-bert", "--calibration", "few.jsonl", "--label-column", "label", *small)
    ran = qdq(*command, "--out", "few", "--json")
    assert ran.code == 0, ran.err
    warnings = " ".join(json.loads(ran.out)["warnings"])
    assert "no task metric: no text of bundled held-out English text" in warnings
    assert "give labelled text to --eval-data (EVAL=)" in warnings


def test_nothing_left_to_evaluate_on(refused: Any) -> None:
    message = refused(1, "--eval-data", "text.jsonl", "--samples", "100")
    assert message == "text.jsonl: every text was calibrated on; give other text to --eval-data (EVAL=)"


def test_one_very_long_line_works(workplace: Path, qdq: Qdq, small: tuple[str, ...]) -> None:
    Path("long.txt").write_text("the cat finds a warm meal " * 4000 + "\n")  # 104 000 characters
    ran = qdq("calibrate", "--model", "tiny-bert", "--calibration", "long.txt", *small, "--out", "long")
    assert ran.code == 0, ran.err
    assert json.loads(Path("long/calibration.json").read_text())["tokens"] == 32


# The spec


def test_spec_files(refused: Any) -> None:
    Path("spec.yaml").write_text("placement: linear\nweight_bit: 8\n")
    assert "spec.yaml: unknown key 'weight_bit'; did you mean 'weight_bits'?" in refused(2, "--spec", "spec.yaml")
    Path("spec.json").write_text("{")
    assert "spec.json: not valid JSON" in refused(2, "--spec", "spec.json")
    assert "nowhere.yaml" in refused(2, "--spec", "nowhere.yaml")


# The output folder


def test_out_is_a_file(refused: Any) -> None:
    assert refused(1, "--out", "text.jsonl") == "text.jsonl: is a file; name a folder with --out (OUT=)"
    assert "text.jsonl" in refused(1, "--out", "text.jsonl/below")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, where even root cannot create a folder")
def test_read_only_place(refused: Any) -> None:
    assert refused(1, "--out", "/proc/build").startswith("cannot write /proc/build: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(refused: Any) -> None:
    Path("locked").mkdir(mode=0o555)
    assert refused(1, "--out", "locked/work").startswith("cannot write locked/work: Permission denied")


def test_a_failure_keeps_what_an_earlier_run_has_done(workplace: Path, qdq: Qdq, small: tuple[str, ...]) -> None:
    before = {path: path.read_bytes() for path in Path("work").rglob("*") if path.is_file()}
    weights = Path("tiny-bert/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    source = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--target", "openvino")
    assert qdq("compile", *source, *small, "--out", "work").code == 1
    assert {path: path.read_bytes() for path in Path("work").rglob("*") if path.is_file()} == before


def test_a_damaged_manifest(workplace: Path, qdq: Qdq) -> None:
    Path("work/manifest.json").write_text("{")
    ran = qdq("verify", "--out", "work")
    assert ran.code == 1
    assert "work/manifest.json cannot be read as JSON" in ran.err


def test_a_damaged_graph(workplace: Path, qdq: Qdq) -> None:
    graph = Path("work/model.qdq.onnx")
    graph.write_bytes(graph.read_bytes()[:5000])
    ran = qdq("lower", "--out", "work", "--target", "openvino")
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("qdq: work/model.qdq.onnx: cannot be read as ONNX")
    for name in ("openvino/model.onnx", "onnxruntime/model.onnx"):
        lowered = Path("work", name)
        lowered.write_bytes(lowered.read_bytes()[:5000])
        ran = qdq("build", "--out", "work", "--target", lowered.parent.name)
        assert ran.code == 1
        assert str(lowered) in ran.err.splitlines()[-1]


# A full disk


@pytest.mark.slow
def test_full_disk(workplace: Path, qdq: Qdq, full_disk: Callable[[int], Any]) -> None:
    """Every stage that writes something large is stopped in the middle of it, and the file before it stays."""
    openvino, onnxruntime = ("--out", "work", "--target", "openvino"), ("--out", "work", "--target", "onnxruntime")
    commands = [
        (20_000, ("calibrate", *openvino, "--placement", "qdqbert"), "work/checkpoint"),  # safetensors
        (1_000, ("calibrate", *openvino, "--placement", "qdqbert"), "work/checkpoint"),
        (20_000, ("lower", *openvino), "work/openvino/model.onnx"),
        (20_000, ("build", *openvino), "work/openvino/model."),  # its weights
        (60_000, ("build", *openvino), "work/openvino/model."),  # its graph
        (20_000, ("deploy", *openvino, "--raw-inputs"), "work/openvino"),  # a graph lowered for the backend first
        (20_000, ("deploy", *onnxruntime), "work/onnxruntime/model_repository"),
        (20_000, ("build", *onnxruntime), ""),  # a scratch file, which tells the runtime's operators
        (20_000, ("export", *openvino), "work/model."),  # the FP32 graph, or the canonical one
        (100, ("verify", *openvino), "work/manifest.json"),
    ]
    shutil.copytree("work", "before")
    for size, command, path in commands:
        with full_disk(size):
            ran = qdq(*command)
        case = f"{size} {command}: {ran.err}"
        assert ran.code == 1, case
        assert [str(p) for p in Path("work").rglob("*") if ".partial-" in p.name] == [], case
        err = ran.err
        assert [line.startswith("qdq: ") for line in err.splitlines()].count(True) == 1, case
        last = err.splitlines()[-1]
        assert any(reason in last for reason in ("File too large", "could not write", "Failed to write")), case
        assert not path or f"cannot write {path}" in last, case
        assert "internal error" not in last
    for path in Path("work").rglob("*"):
        if path.suffix == ".onnx":
            onnx.checker.check_model(path)
        if path.is_file() and path.name != "manifest.json":
            assert path.read_bytes() == Path("before", path.relative_to("work")).read_bytes(), path


def test_sequence_beyond_what_the_tokenizer_makes(refused: Any) -> None:
    path = Path("tiny-bert/tokenizer_config.json")
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"model_max_length": 16}))
    assert "32 is beyond the 16 tokens that the tokenizer of tiny-bert cuts its texts to" in refused(
        2, "--sequence", "32"
    )
