"""Fetching a checkpoint from the model hub, with one clear error within five seconds when that cannot work."""

from __future__ import annotations

import re
from pathlib import Path
from threading import Thread

from qdq.errors import ModelError

REACH_SECONDS = 4.0
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model")  # config, weights, vocabularies, sentencepiece; no pickles
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def download(name: str) -> Path:
    """Local snapshot folder of hub id `name`: the cached one, else downloaded. Raises ModelError."""
    if not HUB_ID.match(name):
        raise ModelError(f"model '{name}': no such folder, and not a hub id such as org/name; check the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED), local_files_only=True))
    except LocalEntryNotFoundError:
        _require_reachable(name)
    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except (HfHubHTTPError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model '{name}': cannot be downloaded from the hub ({first})") from error


def _require_reachable(name: str) -> None:
    """Ask the hub for the model's metadata in a thread: name resolution alone can hang far beyond any timeout."""
    outcome: list[BaseException | None] = []

    def ask() -> None:
        from huggingface_hub import HfApi

        try:
            HfApi().model_info(name, timeout=REACH_SECONDS)
            outcome.append(None)
        except Exception as error:  # the thread's edge: whatever it is, the caller reports it by name
            outcome.append(error)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    problem = outcome[0] if outcome else TimeoutError(f"no answer within {REACH_SECONDS:.0f} s")
    if problem is None:
        return
    if type(problem).__name__ == "RepositoryNotFoundError":
        raise ModelError(f"model '{name}': no such folder here and no such model on the hub; check the spelling")
    first = (str(problem).splitlines() or [type(problem).__name__])[0]
    raise ModelError(
        f"model '{name}': no such folder here, and the model hub cannot be reached ({first}); "
        "download the checkpoint on another machine and give its folder"
    )
