"""CUDA graphs through the driver library itself, for pycuda, which has no names for them.

Function names are those the library exports; `cuda.h` maps the undecorated ones to them (its `cuGraphInstantiate` is
`cuGraphInstantiateWithFlags` since CUDA 12; the latter exists since 11.4).
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

from qdq.errors import BuildError

THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile does not break the capture
POINTER, POINTER_TO = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)  # handles are pointers
SIGNATURES: dict[str, tuple[Any, ...]] = {  # argument types; every function returns a CUresult
    "cuStreamBeginCapture_v2": (POINTER, ctypes.c_int),
    "cuStreamEndCapture": (POINTER, POINTER_TO),
    "cuGraphInstantiateWithFlags": (POINTER_TO, POINTER, ctypes.c_ulonglong),
    "cuGraphLaunch": (POINTER, POINTER),
    "cuGraphDestroy": (POINTER,),
    "cuGraphExecDestroy": (POINTER,),
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}


def capture(stream: int, launch: Callable[[], None]) -> tuple[Callable[[], None], Callable[[], None]]:
    """Record what `launch` issues on `stream` (a CUstream handle) as a graph: (replay it there, destroy it).

    Destroy it before the CUDA context goes. Raises BuildError when capturing fails, as replaying does.
    """
    driver, graph, executable = library(), ctypes.c_void_p(), ctypes.c_void_p()
    _check(driver.cuStreamBeginCapture_v2(stream, THREAD_LOCAL))
    try:
        launch()
    finally:  # a stream left in capture mode refuses everything else
        status = driver.cuStreamEndCapture(stream, ctypes.byref(graph))
    _check(status)
    try:
        _check(driver.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, 0))
    finally:
        driver.cuGraphDestroy(graph)
    launch_graph = driver.cuGraphLaunch  # looked up once: replays are what is timed

    def replay() -> None:
        if status := launch_graph(executable, stream):
            raise BuildError(f"a CUDA graph cannot be launched: {_reason(status)}; time without CUDA graph")

    return replay, lambda: driver.cuGraphExecDestroy(executable)


@functools.cache
def library() -> ctypes.CDLL:
    """The driver library with the signatures above. Raises BuildError when it is missing or too old."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
        for function, arguments in SIGNATURES.items():
            getattr(driver, function).argtypes = arguments
    except (OSError, AttributeError) as error:
        raise BuildError(
            f"{name} has no CUDA graphs ({error}); update the driver or time without CUDA graph"
        ) from error
    return driver


def _check(status: int) -> None:
    if status:
        raise BuildError(f"a launch cannot be captured as a CUDA graph: {_reason(status)}; time without CUDA graph")


def _reason(status: int) -> str:
    text = ctypes.c_char_p()
    library().cuGetErrorString(status, ctypes.byref(text))
    return (text.value or b"unknown error").decode(errors="replace") + f" (CUresult {status})"
