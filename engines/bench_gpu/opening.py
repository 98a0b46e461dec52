"""Opening of a GPU through whichever CUDA binding is installed."""

from __future__ import annotations

from contextlib import AbstractContextManager

from engines.bench_gpu.device import Device
from qdq.errors import Unavailable

INSTALL = (
    "pip install pycuda (needs the CUDA toolkit's headers) or pip install 'cuda-bindings>=12' (needs the driver only)"
)


def open_device(index: int = 0, spin: bool = True) -> AbstractContextManager[Device]:
    """GPU `index` of those this process may see, through pycuda or else cuda-python, until the `with` block ends.

    `spin`: waiting polls, otherwise it blocks the thread. Raises Unavailable when neither binding can be imported or
    there is no such GPU, BuildError when a CUDA call fails inside the block.
    """
    try:
        from engines.bench_gpu import device_pycuda

        return device_pycuda.opened(index, spin)
    except ImportError as error:
        no_pycuda = str(error)
    try:
        from engines.bench_gpu import device_cudart

        return device_cudart.opened(index, spin)
    except ImportError as error:
        raise Unavailable(
            f"no Python binding of CUDA can be imported (pycuda: {no_pycuda}; cuda-python: {error}); {INSTALL}"
        ) from error
