"""Opening of a GPU through whichever CUDA binding is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from engines.bench_gpu.device import Device
from qdq.errors import Unavailable

INSTALL = (
    "pip install pycuda (needs the CUDA toolkit's headers) or pip install 'cuda-bindings>=12' (needs the driver only)"
)


@contextmanager
def open_device(index: int = 0, spin: bool = True) -> Iterator[Device]:
    """GPU `index` of those this process may see, through pycuda or else cuda-python, until the block ends.

    `spin`: waiting polls, otherwise it blocks the thread. Raises Unavailable when neither binding can be imported or
    there is no such GPU, BuildError when a CUDA call fails inside the block.
    """
    with _binding()(index, spin) as device:
        yield device


def _binding() -> Callable[[int, bool], AbstractContextManager[Device]]:
    try:
        from engines.bench_gpu import device_pycuda

        return device_pycuda.opened
    except ImportError as error:
        no_pycuda = str(error)
    try:
        from engines.bench_gpu import device_cudart

        return device_cudart.opened
    except ImportError as error:
        raise Unavailable(
            f"no Python binding of CUDA can be imported (pycuda: {no_pycuda}; cuda-python: {error}); {INSTALL}"
        ) from error
