"""The steps that need no data: dynamic quantization (torch.ao's and ours) and INT8 embedding tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qdq.calibrate.checkpoint import load_checkpoint
from qdq.compress.arguments import CompressionArguments
from qdq.compress.dynamic import DynamicInput
from qdq.compress.torch_dynamic import WEIGHTS, load_dynamic
from qdq.compress.trainer import CompressionTrainer
from qdq.errors import ModelError
from qdq.inject.embedding import QuantEmbedding
from qdq.loading.model import LoadedModel

Load = Callable[..., LoadedModel]


def compress(loaded: LoadedModel, data: list[dict[str, Any]], folder: Path, strategy: str) -> Any:
    args = CompressionArguments(
        output_dir=str(folder),
        strategy=strategy,
        algo_list=["abs_max"],
        report_to="none",
        disable_tqdm=True,
        device="cpu",
    )
    return CompressionTrainer(loaded.model, args, eval_dataset=data, tokenizer=loaded.tokenizer).compress()


@pytest.fixture
def labelled(load_tiny: Load, encode: Callable[..., Any]) -> tuple[LoadedModel, list[dict[str, Any]]]:
    loaded = load_tiny()
    inputs = encode(loaded)
    with torch.no_grad():
        labels = loaded.model(**inputs).logits.argmax(-1)
    return loaded, [{**{name: inputs[name][i] for name in inputs}, "labels": labels[i]} for i in range(len(labels))]


@pytest.mark.document_row("001/9", "001/12")
def test_dynamic_gives_the_baseline_and_a_checkpoint_and_both_load_again(labelled: Any, tmp_path: Path) -> None:
    loaded, data = labelled
    result = compress(loaded, data, tmp_path, "dynamic")
    found = {candidate.name: candidate for candidate in result.candidates}
    assert sorted(found) == ["dynamic", "dynamic-torch"]
    batch = {name: torch.stack([row[name] for row in data]) for name in data[0] if name != "labels"}
    again = load_dynamic(result.folders["dynamic-torch"])
    ours, spec, _ = load_checkpoint(result.folders["dynamic"])
    assert spec.dynamic
    with torch.no_grad():
        torch_ao = found["dynamic-torch"].model(**batch).logits
        assert torch.equal(again(**batch).logits, torch_ao)
        assert torch.equal(ours.model(**batch).logits, found["dynamic"].model(**batch).logits)
        assert not torch.equal(torch_ao, loaded.model(**batch).logits)


def test_a_damaged_baseline_is_refused(labelled: Any, tmp_path: Path) -> None:
    loaded, data = labelled
    folder = compress(loaded, data, tmp_path, "dynamic").folders["dynamic-torch"]
    assert not list(folder.glob("*.bin"))  # nothing that has to be unpickled
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_dynamic(folder)
    with pytest.raises(ModelError, match="has no dynamic_quantization"):
        load_dynamic(tmp_path)


@pytest.mark.document_row("000/1", "000/2", "000/27")
@pytest.mark.parametrize("strategy", ["embeddings", "ptq+embeddings", "dynamic+embeddings"])
def test_embeddings_join_whatever_is_quantized(strategy: str, labelled: Any, tmp_path: Path) -> None:
    loaded, data = labelled
    result = compress(loaded, data, tmp_path, strategy)
    with_tables = [candidate for candidate in result.candidates if candidate.name.endswith("embeddings")]
    assert with_tables
    again, spec, placement = load_checkpoint(result.folders[with_tables[0].name])
    assert spec.embedding_tables
    assert sum(isinstance(module, QuantEmbedding) for module in again.model.modules()) == 3
    assert sum(point.kind == "embedding" for point in placement.placed) == 3
    (row,) = (one for one in result.as_json()["candidates"] if one["name"] == with_tables[0].name)
    tables = [module.weight for module in again.model.modules() if isinstance(module, QuantEmbedding)]
    saved = sum(3 * table.numel() - 4 * len(table) for table in tables) / 1e6
    assert 0 < row["weights_mb"] <= 4e-6 * row["parameters"] - saved + 1e-4
    batch = {name: torch.stack([row[name] for row in data]) for name in data[0] if name != "labels"}
    with torch.no_grad():
        assert torch.equal(again.model(**batch).logits, with_tables[0].model(**batch).logits)


def test_dynamic_input_rounds_to_255_steps_of_the_tensors_range() -> None:
    x = torch.tensor([[-1.0, 0.0, 0.37, 3.0]])
    rounded = DynamicInput()(x)
    step = 4.0 / 255
    assert float((rounded - x).abs().max()) <= step / 2 + 1e-6
    assert float(rounded[0, 1]) == 0.0  # zero is exact
    assert torch.equal(DynamicInput()(torch.zeros(2, 2)), torch.zeros(2, 2))
