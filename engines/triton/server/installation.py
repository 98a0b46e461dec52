"""The tritonserver of this machine: the one on PATH, or that of the package nvidia-pytriton, which needs no GPU."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.targets import TARGETS
from engines.triton.text.readme import NUMPY
from qdq.errors import Unavailable

PACKAGE = "nvidia-pytriton"
# Its python backend is built with pybind11 2.10, which knows the arrays of numpy 1 only: a model that echoes its inputs
# answers with numpy 1.26.4 and ends its process with 2.4.6. Everything else here needs numpy 2.
PINS = f"{PACKAGE}==0.7.0 {NUMPY}"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = "triton_python_backend_stub"
STAND_IN, IDS = Path(__file__).with_name("stand_in_template.py"), Path(__file__).parents[1] / "ids.py"


@dataclass(frozen=True)
class Installation:
    """A tritonserver.

    Attributes:
        binary: the program.
        package: folder of the package's server, None for one that is installed as a whole, with backends of its own.
        libraries: folders that its dynamic linker looks into.
        packages: folder of Python packages that its models see before those that are installed.
    """

    binary: Path
    package: Path | None = None
    libraries: tuple[Path, ...] = ()
    packages: Path | None = None

    @property
    def caches(self) -> Path | None:
        """Folder of its response caches; None where it knows itself."""
        return self.package / "caches" if self.package else None

    def environment(self, folder: Path) -> Mapping[str, str]:
        """Variables to start it with; for the package's server, with a Python environment in `folder`."""
        found = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        if self.packages is None:
            return found
        ours = {"PATH": (_python(folder, self.packages),), "LD_LIBRARY_PATH": self.libraries}
        before = {name: [*map(str, folders), *filter(None, [os.environ.get(name)])] for name, folders in ours.items()}
        return found | {name: os.pathsep.join(folders) for name, folders in before.items()}

    def backends(self, folder: Path) -> Path | None:
        """Fill `folder` with the package's python backend and with stand-ins, in Python, for Triton's own CPU backends.

        None for a server that has backends of its own.
        """
        if self.package is None:
            return None
        python = folder / "python"
        python.mkdir(parents=True)
        for file in (*(self.package / "backends" / "python").iterdir(), _stub(self.package)):
            shutil.copy2(file, python / file.name)  # a link is refused, as a way out of the folder
        for name in sorted({backend for target in TARGETS.values() if not target.gpu for backend in target.backends}):
            (folder / name).mkdir()
            shutil.copyfile(STAND_IN, folder / name / "model.py")
            shutil.copyfile(IDS, folder / name / IDS.name)
        return folder


def find() -> Installation:
    """The server to start. Raises Unavailable naming what is missing."""
    if found := shutil.which("tritonserver"):
        return Installation(Path(found))
    packages = folder()
    package = packages / "pytriton" / "tritonserver"
    if not (package / "bin" / "tritonserver").is_file() or not (packages / "numpy").is_dir():
        raise Unavailable(
            f"no tritonserver on PATH, and {PACKAGE} is not in {packages}; run pip install --no-deps --target "
            f"{packages} {PINS} (make setup does), or use NGC's image"
        )
    _stub(package)
    libraries = (packages / "nvidia_pytriton.libs", _library_folder())
    return Installation(package / "bin" / "tritonserver", package, libraries, packages)


def folder() -> Path:
    """The folder of this Python's environment with the package's server, apart from all else: it needs numpy 1."""
    return Path(sys.prefix) / "serve"


def _python(folder: Path, packages: Path) -> Path:
    """A Python environment of this Python that has `packages` before all that is installed; the folder for PATH.

    Not PYTHONPATH, which the python backend ignores.
    """
    programs, site = folder / "bin", folder / "lib" / f"python{VERSION}" / "site-packages"
    programs.mkdir(parents=True)
    site.mkdir(parents=True)
    for name in ("python", "python3"):
        (programs / name).symlink_to(Path(sys._base_executable))  # type: ignore[attr-defined]  # of a venv, whose it is
    (folder / "pyvenv.cfg").write_text(f"home = {Path(sys.base_prefix) / 'bin'}\n", encoding="utf-8")
    installed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    lines = ("import sys; sys.dont_write_bytecode = True", packages, *installed)  # a repository stays as it was written
    (site / "installed.pth").write_text("\n".join(map(str, lines)) + "\n", encoding="utf-8")
    return programs


def _stub(package: Path) -> Path:
    stub = package / "python_backend_stubs" / VERSION / STUB
    if not stub.is_file():
        raise Unavailable(f"{PACKAGE} has no python backend for Python {VERSION} ({stub}); use another Python")
    return stub


def _library_folder() -> Path:
    """Folder of this Python's shared library, which the python backend's process embeds."""
    name = f"libpython{VERSION}.so.1.0"
    folders = [Path(str(sysconfig.get_config_var(key))) for key in ("LIBDIR", "LIBPL")]
    folders += [Path("/usr/lib") / str(sysconfig.get_config_var("MULTIARCH")), Path("/usr/lib64"), Path("/usr/lib")]
    found = next((folder for folder in folders if (folder / name).is_file()), None)
    if found is None:
        raise Unavailable(
            f"Triton's python backend needs {name}, which is in none of {', '.join(map(str, folders))}; on Debian: apt "
            f"install libpython{VERSION}, or a Python built with --enable-shared"
        )
    return found
