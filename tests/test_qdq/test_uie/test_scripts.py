"""The scripts in examples/uie, typed as their documents print them."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "uie"
TEXTS = [
    {"text": f"{name}在{city}", "label": [[0, 2, "人名"], [3, 5, "城市"]]}
    for name in ("张三", "李四", "王五", "赵六", "陈七")
    for city in ("北京", "上海")
]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """`script(name)`: the module of one of the scripts."""
    monkeypatch.syspath_prepend(str(EXAMPLES.parent))
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"uie_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for their annotations
        spec.loader.exec_module(module)
        return module

    return load


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_doccano(script: Callable[[str], Any], tmp_path: Path) -> None:
    source = tmp_path / "doccano.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in TEXTS), encoding="utf-8")
    words = ["--doccano_file", str(source), "--task_type", "ext", "--splits", "0.8", "0.1", "0.1"]
    main = script("doccano").main
    main([*words, "--save_dir", str(tmp_path / "a"), "--seed", "1000"])
    files = {name: read(tmp_path / "a" / f"{name}.txt") for name in ("train", "dev", "test")}
    assert [len(rows) for rows in files.values()] == [16, 2, 2]
    assert {row["prompt"] for row in files["dev"]} == {"人名", "城市"}
    assert sorted(row["content"] for rows in files.values() for row in rows[::1]) == sorted(
        row["text"] for row in TEXTS for _ in range(2)
    )
    # The same seed gives the same bytes, another one other rows; unshuffled texts keep their order
    main([*words, "--save_dir", str(tmp_path / "b"), "--is_shuffle", "True"])
    main([*words, "--save_dir", str(tmp_path / "c"), "--seed", "1"])
    main([*words, "--save_dir", str(tmp_path / "d"), "--is_shuffle", "False"])
    one, same, other, plain = ((tmp_path / name / "train.txt").read_bytes() for name in "abcd")
    assert one == same != other
    assert read(tmp_path / "d" / "dev.txt")[0]["content"] == TEXTS[8]["text"] and plain != one
    # Without splits everything is for training
    main(["--doccano_file", str(source), "--save_dir", str(tmp_path / "e"), "--splits"])
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["train.txt"]


def test_doccano_classes(script: Callable[[str], Any], tmp_path: Path) -> None:
    source = tmp_path / "cls.jsonl"
    source.write_text(json.dumps({"data": "很好", "label": ["正向"]}), encoding="utf-8")
    words = [
        "--doccano_file",
        str(source),
        "--task_type",
        "cls",
        "--save_dir",
        str(tmp_path),
        "--splits",
        "1",
        "0",
        "0",
    ]
    script("doccano").main([*words, "--prompt_prefix", "情感倾向", "--options", "正向", "负向"])
    (row,) = read(tmp_path / "train.txt")
    assert row["prompt"].startswith("情感倾向[") and row["result_list"][0]["text"] == "正向"


def test_doccano_refuses(script: Callable[[str], Any], tmp_path: Path) -> None:
    from qdq.errors import ConfigError

    source = tmp_path / "doccano.jsonl"
    source.write_text(json.dumps(TEXTS[0]), encoding="utf-8")
    for words, said in [(["--splits", "0.9", "0.2", "0.1"], "--splits"), (["--is_shuffle", "maybe"], "--is_shuffle")]:
        with pytest.raises(ConfigError, match=said):
            script("doccano").main(["--doccano_file", str(source), *words])


def test_label_studio(script: Callable[[str], Any], tmp_path: Path) -> None:
    spans = [{"id": "a", "type": "labels", "value": {"start": 0, "end": 2, "labels": ["人名"]}}]
    source = tmp_path / "label_studio.json"
    source.write_text(json.dumps([{"data": {"text": "张三"}, "annotations": [{"result": spans}]}]), encoding="utf-8")
    script("label_studio").main(["--label_studio_file", str(source), "--save_dir", str(tmp_path), "--splits"])
    direct = read(tmp_path / "train.txt")
    assert direct == [
        {"content": "张三", "result_list": [{"text": "张三", "start": 0, "end": 2}], "prompt": "人名"},
    ]
    # By way of doccano's layout
    between = tmp_path / "doccano_ext.jsonl"
    script("labelstudio2doccano").main(["--labelstudio_file", str(source), "--doccano_file", str(between)])
    script("doccano").main(["--doccano_file", str(between), "--save_dir", str(tmp_path / "two"), "--splits"])
    assert read(tmp_path / "two" / "train.txt") == direct


def prompts(folder: Path) -> Path:
    rows = [
        {"content": f"the cat finds the {thing} .", "prompt": "house", "result_list": answers}
        for thing in ("house", "bread", "road", "garden")
        for answers in ([{"text": thing, "start": 18, "end": 18 + len(thing)}], [])
    ]
    path = folder / "prompts.txt"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


QUIET = ("--device", "cpu", "--report_to", "none", "--disable_tqdm", "True", "--save_strategy", "no")


@pytest.mark.slow
def test_finetune_export_and_evaluate(
    script: Callable[[str], Any],
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A bare encoder gets heads, learns what it is shown, is exported and scored."""
    data = str(prompts(tmp_path))
    encoder = tiny_checkpoint("ernie", "feature-extraction")
    words = ["--model_name_or_path", str(encoder), "--train_path", data, "--dev_path", data, "--max_seq_length", "32"]
    found = script("finetune").main(
        [
            *(*words, "--output_dir", str(tmp_path / "best"), "--label_names", "start_positions", "end_positions"),
            *("--do_train", "--do_eval", "--do_export", "--export_model_dir", str(tmp_path / "export")),
            *("--learning_rate", "1e-2", "--num_train_epochs", "25", "--per_device_train_batch_size", "8", *QUIET),
        ]
    )
    assert {"eval_f1", "eval_precision", "eval_recall", "eval_loss"} <= set(found)
    assert found["eval_loss"] < 0.15
    assert (tmp_path / "export" / "model.onnx").is_file() and (tmp_path / "best" / "eval_results.json").is_file()
    # The documented evaluation, on the checkpoint
    report = script("evaluate").main(
        [
            "--model_path",
            str(tmp_path / "best"),
            "--test_path",
            data,
            "--batch_size",
            "4",
            "--max_seq_len",
            "32",
            "--debug",
        ]
    )
    assert report["contestants"][0]["metrics"]["f1"] == pytest.approx(found["eval_f1"])
    assert "house" in report["contestants"][0]["classes"] and "f1" in capsys.readouterr().out


