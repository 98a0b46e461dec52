"""Fetching a checkpoint from the model hub, with one clear error within five seconds when that cannot work."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import TypeVar

from qdq.base.notice import NOTICE
from qdq.errors import ModelError

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
REACH_SECONDS = 3.5  # leaves room for start-up within the five
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model")  # config, weights, vocabularies, sentencepiece
PICKLED = ("pytorch_model*.bin",)
SAID_BYTES = 500_000  # less is 0 MB


def download(name: str, allow_pickle: bool = False) -> Path:
    """Local snapshot folder of hub id `name`: the cached one, else downloaded.

    Pickled weights are fetched with `allow_pickle` only. Raises ModelError for a name the hub does not know, weights
    that may not be read, and a hub that does not answer (within five seconds).
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    # The cached snapshot, where it is complete
    wanted = [*WANTED, *PICKLED] if allow_pickle else list(WANTED)
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        if _weights([path.name for path in folder.iterdir()], allow_pickle):
            return folder  # other programs cache single files, such as the configuration alone
    except HFValidationError as error:
        raise ModelError(
            f"model '{name}': no such folder, and not a hub id such as org/name; check the path"
        ) from error
    except LocalEntryNotFoundError:
        pass
    # Ask for the names first: that answers within five seconds, and large files are not fetched in vain
    files = _listing(name)
    if not _weights(files, allow_pickle):
        raise ModelError(_no_weights(name, files))
    logger.log(NOTICE, "%s", _announced(name, files, wanted))
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (_http_error(), OSError) as error:
        raise ModelError(f"model '{name}': cannot be downloaded from the hub ({_reason(error)})") from error


def _announced(name: str, files: Mapping[str, int | None], wanted: Sequence[str]) -> str:
    """Line about a download that is to begin, with its size where the hub says so."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # documented there

    chosen = list(filter_repo_objects(files, allow_patterns=list(wanted)))
    size = sum(files[file] or 0 for file in chosen)
    much = f", {size / 1e6:.0f} MB" if size >= SAID_BYTES else ""
    return f"downloading {name} from the hub: {len(chosen)} files{much}, kept in {HF_HUB_CACHE}"


def _weights(files: Iterable[str], allow_pickle: bool) -> bool:
    return any(file.endswith(".safetensors") or (allow_pickle and _pickled(file)) for file in files)


def _pickled(file: str) -> bool:
    return file.startswith("pytorch_model") and file.endswith(".bin")


def _no_weights(name: str, files: Iterable[str]) -> str:
    if any(map(_pickled, files)):
        return (
            f"model '{name}': has weights stored as pickle only, which can run code when read; use a safetensors "
            "version of it, or pass --allow-pickle if you trust its source"
        )
    return f"model '{name}': has no safetensors weights on the hub; choose another model"


def silence(dataset: str) -> str:
    """Return the reason the hub does not answer for a data set within five seconds; "" for any answer, or a refusal."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    answer = _answer(lambda: HfApi().dataset_info(dataset, timeout=REACH_SECONDS))
    return _reason(answer) if isinstance(answer, Exception) and not isinstance(answer, HfHubHTTPError) else ""


def _answer(ask: Callable[[], Answer]) -> Answer | Exception:
    """Return the result of `ask`, or its error; runs in a thread, as name resolution can hang beyond any timeout."""
    outcome: list[Answer | Exception] = []

    def run() -> None:
        try:
            outcome.append(ask())
        except (_http_error(), OSError, ValueError, RuntimeError) as error:  # for the caller's thread
            outcome.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    return outcome[0] if outcome else TimeoutError(f"no answer within {REACH_SECONDS:g} s")


def _listing(name: str) -> dict[str, int | None]:
    """The model's files, with their bytes where the hub says so. Raises ModelError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    def ask() -> dict[str, int | None]:
        found = HfApi().model_info(name, timeout=REACH_SECONDS, files_metadata=True).siblings or []
        return {sibling.rfilename: sibling.size for sibling in found}

    answer = _answer(ask)
    if isinstance(answer, dict):
        return answer
    # The three ways of not getting an answer, each with its way out
    if isinstance(answer, RepositoryNotFoundError) and not isinstance(answer, GatedRepoError):
        raise ModelError(
            f"model '{name}': no such folder here and no such model on the hub; check the spelling "
            "(a private model needs HF_TOKEN)"
        ) from answer
    if isinstance(answer, HfHubHTTPError):
        raise ModelError(f"model '{name}': no such folder here, and the hub refuses it ({_reason(answer)})") from answer
    raise ModelError(
        f"model '{name}': no such folder here, and the model hub cannot be reached ({_reason(answer)}); "
        "download the checkpoint on another machine and give its folder"
    ) from answer


def _http_error() -> type[Exception]:
    """The base error of whichever HTTP client this version of the hub library uses: no answer, or a refusal."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    return HTTPError


def _reason(error: Exception) -> str:
    """The hub library's message on one line; the reason of a refusal is on its third."""
    return " ".join(str(error).split())[:300] or type(error).__name__
