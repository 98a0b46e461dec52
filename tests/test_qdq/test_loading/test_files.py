"""Files that are not what their name says, and sets of weights that contradict each other: refused with the cause."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from qdq.errors import ModelError
from qdq.loading.model import load_model

Checkpoint = Callable[..., Path]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 90868376\n"


@pytest.fixture
def folder(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A copy of the tiny BERT classifier, to damage."""
    return Path(shutil.copytree(tiny_checkpoint("bert"), tmp_path / "tiny-bert"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (LFS, r"is a pointer of Git LFS, not what its name says; run 'git lfs pull'"),
        (b"/annex/objects/SHA256E-s90868376--53aa.safetensors\n", "is a pointer of git-annex"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is an HTML page, as a failed download leaves it"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an XML answer"),
        (b"\x1f\x8b\x08\x00" + b"\x00" * 60, "is a gzip archive"),
        (b"PK\x03\x04" + b"\x00" * 60, "is a zip archive"),
    ],
)
def test_a_file_that_is_something_else(folder: Path, name: str, content: bytes, cause: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name}: {cause}"):
        load_model(str(folder))


def test_a_vocabulary_that_is_a_pointer(folder: Path) -> None:
    (folder / "vocab.txt").write_bytes(LFS)  # it would be a vocabulary of three words
    with pytest.raises(ModelError, match=r"vocab\.txt: is a pointer of Git LFS"):
        load_model(str(folder))


@pytest.mark.parametrize("size", [0, 5, 40, -1, -1000])
def test_a_download_that_broke_off(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"model\.safetensors: (is cut off|is not a safetensors file)"):
        load_model(str(folder))


def test_bytes_behind_the_last_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ModelError, match=r"goes on behind its last tensor: it has \d+ bytes and its header says \d+"):
        load_model(str(folder))


def test_a_link_to_nothing(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.unlink()
    path.symlink_to("../.git/annex/objects/x")
    with pytest.raises(ModelError, match=r"model\.safetensors: is a link to .*annex/objects/x, which is not there"):
        load_model(str(folder))


def _index(folder: Path, shards: dict[str, Any]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def test_one_set_of_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    shard = "model-00001-of-00001.safetensors"
    save_file(weights, folder / shard, metadata={"format": "pt"})
    _index(folder, dict.fromkeys(weights, shard))
    with pytest.raises(ModelError, match=r"holds model\.safetensors and the shards of .*index\.json, which may differ"):
        load_model(str(folder))
    (folder / "model.safetensors").unlink()
    load_model(str(folder))
    (folder / shard).rename(folder / "model-00002-of-00002.safetensors")
    with pytest.raises(ModelError, match=rf"index\.json: names {shard}, which is not there \(1 missing\)"):
        load_model(str(folder))
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"has model-00002-of-00002\.safetensors but no model\.safetensors and no"):
        load_model(str(folder))


@pytest.mark.parametrize("shards", [[1], {"a": 1}, None])
def test_an_index_of_another_form(folder: Path, shards: Any) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    _index(folder, shards)
    with pytest.raises(ModelError, match=r"index\.json: has no weight_map of file names"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("name", "library"), [("tf_model.h5", "TensorFlow"), ("flax_model.msgpack", "Flax"), ("weights.npz", "MLX")]
)
def test_weights_of_another_library_alone(folder: Path, name: str, library: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ModelError, match=rf"has no model\.safetensors but .*\({library}.*\), which is not read"):
        load_model(str(folder))
