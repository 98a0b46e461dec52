"""Files of a checkpoint that are not what their name says: pointers, pages, archives, downloads that broke off."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from qdq.errors import ModelError

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
HEADER_MOST = 100_000_000  # bytes of a header, as safetensors itself limits it

# First bytes of what lies under a name by mistake -> the name of that, and the way to the file itself
IMPOSTORS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a pointer of Git LFS", "run 'git lfs pull' in its repository"),
    (b"/annex/objects/", "a pointer of git-annex", "run 'git annex get' in its repository"),
    (b"../.git/annex/", "a pointer of git-annex", "run 'git annex get' in its repository"),
    (b".git/annex/", "a pointer of git-annex", "run 'git annex get' in its repository"),
    (b"<!doctype html", "an HTML page, as a failed download leaves it", "download the file itself"),
    (b"<html", "an HTML page, as a failed download leaves it", "download the file itself"),
    (b"<?xml", "an XML answer, as a failed download leaves it", "download the file itself"),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"\xfd7zxz", "an xz archive", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it"),
    (b"pk\x03\x04", "a zip archive (torch.save writes one)", "unpack it, or save the weights with save_pretrained"),
    (b"\x89hdf", "an HDF5 file, as Keras writes it", "convert it with the library that wrote it"),
    (b"gguf", "a GGUF file", "give the original weights in safetensors"),
)


def require_named(paths: Iterable[Path]) -> None:
    """Raise ModelError for a file of a checkpoint that is not what its name says, or a link to nothing."""
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise ModelError(
                f"{path}: is a link to {path.readlink()}, which is not there; fetch the file itself "
                "(git annex get, or copy the folder with its links followed)"
            )
        if not path.is_file():
            continue
        with path.open("rb") as file:
            start = file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
        for mark, name, way in IMPOSTORS:
            if start.startswith(mark) and not (mark.startswith(b"pk") and path.suffix in PICKLE_SUFFIXES):
                raise ModelError(f"{path}: is {name}, not what its name says; {way}")


def require_whole(path: Path) -> None:
    """Raise ModelError for a safetensors file that is empty, something else, or shorter than its header says."""
    require_named([path])
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start = file.read(min(length, HEADER_MOST)) if size >= 8 and length <= size - 8 else b""
    if size < 8 or length > HEADER_MOST or (start and not start.lstrip().startswith(b"{")):
        raise ModelError(f"{path}: is not a safetensors file ({size} bytes, no header); download or save it again")
    if length > size - 8:
        raise ModelError(f"{path}: is cut off at {size} bytes, inside its header of {length}; download it again")
    try:
        entries = json.loads(start)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        needed = 8 + length + max(ends, default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{path}: its header is damaged ({type(error).__name__}); download or save it again"
        ) from error
    if needed != size:
        what = "is cut off" if size < needed else "goes on behind its last tensor"
        raise ModelError(f"{path}: {what}: it has {size} bytes and its header says {needed}; download it again")


def compare_weights(weights: Sequence[Path], pickled: Sequence[Path]) -> str:
    """Say how the tensors of pickles differ from those of whole safetensors files, "" for the same ones.

    Nothing is unpickled: torch's archives list the size and the checksum of each tensor's bytes.
    """
    stored: set[tuple[int, int]] = set()
    for path in pickled:
        try:
            with zipfile.ZipFile(path) as archive:
                stored |= {(entry.file_size, entry.CRC) for entry in archive.infolist()}
        except (OSError, zipfile.BadZipFile):
            return "which cannot be compared, as it is no archive of torch"
    known = [entry for path in weights for entry in _checksums(path)]
    other = sum(entry not in stored for entry in known)
    return f"other weights: {other} of {len(known)} tensors differ" if other else ""


def _checksums(path: Path) -> Iterator[tuple[int, int]]:
    """Bytes and CRC-32 of every tensor of a safetensors file that `require_whole` has passed."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
        for name, entry in entries.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                file.seek(8 + length + start)
                yield end - start, zlib.crc32(file.read(end - start))


# Weights of other libraries and formats, by file name
FOREIGN = (
    ("tf_model.h5", "TensorFlow"),
    ("*.ckpt*", "TensorFlow or Lightning"),
    ("flax_model.msgpack", "Flax"),
    ("rust_model.ot", "rust-bert"),
    ("*.gguf", "llama.cpp"),
    ("*.npz", "MLX or NumPy"),
    ("*.onnx", "an ONNX graph"),
    ("openvino_model.*", "OpenVINO"),
    ("*.pt", "a pickle of torch"),
    ("*.pth", "a pickle of torch"),
    ("*.nemo", "NeMo"),
    ("*.pdparams", "PaddlePaddle"),
)


def foreign_weights(folder: Path) -> str:
    """Names of weights in another library's format, each with that library; "" without any."""
    return ", ".join(f"{name} ({what})" for name, what in FOREIGN if any(folder.glob(name)))
