"""Data of a compression: any map-style dataset as named tensors, its labels checked before anything is trained."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from transformers import PreTrainedModel
from transformers.utils.generic import find_labels

from qdq.errors import DataError
from qdq.tasks.heads import head_of_model

CLASS_COLUMNS = ("labels", "label", "label_ids")
# A class of start and end for each sample, or, as UIE has them, a number for every token
SPAN_COLUMNS = (("start_positions", "end_positions"), ("start_ids", "end_ids"))
LABEL_COLUMNS = (*CLASS_COLUMNS, *(name for pair in SPAN_COLUMNS for name in pair))
IGNORED_LABEL = -100  # torch's cross-entropy skips it
SOME_ROWS = 100  # that are read twice, to see whether a data set gives the same rows again


@dataclass(frozen=True)
class Labels:
    """Columns of a batch that hold its labels: `names` (the option `label_names`), without any the usual ones."""

    names: tuple[str, ...] = ()

    def columns(self, batch: Mapping[str, Any]) -> tuple[str, ...]:
        """Columns of `batch` with its labels, () when it has none; a pair before a single one."""
        if self.names:
            return self.names if all(name in batch for name in self.names) else ()
        usual = (*SPAN_COLUMNS, *((name,) for name in CLASS_COLUMNS))
        return next((names for names in usual if all(name in batch for name in names)), ())

    def of(self, batch: Mapping[str, Any]) -> Any:
        """The labels as a criterion takes them: one tensor, or a tuple such as (start, end). Raises DataError."""
        found = self.columns(batch)
        if not found:
            wanted = f"no {' or no '.join(self.names)}, which label_names names" if self.names else "no labels"
            advice = "correct label_names" if self.names else "add a column 'labels', or name them in label_names"
            raise DataError(f"a batch has {wanted} (its columns: {', '.join(batch)}); {advice}")
        return batch[found[0]] if len(found) == 1 else tuple(batch[name] for name in found)

    def without(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The model inputs of a batch."""
        left_out = {*LABEL_COLUMNS, *self.names}
        return {name: value for name, value in batch.items() if name not in left_out}


class NamedTensors(Dataset[dict[str, Any]]):
    """A dataset of tuples, such as TensorDataset, as a dataset of dictionaries."""

    def __init__(self, source: Any, names: Sequence[str]) -> None:
        self.source, self.names = source, tuple(names)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(zip(self.names, self.source[index], strict=True))


def named(dataset: Any, model: PreTrainedModel, what: str, label_names: Sequence[str] = ()) -> Any:
    """`dataset` itself when its items are mappings, else with names for the tensors of each item.

    Tuples are read as a transformers model takes them: the first tensors are the model's first inputs (input_ids,
    attention_mask, token_type_ids, …), the last ones its labels (`label_names`; without them one, or start and end
    positions). Raises DataError for a dataset without items or length, and for items of another kind.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(f"{what}: is not a map-style dataset (it has no length or no indexing); give one that has both")
    if len(dataset) == 0:
        raise DataError(f"{what}: is empty; give at least one sample")
    first = dataset[0]
    if hasattr(first, "keys"):
        return dataset
    if not isinstance(first, (tuple, list)) or len(first) < 2:
        raise DataError(f"{what}: items are {type(first).__name__}; they must be mappings or tuples of tensors")
    labels = label_names or find_labels(type(model)) or ["labels"]  # type: ignore[no-untyped-call]
    inputs = [name for name in inspect.signature(model.forward).parameters if name not in labels]
    return NamedTensors(dataset, [*inputs[: len(first) - len(labels)], *labels])


def check_labels(dataset: Any, model: PreTrainedModel, what: str, labels: Labels | None = None) -> None:
    """Raise DataError naming the first sample whose label is missing or not what the model's head takes."""
    count = int(model.config.num_labels or 0)
    if "Classification" not in type(model).__name__ or count < 1:
        return
    kind = head_of_model(model).kind
    for index, value in enumerate(_label_values(dataset, what, labels or Labels())):
        if fault := _fault(value, kind, count):
            raise DataError(f"{what}: sample {index} {fault}")


