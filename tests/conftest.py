"""What tests of every folder share."""

from __future__ import annotations

import contextlib
import gc
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """`with full_disk(size)`: files of this process end at `size` bytes; the kernel says EFBIG, a full disk ENOSPC."""

    @contextlib.contextmanager
    def limited(size: int) -> Iterator[None]:
        whole = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, whole[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, whole)

    return limited


@pytest.fixture(scope="module")
def light_collections() -> Iterator[None]:
    """What is in memory already is left out of garbage collections, which timing code runs in full."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
