"""The work directory: one run at a time, whole files only, and which stages are still valid.

manifest.json remembers, per stage, a hash of its inputs and the hashes of its outputs. A stage is skipped when both
still match, so an interrupted run continues at the first stage that is not whole, and a changed input redoes exactly
what depends on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from qdq.base.artifacts import (
    read_json,
    sha256_file,
    sha256_json,
    sha256_tree,
    sweep_partials,
    write_failure,
    write_json,
)
from qdq.base.versions import __version__
from qdq.errors import QdqError, WorkError

MANIFEST = "manifest.json"
LOCK = ".lock"
SEED = 0
PRESENT = "present"  # recorded instead of a hash for an output whose content differs from run to run


class WorkDirectory:
    """A locked work directory, used as a context manager.

    When a run fails before it has completed anything, whatever this run created is removed again, unless `keep` was
    called. Raises DeployError when the folder cannot be written, WorkError when another run holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._created: list[Path] = []  # folders, innermost first
        self._kept = False
        self.manifest: dict[str, Any] = {}  # the content of manifest.json
        self.found: dict[str, Any] = {}  # the stages' records as this run found them

    def __enter__(self) -> Self:
        try:
            if self.path.exists() and not self.path.is_dir():
                raise WorkError(f"{self.path}: is a file; name a folder with --out (OUT=)")
            self._created = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            self._withdraw()
            raise write_failure(self.path, error) from error
        try:
            self._acquire(self._lock)
            sweep_partials(self.path)
            self.manifest = self._read_manifest()
            self.found = dict(self.manifest["stages"])
        except QdqError:
            self._release()
            raise
        return self

    def _acquire(self, lock: int) -> None:
        """The kernel releases the lock when the process ends, however it ends."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkError(
                f"{self.path}: another qdq run is working here; wait for it, or choose another --out (OUT=)"
            ) from None
        except OSError as error:  # some network file systems have no locks
            raise write_failure(self.path / LOCK, error) from error

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and not self.manifest["stages"] and not self._kept:
            self._withdraw()
        self._release()

    def _withdraw(self) -> None:
        """Remove the folders this run created; a parent only if nobody has put anything else there since."""
        if self._created:
            shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.path / LOCK).unlink(missing_ok=True)
            for parent in self._created[1:]:
                parent.rmdir()

    def _read_manifest(self) -> dict[str, Any]:
        empty = {"qdq": __version__, "seed": SEED, "versions": {}, "options": {}, "stages": {}}
        if not (self.path / MANIFEST).is_file():
            return empty
        found = read_json(self.path / MANIFEST)
        if not isinstance(found, dict) or not isinstance(found.get("stages"), dict):
            return empty
        if found.get("qdq") != __version__:  # its options and records may mean something else
            return {**empty, "versions": found.get("versions", {})}
        return found

    def keep(self) -> None:
        """Keep what is here even if this run completes nothing, for a report that says why."""
        self._kept = True

    def written(self, stage: str) -> tuple[Path, ...]:
        """The files and folders `stage` wrote in an earlier run, as that run recorded them."""
        return tuple(self.path / name for name in self.found.get(stage, {}).get("outputs", ()))

    def made_from(self, stage: str, inputs: Mapping[str, Any]) -> bool:
        """True when `stage` was completed with the same inputs."""
        record = self.manifest["stages"].get(stage)
        return bool(record) and record["inputs"] == sha256_json(inputs)

    def fresh(self, stage: str, inputs: Mapping[str, Any]) -> bool:
        """True when `stage` was completed with the same inputs and its outputs are still what it wrote."""
        if not self.made_from(stage, inputs):
            return False
        record = self.manifest["stages"][stage]
        return all(
            (self.path / name).exists() if digest == PRESENT else _hash(self.path / name) == digest
            for name, digest in record["outputs"].items()
        )

    def complete(
        self, stage: str, inputs: Mapping[str, Any], outputs: Sequence[Path], varying: Sequence[Path] = ()
    ) -> None:
        """Record `stage` as done. `varying` outputs hold timings: only their presence is recorded."""
        digests = {path.relative_to(self.path).as_posix(): _hash(path) for path in outputs}
        digests |= {path.relative_to(self.path).as_posix(): PRESENT for path in varying}
        self.manifest["stages"][stage] = {"inputs": sha256_json(inputs), "outputs": digests}
        self.write_manifest()

    def forget(self, stage: str) -> None:
        """Drop the record of a stage that is about to run, so that a kill in the middle cannot leave it valid."""
        if self.manifest["stages"].pop(stage, None) is not None:
            self.write_manifest()

    def write_manifest(self) -> None:
        """Write manifest.json."""
        write_json(self.path / MANIFEST, self.manifest)


def _hash(path: Path) -> str:
    """Content hash of a file or folder, "" when it is not there."""
    if path.is_dir():
        return sha256_tree(path)
    return sha256_file(path) if path.is_file() else ""


def fingerprint(path: Path) -> str:
    """Content hash of a stage's input artifact. Raises WorkError when it is missing."""
    digest = _hash(path)
    if not digest:
        raise WorkError(f"{path} does not exist; run the stage that writes it first ('qdq --help' lists the stages)")
    return digest
