"""Width-pruned models in transformers' Auto classes without importing transformers, which `qdq --help` cannot wait for.

transformers has no plug-in mechanism. What it needs to know is registered at once where its Auto classes have been
imported already, and otherwise by an import hook at the moment they are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

AUTO = "transformers.models.auto.configuration_auto"  # the module with the mapping that `register` extends


def register_with_transformers() -> None:
    """Make AutoConfig and the AutoModel classes know pruned models, now or when they are imported."""
    if AUTO in sys.modules:
        _register()
    elif not any(isinstance(finder, _AutoClasses) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoClasses())


def _register() -> None:
    from qdq.load.pruned import register

    register()


class _AutoClasses(MetaPathFinder):
    """Finds nothing itself: has the Auto classes' module registered with after whoever finds it has executed it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of the other finders; only for one module."""
        if name != AUTO:
            return None
        specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                sys.meta_path.remove(self)
                _register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]  # of this one loader object
        return spec
