"""Load a contestant of `qdq.studies.peers.race`, and measure in a process of its own what running it takes of memory.

``python -m qdq.studies.peers.memory OPENING.json FEEDS.npz`` prints the bytes: peak resident memory from before
loading to after a few calls, less what was resident before, with every library already imported.
"""

from __future__ import annotations

import importlib
import json
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import BuildError

if TYPE_CHECKING:
    from engines.types import Feeds, Runner
    from qdq.load.model import EncoderModule
    from qdq.studies.peers import Opening

CALLS = 3
LIBRARIES = {
    "torch": ("torch", "transformers.models.auto.modeling_auto", "qdq.load.model", "qdq.load.runner"),
    "openvino": ("openvino", "engines.openvino"),
    "onnxruntime": ("onnxruntime", "engines.onnxruntime"),
}
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def open_peer(opening: Opening, shape: tuple[int, ...]) -> Runner:
    """Any contestant, for feeds of `shape` [batch, sequence]. Raises QdqError when it cannot be loaded."""
    if opening.engine.startswith("torch"):
        from qdq.load.model import load_model
        from qdq.load.runner import TorchRunner

        module = load_model(opening.model, "text-classification").module()
        return TorchRunner(dynamic(module) if opening.engine == "torch-dynamic" else module, opening.threads)
    from qdq.studies.peers import open_runner

    return open_runner(opening, shape)


def dynamic(module: EncoderModule) -> EncoderModule:
    """torch's dynamic quantization of every linear."""
    import torch

    quantize: Any = torch.ao.quantization.quantize_dynamic
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated in favour of torchao
        quantized: EncoderModule = quantize(module, {torch.nn.Linear}, dtype=torch.qint8)
    return quantized


def measure_memory(opening: Opening, feeds: Feeds) -> int:
    """Bytes a process needs beyond its libraries to load and run the contestant on `feeds`.

    Raises BuildError when that process fails.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="qdq-memory-") as scratch:
        path, arrays = Path(scratch) / "opening.json", Path(scratch) / "feeds.npz"
        path.write_text(json.dumps(opening.as_json()), encoding="utf-8")
        named: dict[str, Any] = dict(feeds)
        np.savez(arrays, **named)
        command = [sys.executable, "-m", "qdq.studies.peers.memory", str(path), str(arrays)]
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        raise BuildError(f"{opening.model}: its memory could not be measured: {last}")
    return int(ran.stdout.split()[-1])


def main(arguments: Sequence[str]) -> int:
    """In the process that is measured."""
    import numpy as np

    from qdq.studies.peers import Opening

    opening = Opening(**json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    feeds: Mapping[str, Any] = dict(np.load(arguments[1]))
    _import_libraries(opening.engine)
    before = _resident("VmRSS")
    _forget_peak()
    run = open_peer(opening, next(iter(feeds.values())).shape)
    for _ in range(CALLS):
        run(feeds)
    sys.stdout.write(f"{_resident('VmHWM') - before}\n")
    return 0


def _import_libraries(engine: str) -> None:
    for module in LIBRARIES["torch" if engine.startswith("torch") else engine]:
        importlib.import_module(module)
    if engine == "openvino":
        import openvino

        openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")  # loads the CPU plugin


def _forget_peak() -> None:
    """Let the kernel count the peak from here on (proc(5), clear_refs); where it cannot, importing counts, too."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return


def _resident(field: str) -> int:
    """Bytes of ``VmRSS`` (now) or ``VmHWM`` (peak)."""
    try:
        for line in STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024  # of getrusage(2), which knows the peak only
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
