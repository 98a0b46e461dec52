"""Child process of `probe`: load one thing that may crash, print one JSON line {"answer": …, "reason": …}.

Run as a file, with the standard library only; whatever happens here cannot harm the parent.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys

CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute numbers of the CUDA driver API


def gpu() -> tuple[str | None, str]:
    """Name and compute capability of the first device, asked from the driver library itself."""
    # The driver library, and a device that it sees.
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return None, f"the driver library {library} is not there"
    if status := driver.cuInit(0):
        return None, f"the driver answered error {status}"
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        return None, "the driver sees no device"
    device = ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), 0)
    # Its name and capability.
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    major, minor = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(major), CAPABILITY_MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), CAPABILITY_MINOR, device)
    return f"{name.value.decode(errors='replace')}, compute capability {major.value}.{minor.value}", ""


def module(name: str) -> tuple[str | None, str]:
    """Version of a module that imports."""
    try:
        found = importlib.import_module(name)
    except (ImportError, OSError) as error:
        return None, str(error).splitlines()[0] if str(error) else type(error).__name__
    return str(getattr(found, "__version__", getattr(found, "VERSION_TEXT", "unknown"))), ""


if __name__ == "__main__":
    answer, reason = gpu() if sys.argv[1] == "gpu" else module(sys.argv[1])
    sys.stdout.write(json.dumps({"answer": answer, "reason": reason}) + "\n")
