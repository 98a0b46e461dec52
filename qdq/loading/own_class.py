"""Model classes of the user's own: imported only where the user names them, recorded beside their checkpoints.

A class is named as ``FILE.py:CLASS`` or ``package.module:CLASS``. Whoever writes a checkpoint of one leaves
``model_class.json`` and a copy of the class's source file in the folder. Both are data: a checkpoint is loaded with its
own class when `--model-class` names it, and refused otherwise, because another class would give other answers.

What the forward of such a class returns becomes the outputs of the graph: those of a mapping (transformers'
ModelOutput) under their names; a tensor, or a tuple of them, under the names of the task where it has as many, else
under those that the class lists in `output_names`, else output_0, output_1, …
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import write_json
from qdq.base.choices import INFORMATION_EXTRACTION
from qdq.errors import ConfigError, ModelError
from qdq.loading.kinds import SENTENCE_EMBEDDING, TASKS, Task
from qdq.loading.source import read_object

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

RECORD = "model_class.json"
BESIDE = ("loss", "hidden_states", "attentions", "past_key_values", "cross_attentions")  # returned, but no answers
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PROJECTS = ("transformers", "qdq")  # whose classes are loaded by their names


def original_class(cls: type) -> type:
    """The class of the user's behind a pruned one, which is made from it; any other class itself."""
    return cls.__bases__[1] if cls.__module__ == "qdq.loading.pruned" and len(cls.__bases__) == 2 else cls


def is_own(cls: type) -> bool:
    """True for a class that neither transformers nor this project brings."""
    return original_class(cls).__module__.partition(".")[0] not in PROJECTS


def import_class(reference: str) -> type[PreTrainedModel]:
    """Import the class that ``FILE.py:CLASS`` or ``package.module:CLASS`` names; runs the code of that file.

    Raises ConfigError for a name that leads nowhere, ModelError for one that is no class of a model.
    """
    from transformers import PreTrainedModel

    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise ConfigError(f"--model-class: '{reference}' is no FILE.py:CLASS and no package.module:CLASS")
    module = _from_file(Path(place).expanduser()) if place.endswith(".py") else _by_name(place)
    found = getattr(module, name, None)
    if found is None:
        raise ConfigError(
            f"--model-class: {place} has no class {name}; it has {', '.join(_models_of(module)) or 'none'}"
        )
    if not isinstance(found, type) or not issubclass(found, PreTrainedModel):
        raise ModelError(
            f"--model-class: {reference} is no subclass of transformers' PreTrainedModel; derive it from one"
        )
    return found


def _models_of(module: ModuleType) -> list[str]:
    from transformers import PreTrainedModel

    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, PreTrainedModel) and value.__module__ == module.__name__
    ]


def _from_file(path: Path) -> ModuleType:
    """The module of a file; the one that is in memory already, such as the script that runs, is not run again."""
    path = path.resolve()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file is not None and Path(file).resolve() == path:
            return module
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"--model-class: {path} is no Python file; check the path")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with _beside(path.parent):
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # the user's own code may raise anything
            del sys.modules[spec.name]
            raise ModelError(f"--model-class: {path} cannot be imported ({type(error).__name__}: {error})") from error
    return module


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Let a file import its neighbours, as a script does."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _by_name(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"--model-class: cannot import {name} ({error}); name a file as FILE.py:CLASS") from error
    except Exception as error:  # the user's own code may raise anything
        raise ModelError(f"--model-class: {name} cannot be imported ({type(error).__name__}: {error})") from error


def reference_to(cls: type) -> str | None:
    """The text that `import_class` reads a class from; None for one that no name leads to, such as a function's."""
    cls = original_class(cls)
    module = sys.modules.get(cls.__module__)
    if module is None or getattr(module, cls.__qualname__, None) is not cls:
        return None
    file = getattr(module, "__file__", None)
    if file is None or getattr(module, "__package__", None):  # imports of a package's module need its package
        return f"{cls.__module__}:{cls.__qualname__}" if cls.__module__ != "__main__" else None
    path, here = Path(file).resolve(), Path.cwd()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{cls.__qualname__}"


def record_class(folder: Path, cls: type) -> None:
    """Leave in `folder` the name of an own class and a copy of the file it stands in; nothing for any other class."""
    if not is_own(cls):
        return
    reference = reference_to(cls)
    place, _, name = (reference or f":{original_class(cls).__qualname__}").rpartition(":")
    source = Path(place).name if place.endswith(".py") else None
    if source is not None:
        shutil.copyfile(place, folder / source)
    write_json(folder / RECORD, {"class": name, "named": reference, "source": source})


def require_named(folder: Path, named: str | None) -> None:
    """Raise ModelError for a checkpoint of an own class when the user named none."""
    if named is not None or not (folder / RECORD).is_file():
        return
    record = read_object(folder / RECORD)
    name, reference, source = (record.get(key) for key in ("class", "named", "source"))
    if reference is None:
        advice = (
            "which no name leads to: define it at the top of a file, load these weights with it and save them again"
        )
    else:
        advice = f"code that is not run unless you name it: give --model-class {reference}"
        advice += f" (its copy there: {folder / source}:{name})" if source else ""
    raise ModelError(f"{folder}: is of the class {name}, {advice}")