def _fault(value: Any, kind: str, count: int) -> str:
    """Describe why a head of this kind with `count` logits cannot take a label, and the way out; "" when it can."""
    try:
        labels = torch.as_tensor(value).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        return f"has the label {value!r}; give numbers"
    # Heads of floats: one per class, or scores
    if kind == "multi-label" or (kind == "classes" and labels.is_floating_point()):
        if kind == "classes":
            return (
                "has a label with a decimal point, and the model's head gives one class; give whole numbers, or set "
                'model.config.problem_type ("multi_label_classification" for several classes)'
            )
        right = len(labels) == count and labels.is_floating_point() and bool(((labels == 0) | (labels == 1)).all())
        return "" if right else f"has the label {value!r}; a multi-label head needs {count} floats, each 0.0 or 1.0"
    if kind == "scores":
        right = len(labels) == count and labels.is_floating_point() and bool(labels.isfinite().all())
        return "" if right else f"has the label {value!r}; a head of scores needs {count} finite float(s)"
    # Class numbers
    bad = labels[(labels != IGNORED_LABEL) & ((labels < 0) | (labels >= count))]
    if not len(bad):
        return ""
    return (
        f"has label {int(bad[0])} and the model's head has {count} classes (0 to {count - 1}); correct the labels, or "
        f"load the model with num_labels={int(bad[0]) + 1}"
    )


def _label_values(dataset: Any, what: str, labels: Labels) -> Iterator[Any]:
    names = labels.columns(dataset[0])
    if not names:
        wanted = " and ".join(labels.names) or "labels"
        raise DataError(
            f"{what}: sample 0 has no {wanted} (its columns: {', '.join(dataset[0])}); add a column 'labels', or name "
            "it in label_names"
        )
    columns = getattr(dataset, "column_names", None)
    if columns is not None and names[0] in columns:  # without decoding the other columns
        return iter(dataset[names[0]])
    return (dataset[index][names[0]] for index in range(len(dataset)))


@dataclass(frozen=True)
class Batches:
    """A dataset with its collator; `loader` gives its batches in data order, on every rank all of them."""

    dataset: Any
    collate: Callable[[list[Any]], dict[str, Tensor]]
    batch_size: int
    device: torch.device
    labels: Labels = Labels()

    def loader(self, batch_size: int | None = None) -> DataLoader[Any]:
        """A plain loader of host tensors, as `custom_evaluate` gets it on a CPU."""
        return DataLoader(self.dataset, batch_size or self.batch_size, shuffle=False, collate_fn=self.collate)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self.of_size(self.batch_size)

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def of_size(self, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Batches of another size, on the training device."""
        yield from self._on_device(self.loader(batch_size))

    def by_length(self) -> Iterator[dict[str, Tensor]]:
        """All samples, shortest first, so that little is padding; for metrics, which do not depend on the order."""
        lengths = lengths_of(self.dataset)
        order = sorted(range(len(lengths)), key=lambda index: lengths[index])
        yield from self._on_device(DataLoader(Subset(self.dataset, order), self.batch_size, collate_fn=self.collate))

    def _on_device(self, loader: DataLoader[Any]) -> Iterator[dict[str, Tensor]]:
        for batch in loader:
            yield {name: tensor.to(self.device) for name, tensor in batch.items() if isinstance(tensor, Tensor)}


def lengths_of(dataset: Any) -> list[int]:
    """Tokens of every sample; all the same where samples have no input_ids."""
    samples = (dataset[index] for index in range(len(dataset)))
    return [len(sample["input_ids"]) if "input_ids" in sample else 0 for sample in samples]


def digest_of(rows: Any) -> str:
    """Hash of every row, by which other data are noticed, be it one corrected label.

    "" is the hash of no rows, and of rows that are different whenever they are asked for.
    """
    if rows is None:
        return ""
    some = range(min(SOME_ROWS, len(rows)))
    return _digest(rows, range(len(rows))) if _digest(rows, some) == _digest(rows, some) else ""


def _digest(rows: Any, numbers: range) -> str:
    digest = hashlib.sha256(str(len(rows)).encode())
    for number in numbers:
        row = rows[number]
        for name in sorted(row):
            value = row[name]
            digest.update(f"{name} {value.tolist() if hasattr(value, 'tolist') else value!r}".encode())
    return digest.hexdigest()


class LengthGrouped(Sampler[int]):
    """Sample numbers in which every `batch_size` neighbours are of similar length, the batches in random order.

    The order depends on seed and epoch alone, so that a run that continues sees the batches it would have seen:
    transformers' own sampler takes it from the global random state, and leaves every fiftieth of an epoch sorted.
    """

    BATCHES_SORTED = 32  # at once: enough for little padding, few enough that batches differ in every epoch

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Take the epoch that follows from the Trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1000 + self.epoch)
        order: list[int] = torch.randperm(len(self.lengths), generator=generator).tolist()
        size = self.batch_size * self.BATCHES_SORTED
        parts = [sorted(order[i : i + size], key=lambda n: self.lengths[n]) for i in range(0, len(order), size)]
        order = [number for part in parts for number in part]
        whole = len(order) // self.batch_size  # a smaller batch at the end stays there
        batches = torch.randperm(whole, generator=generator).tolist()
        for batch in [*batches, *range(whole, -(-len(order) // self.batch_size))]:
            yield from order[batch * self.batch_size : (batch + 1) * self.batch_size]