@pytest.mark.document_row("000/6", "004/1")
@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", ["ptq", "qat", "dynabert", "embeddings", "dynamic", "dynabert+ptq", "dynabert+qat+embeddings"]
)
def test_compress(
    strategy: str, script: Callable[[str], Any], tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    data = str(prompts(tmp_path))
    uie = tiny_checkpoint("ernie", "information-extraction", num_hidden_layers=1)
    result = script("finetune").main(
        [
            *("--model_name_or_path", str(uie), "--train_path", data, "--dev_path", data, "--max_seq_length", "32"),
            *("--output_dir", str(tmp_path / "out"), "--do_compress", "--strategy", strategy, "--max_steps", "2"),
            *("--width_mult_list", "1/2", "--algo_list", "mse", "--batch_size_list", "4", *QUIET),
        ]
    )
    assert 0 <= result.best.metric <= 1 and set(result.best.metric.metrics) == {"f1", "precision", "recall"}
    # What lies there is a UIE of this size, with quantizers where the strategy puts some
    from qdq.calibrate.checkpoint import load_checkpoint
    from qdq.loading.model import load_model

    folder = next(folder for name, folder in result.folders.items() if not name.endswith("torch"))
    loaded, spec = (load_model(str(folder)), None) if strategy == "dynabert" else load_checkpoint(folder)[:2]
    assert loaded.task.name == "information-extraction" and loaded.outputs == ("start_prob", "end_prob")
    assert loaded.model.config.model_type == ("pruned-ernie" if "dynabert" in strategy else "ernie")
    assert loaded.model.linear_start.out_features == 1
    if spec is not None:
        assert spec.linear == (strategy != "embeddings") and spec.dynamic == (strategy == "dynamic")
        assert spec.embedding_tables == ("embeddings" in strategy)


def test_finetune_refuses(script: Callable[[str], Any], tmp_path: Path) -> None:
    from qdq.errors import ConfigError

    for words, said in [
        ([], "nothing to do"),
        (["--do_train"], "needs --train_path"),
        (["--do_compress"], "need --dev_path"),
    ]:
        with pytest.raises(ConfigError, match=said):
            script("finetune").main(["--output_dir", str(tmp_path), *words, "--device", "cpu"])