def name_foreign_classes(folder: Path, architectures: Sequence[str] | None) -> str:
    """Return one line on classes in config.json that transformers does not have, so that another is run, else ""."""
    import transformers

    ours = TASKS[INFORMATION_EXTRACTION].suffixes
    strange = [
        name
        for name in architectures or ()
        if not hasattr(transformers, name.removeprefix("Pruned")) and not name.endswith(ours)
    ]
    if not strange:
        return ""
    return (
        f"{folder}: was saved from {', '.join(strange)}, which is no class of transformers, and is read as one of "
        "theirs; where its forward differs, name it with --model-class"
    )


def class_for(cls: type[PreTrainedModel], config: PreTrainedConfig, folder: Path) -> type[PreTrainedModel]:
    """The class that loads a checkpoint with `config`: the user's `cls`, narrowed where the config is a pruned one's.

    Raises ModelError when the class is not for the config's family or keeps its encoder where nothing finds it.
    """
    from qdq.loading.pruned import PREFIX, pruned_class

    wanted = getattr(cls.config_class, "model_type", None)
    family = config.model_type.removeprefix(PREFIX)
    if wanted is not None and wanted != family:
        raise ModelError(f"{folder}: is of family '{family}', and {cls.__name__} is a class of '{wanted}'")
    takes = forward_inputs(cls)
    for name in ("input_ids", "attention_mask"):
        if name not in takes:
            raise ModelError(f"{cls.__name__}: its forward takes no {name}, without which padding counts; add it")
    return pruned_class(cls, config) if config.model_type.startswith(PREFIX) else cls


def forward_inputs(cls: type) -> tuple[str, ...]:
    """Names among `INPUTS` that the forward of a class takes."""
    parameters = inspect.signature(original_class(cls).forward).parameters  # type: ignore[attr-defined]  # a module
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return tuple(name for name in INPUTS if open_ended or name in parameters)


def require_encoder(model: PreTrainedModel) -> None:
    """Raise ModelError for an own class whose encoder is not where its `base_model_prefix` says."""
    if is_own(type(model)) and not hasattr(model, model.base_model_prefix):
        name = original_class(type(model)).__name__
        inside = [path for path, part in model.named_children() if hasattr(part, "config")]
        raise ModelError(
            f"{name}: has no attribute '{model.base_model_prefix}' (its base_model_prefix), where its encoder is "
            f"looked for; set base_model_prefix = '{inside[0] if inside else 'the name of the encoder'}' in the class"
        )


def outputs_of(result: Any, task: Task, cls: type) -> dict[str, Tensor]:
    """Tensors that a forward of an own class returned, by the names described above.

    Raises ModelError when there are none, or when the task reads others.
    """
    from torch import Tensor

    if isinstance(result, Mapping):
        found = {str(name): value for name, value in result.items() if isinstance(value, Tensor) and name not in BESIDE}
    else:
        several = result if isinstance(result, (tuple, list)) else (result,)
        values = [value for value in several if isinstance(value, Tensor)]
        found = dict(zip(_names(values, task, getattr(cls, "output_names", ())), values, strict=True))
    name = original_class(cls).__name__
    if not found:
        raise ModelError(f"{name}: its forward returns {type(result).__name__} without a tensor; return logits")
    missing = [name for name in task.outputs if name not in found]
    if missing and task.name != "feature-extraction":
        raise ModelError(
            f"{name}: {task.name} reads {missing[0]}, and its forward returns {', '.join(found)}; name them in "
            "output_names of the class, or give --task feature-extraction, which compares every output with FP32"
        )
    return found


def _names(values: Sequence[Tensor], task: Task, listed: Sequence[str]) -> tuple[str, ...]:
    if len(listed) == len(values):
        return tuple(listed)
    if task.name == "feature-extraction":
        if len(values) == 1:
            return task.outputs if values[0].dim() == 3 else (SENTENCE_EMBEDDING,)
    elif len(task.outputs) == len(values):
        return task.outputs
    return tuple(f"output_{number}" for number in range(len(values)))


def names_of(model: PreTrainedModel, task: Task, inputs: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(outputs of an own class, those of them that have a value per token), from two forwards of other lengths.

    Raises ModelError as `outputs_of`, and for an output that does not begin with the batch.
    """
    import torch

    # Two texts of five and of eight tokens
    shapes = []
    for length in (5, 8):
        feed = {name: torch.ones((2, length), dtype=torch.int64) for name in inputs}
        feed |= {"token_type_ids": torch.zeros((2, length), dtype=torch.int64)} if "token_type_ids" in inputs else {}
        with torch.inference_mode():
            found = outputs_of(model(**feed), task, type(model))
        shapes.append({name: tuple(value.shape) for name, value in found.items()})
    # Sizes that follow the length
    for name, shape in shapes[0].items():
        if len(shape) < 2 or shape[0] != 2:
            raise ModelError(
                f"{original_class(type(model)).__name__}: its output {name} is {list(shape)} for 2 texts; return "
                "[batch, ...]"
            )
    short, long = shapes
    return tuple(short), tuple(name for name in short if (short[name][1], long[name][1]) == (5, 8))
