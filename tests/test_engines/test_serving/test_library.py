"""A text model carries all of this project that it needs, and no more: it starts where nothing of ours is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engines.triton.text.library import SERVING, library

INSTALLED = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]


@pytest.mark.parametrize("engine", [(), ("engines.onnxruntime",), ("engines.openvino",)])
def test_the_library_can_be_imported_alone(tmp_path: Path, engine: tuple[str, ...]) -> None:
    files = library((SERVING, *engine))
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, tmp_path / name)
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; sys.path += {INSTALLED!r}\n"
        f"import {', '.join((SERVING, *engine))}, engines, qdq\n"
        "ours = [m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] in ('engines', 'qdq', 'export')]\n"
        f"assert all(file.startswith({str(tmp_path)!r}) for file in ours), ours\n"
        "print(sorted({'torch', 'transformers', 'onnx', 'tritonclient'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr


def test_other_engines_stay_out() -> None:
    names = library((SERVING, "engines.openvino"))
    assert "engines/openvino/runner.py" in names and "engines/pieces.py" in names
    assert not [name for name in names if name.startswith(("export/", "engines/tensorrt", "engines/onnxruntime"))]
