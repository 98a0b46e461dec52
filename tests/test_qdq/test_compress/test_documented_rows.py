"""Commands of the compression API's documents that no other test types whole."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import HfArgumentParser

from qdq.compress.arguments import CompressionArguments
from qdq.compress.trainer import CompressionTrainer
from qdq.loading.model import LoadedModel

Load = Callable[..., LoadedModel]
Encode = Callable[..., dict[str, torch.Tensor]]

STEP_4 = """
    --output_dir ./compress_models  \\
    --per_device_train_batch_size 32 \\
    --per_device_eval_batch_size 32 \\
    --num_train_epochs 4 \\
    --width_mult_list 0.75 \\
    --batch_size_list 4 8 16 \\
    --batch_num_list 1 \\
"""
QUICK = ("--report_to", "none", "--disable_tqdm", "True", "--device", "cpu")


def rows(loaded: LoadedModel, encode: Encode) -> list[dict[str, Any]]:
    """Encoded sentences, labelled by what the model itself says."""
    inputs = encode(loaded, 16)
    with torch.no_grad():
        labels = loaded.model(**inputs).logits.argmax(-1)
    return [{**{name: inputs[name][i] for name in inputs}, "labels": labels[i]} for i in range(16)]


def compress(loaded: LoadedModel, encode: Encode, words: list[str]) -> Any:
    """As `compress.py` of the documents does."""
    (arguments,) = HfArgumentParser(CompressionArguments).parse_args_into_dataclasses([*words, *QUICK])
    data = rows(loaded, encode)
    return CompressionTrainer(
        loaded.model, arguments, train_dataset=data, eval_dataset=data, tokenizer=loaded.tokenizer
    ).compress()


@pytest.mark.document_row("000/14", "000/29", "000/32", "000/33", "000/40")
def test_step_4_as_it_is_printed(
    load_tiny: Load, encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_tiny(num_attention_heads=4, num_hidden_layers=1)
    result = compress(loaded, encode, shlex.split(STEP_4.replace("\\\n", " ")))
    names = {f"width-0.75-{algorithm}-{size}x1" for algorithm in ("mse", "KL") for size in (4, 8, 16)}
    assert {candidate.name for candidate in result.candidates} == names
    assert (tmp_path / "compress_models" / result.best.name / "model.safetensors").is_file()


@pytest.mark.document_row("000/39", "000/41")
@pytest.mark.parametrize("weights", ["abs_max", "channel_wise_abs_max"])
def test_every_algorithm_is_tried_with_both_kinds_of_weights(
    weights: str, load_tiny: Load, encode: Encode, tmp_path: Path
) -> None:
    algorithms = "KL abs_max min_max avg hist mse emd"
    words = f"--strategy ptq --algo_list {algorithms} --weight_quantize_type {weights} --output_dir {tmp_path}"
    result = compress(load_tiny(num_hidden_layers=1), encode, shlex.split(words))
    # min_max and abs_max are one algorithm where codes are symmetric
    assert {candidate.name.partition("-")[0] for candidate in result.candidates} == set(algorithms.split()) - {
        "min_max"
    }
    assert {candidate.spec.per_channel_weights for candidate in result.candidates} == {weights != "abs_max"}
    assert all((result.folders[candidate.name] / "model.safetensors").is_file() for candidate in result.candidates)


@pytest.mark.document_row("000/42")
@pytest.mark.parametrize("strategy", ["ptq", "qat"])
@pytest.mark.parametrize("kind", ["abs_max", "range_abs_max", "moving_average_abs_max", None])
def test_every_type_of_activations_in_both_strategies(
    kind: str | None, strategy: str, load_tiny: Load, encode: Encode, tmp_path: Path
) -> None:
    """In ptq abs_max and moving averages are the ranges themselves; range_abs_max leaves them to algo_list."""
    words = f"--strategy {strategy} --max_steps 1 --output_dir {tmp_path}"
    words += " --algo_list mse" if strategy == "qat" else ""  # what it starts from
    typed = f"{words} --activation_quantize_type {kind}" if kind else words
    result = compress(load_tiny(num_hidden_layers=1), encode, shlex.split(typed))
    found = {candidate.table.algorithm for candidate in result.candidates if candidate.table}
    if strategy == "ptq":
        alone = {"abs_max": {"max"}, "moving_average_abs_max": {"moving_average"}}
        assert found == alone.get(kind or "", {"mse", "entropy"})
    else:
        assert found == {"qat"}
    # Unless it is named, that of qat is the moving average and that of ptq is range_abs_max: the same model.
    if kind is None:
        default = {"ptq": "range_abs_max", "qat": "moving_average_abs_max"}[strategy]
        named = shlex.split(f"{words} --output_dir {tmp_path}/named --activation_quantize_type {default}")
        again = compress(load_tiny(num_hidden_layers=1), encode, named)
        assert again.best.table is not None and result.best.table is not None
        assert again.best.table.activations == result.best.table.activations


@pytest.mark.document_row("000/11")
def test_data_of_ones_own_by_the_datasets_package(load_tiny: Load, tmp_path: Path, sentences: tuple[str, ...]) -> None:
    """`load_dataset` of files, `map`, and the splits given to the trainer as they come."""
    datasets = pytest.importorskip("datasets", reason="the optional extra 'train' is not installed")
    loaded = load_tiny(num_hidden_layers=1)
    files = {}
    for split in ("train", "validation"):
        files[split] = str(tmp_path / f"{split}.csv")
        lines = [f"{text.replace(',', ' ')},{number % 2}" for number, text in enumerate(sentences[:16])]
        Path(files[split]).write_text("\n".join(["text,labels", *lines]) + "\n", encoding="utf-8")
    data = datasets.load_dataset("csv", data_files=files, cache_dir=str(tmp_path / "cache"))
    data = data.map(lambda rows: loaded.tokenizer(rows["text"], truncation=True), batched=True)
    words = ["--output_dir", str(tmp_path / "out"), "--strategy", "qat", "--max_steps", "2", "--algo_list", "abs_max"]
    (arguments,) = HfArgumentParser(CompressionArguments).parse_args_into_dataclasses([*words, *QUICK])
    result = CompressionTrainer(
        loaded.model,
        arguments,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        tokenizer=loaded.tokenizer,
    ).compress()
    assert (result.folders[result.best.name] / "model.safetensors").is_file()
