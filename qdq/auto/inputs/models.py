"""Models as a configuration names them: a checkpoint folder, a hub id, or an ONNX file, also under Paddle's names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qdq.compress.onnx_file import conversion
from qdq.errors import ConfigError

PADDLE = (".pdmodel", ".pdiparams")
PADDLE_NAMES = ("__model__", "__params__")  # older spellings of the same two files
CONFIG = "config.json"


@dataclass(frozen=True)
class Source:
    """A model that was found: `name` is that of a checkpoint (a folder or hub id), or of an ONNX file.

    `files`: the folder whose text files belong to it, None for a hub id.
    """

    name: str
    onnx: bool
    files: Path | None


def find_model(model_dir: str, model_filename: str | None, params_filename: str | None, where: str) -> Source:
    """The model that `model_dir` and its file names mean.

    ``dirname/prefix`` stands for prefix.onnx in dirname. Paddle's names (inference.pdmodel, __model__) stand for the
    ONNX file of that stem, else for the checkpoint in the folder. Raises ConfigError, beginning with `where`, for a
    Paddle model that is really there, with the way to convert it, and for a file that is not.
    """
    place = Path(model_dir).expanduser()
    if model_filename is not None:
        found = _named(place, model_filename, params_filename, where)
        _check_weights(found, place, params_filename, where)
        return found
    # Without a file name: whatever is there
    if place.is_dir():
        return _in_folder(place, where)
    for file in (place, place.with_name(f"{place.name}.onnx")):
        if file.is_file() and file.suffix == ".onnx":
            return Source(str(file), True, file.parent)
    model = place if place.suffix == ".pdmodel" else place.with_name(f"{place.name}.pdmodel")
    if model.is_file():
        raise ConfigError(f"{where}: {conversion(model, model.with_suffix('.pdiparams').name)}")
    if place.is_absolute() or model_dir.startswith(("./", "../", "~")) or model_dir.count("/") > 1:
        raise ConfigError(f"{where}: there is no folder {place}, and no {place.name}.onnx beside it; check the path")
    return Source(model_dir, False, None)


def _named(place: Path, name: str, weights: str | None, where: str) -> Source:
    """The model of a file name in a folder."""
    file = place / name
    if file.suffix in PADDLE or name in PADDLE_NAMES:
        if file.is_file():
            raise ConfigError(f"{where}: {conversion(file, weights or file.with_suffix('.pdiparams').name)}")
        for ours in (file.with_suffix(".onnx"), place / "model.onnx"):
            if ours.is_file():
                return Source(str(ours), True, place)
        if (place / CONFIG).is_file():
            return Source(str(place), False, place)
        raise ConfigError(
            f"{where}: there is no {file}, and no {file.with_suffix('.onnx').name} or checkpoint that could stand for "
            "it; check the path"
        )
    if not file.is_file():
        raise ConfigError(f"{where}: there is no {file}; check model_filename")
    if file.suffix == ".onnx":
        return Source(str(file), True, place)
    if (place / CONFIG).is_file():
        return Source(str(place), False, place)
    raise ConfigError(f"{where}: {file} is no ONNX file, and {place} has no {CONFIG}; name a checkpoint folder")


def _check_weights(found: Source, place: Path, weights: str | None, where: str) -> None:
    """Raise ConfigError for a file of weights that is not there; Paddle's name stands for ours."""
    if weights is None or Path(weights).suffix in PADDLE or weights in PADDLE_NAMES:
        return
    if not (place / weights).is_file():
        raise ConfigError(f"{where}: there is no {place / weights}; check params_filename, or leave it out")


def _in_folder(place: Path, where: str) -> Source:
    weights = any(any(place.glob(pattern)) for pattern in ("*.safetensors", "*.bin"))
    if (place / CONFIG).is_file() and weights:
        return Source(str(place), False, place)
    graphs = sorted(place.glob("*.onnx"))
    if len(graphs) == 1:
        return Source(str(graphs[0]), True, place)
    if len(graphs) > 1:
        names = ", ".join(file.name for file in graphs)
        raise ConfigError(f"{where}: {place} has several ONNX files ({names}); name one by model_filename")
    paddle = sorted((*place.glob("*.pdmodel"), *place.glob("__model__")))
    if paddle:
        raise ConfigError(f"{where}: {conversion(paddle[0], paddle[0].with_suffix('.pdiparams').name)}")
    return Source(str(place), False, place)  # `load_model` says what is missing
