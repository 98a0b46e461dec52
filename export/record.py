"""Recording a module: its torch calls as a list, with every size that depends on batch or sequence told apart.

The module runs twice, eagerly, on inputs of different sizes and values. Every torch function that makes a tensor is one
`Call`. Whatever differs between the two lists must be a size; an integer that is equal in both is a constant, and so is
what is made of constants alone. What cannot be told so raises `Unrecorded`: a decision by a tensor's value, or a size
that is no product of the graph's dimensions.

That takes a fraction of a second where `torch.export` takes many: no symbolic arithmetic, no decompositions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, zip_longest
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

# Primes, so that a product of two names both of its factors; and no half, third or neighbour of one is another
SIZES = {"batch": (3, 7), "choices": (2, 5), "sequence": (11, 17)}
PAIR = "quantize_pair"  # a point's two nodes, see `qdq.inject.pair`; on a weight it is no constant either
LOOKED_AT = ("shape", "size", "dim", "ndim", "dtype", "device", "is_floating_point", "requires_grad", "layout", "type")


class Unrecorded(Exception):
    """The module cannot be recorded; the message says why, in a few words."""


@dataclass(frozen=True)
class Size:
    """A dimension that differs from call to call: the product of the graph's dimensions `names`."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Ref:
    """The tensor of this number: an input, or a result of an earlier call."""

    number: int


@dataclass(frozen=True)
class Constant:
    """A tensor that does not depend on the inputs; `name` of the parameter or buffer it is."""

    tensor: Tensor
    name: str | None


@dataclass(frozen=True)
class Result:
    """A tensor of the recording: its dimensions, and its element type."""

    shape: tuple[int | Size, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Call:
    """One torch function: its name, arguments with tensors as Ref or Constant, results, and the module that called."""

    function: str
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    results: tuple[int, ...]
    module: str


@dataclass(frozen=True)
class Recording:
    """The calls of a module in order; `tensors` by their numbers, of which the inputs are the first."""

    inputs: tuple[str, ...]
    calls: tuple[Call, ...]
    tensors: Mapping[int, Result]
    outputs: tuple[int, ...]


def record(module: nn.Module, example: Mapping[str, Tensor]) -> Recording:
    """Record `module`, called with the tensors of `example` by name; it returns a tuple of tensors.

    `example`: int64 [B, S] (or [B, N, S]); their values stand for any, their sizes do not count. Raises Unrecorded.
    """
    dimensions = ("batch", "choices", "sequence") if next(iter(example.values())).dim() == 3 else ("batch", "sequence")
    runs = []
    for turn in (0, 1):
        sizes = [SIZES[name][turn] for name in dimensions]
        runs.append(_run(module, {name: _resized(tensor, sizes, turn) for name, tensor in example.items()}))
    return _unified(tuple(example), *runs)


def _resized(tensor: Tensor, sizes: Sequence[int], turn: int) -> Tensor:
    """`tensor` repeated to `sizes`, and in the second turn back to front, with its last element zero (padding)."""
    for axis, size in enumerate(sizes):
        tensor = tensor.index_select(axis, torch.arange(size).remainder(tensor.shape[axis]))
    if turn:
        tensor = tensor.flip(-1)
        tensor[..., -1] = 0
    return tensor.contiguous()


@dataclass
class _Run:
    """Calls and tensors of one turn; tensors stay alive, so that an id is not given twice."""

    calls: list[Call]
    tensors: list[Tensor]
    outputs: tuple[int, ...]


class _Recorder(TorchFunctionMode):
    def __init__(self, module: nn.Module, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.paths = {id(part): path for path, part in module.named_modules()}
        # Of a shared parameter's names the last one, as torch's exporter does
        named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
        self.parameters = {id(tensor): name for name, tensor in named}
        self.stack = [""]
        self.run = _Run([], list(inputs), ())
        self.numbers = {id(tensor): number for number, tensor in enumerate(inputs)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords, name = dict(kwargs or {}), _name(func)
        # Rounding all weights would take most of the time, and no value counts
        result = args[0].detach() if name == PAIR else func(*args, **keywords)
        if name in LOOKED_AT:
            return result
        made = [result] if isinstance(result, Tensor) else result
        if not isinstance(made, tuple | list) or not all(isinstance(tensor, Tensor) for tensor in made):
            if self._depends((args, keywords)):
                raise Unrecorded(f"{self.stack[-1]} reads the value of a tensor ({name})")
            return result
        in_place = name.startswith("__i") or (name.endswith("_") and not name.startswith("_"))
        if in_place:
            self._check_alone(made[0], name)
        elif all(id(tensor) in self.numbers or id(tensor) in self.parameters for tensor in made):
            return result  # one of the arguments, unchanged: a cast to its own type, a dropout in eval mode
        arguments = self._frozen(args), {key: self._frozen(value) for key, value in keywords.items()}
        first = len(self.run.tensors)
        self.run.tensors += made
        numbers = tuple(range(first, first + len(made)))
        self.numbers |= {id(tensor): number for tensor, number in zip(made, numbers, strict=True)}
        function = name.removeprefix("__i").strip("_") if in_place else name.strip("_")
        self.run.calls.append(Call(function, *arguments, numbers, self.stack[-1]))
        return result

    def _check_alone(self, tensor: Tensor, name: str) -> None:
        """Raise Unrecorded where a change in place is more than a new value for one name: a view, or one with views."""
        place = tensor.untyped_storage().data_ptr()
        shared = [other for other in self.run.tensors if other.untyped_storage().data_ptr() == place]
        if any(other is not tensor for other in shared) or id(tensor) in self.parameters:
            raise Unrecorded(f"{self.stack[-1]} changes a tensor that others see, too ({name})")

    def _depends(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            return id(value) in self.numbers
        if isinstance(value, Mapping):
            return any(map(self._depends, value.values()))
        return isinstance(value, tuple | list) and any(map(self._depends, value))

    def _frozen(self, value: Any) -> Any:
        """An argument with its tensors as Ref or Constant."""
        if isinstance(value, Tensor):
            number = self.numbers.get(id(value))
            return Constant(value, self.parameters.get(id(value))) if number is None else Ref(number)
        if isinstance(value, tuple | list):
            return tuple(self._frozen(part) for part in value)
        return value

    @contextmanager
    def named(self) -> Iterator[None]:
        """Keep the path of the module at work on the stack."""
        before = hooks.register_module_forward_pre_hook(self._enter)
        after = hooks.register_module_forward_hook(self._leave)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        self.stack.append(self.paths.get(id(module), self.stack[-1]))

    def _leave(self, _: nn.Module, __: Any, ___: Any) -> None:
        self.stack.pop()


def _name(func: Callable[..., Any]) -> str:
    """Name of a torch function, or of the attribute that is read."""
    name = getattr(func, "__name__", type(func).__name__)
    return str(getattr(getattr(func, "__self__", None), "__name__", name)) if name == "__get__" else str(name)


def _run(module: nn.Module, inputs: Mapping[str, Tensor]) -> _Run:
    recorder = _Recorder(module, list(inputs.values()))
    try:
        with torch.no_grad(), recorder.named(), recorder:
            results = module(**inputs)
    except (RuntimeError, TypeError, ValueError, LookupError) as error:  # torch's own trace says more about it
        raise Unrecorded(f"it fails on a small batch ({str(error).partition(chr(10))[0]})") from error
    try:
        recorder.run.outputs = tuple(recorder.numbers[id(result)] for result in results)
    except KeyError:
        raise Unrecorded("an output does not depend on the inputs") from None
    return recorder.run


def _unified(inputs: tuple[str, ...], one: _Run, other: _Run) -> Recording:
    """Both turns as one list. Calls whose arguments are the same constants in both are constants themselves."""
    # Calls, without those that give constants
    constants: dict[int, Constant] = {}
    calls, live = [], set(range(len(inputs)))
    for first, second in zip_longest(one.calls, other.calls):
        if first is None or second is None or (first.function, first.module) != (second.function, second.module):
            raise Unrecorded(f"{(first or second).module} decides by a tensor's size or value")
        unify = _Unifier(first, constants)
        arguments = unify(first.arguments, second.arguments)
        keywords = {key: unify(value, second.keywords.get(key)) for key, value in first.keywords.items()}
        if unify.constant and first.function != PAIR:
            constants |= {number: Constant(one.tensors[number], None) for number in first.results}
        else:
            live.update(first.results)
            calls.append(Call(first.function, arguments, keywords, first.results, first.module))
    # Tensors that are left, with their sizes
    tensors = {
        number: Result(tuple(map(dimension, left.shape, right.shape)), left.dtype)
        for number, (left, right) in enumerate(zip(one.tensors, other.tensors, strict=True))
        if number in live
    }
    if not live.issuperset(one.outputs):
        raise Unrecorded("an output does not depend on the inputs")
    return Recording(inputs, tuple(calls), tensors, one.outputs)


class _Unifier:
    """The arguments of one call in both turns as one; `constant` until one of them is a Ref or a Size."""

    def __init__(self, call: Call, constants: Mapping[int, Constant]) -> None:
        self.call, self.constants, self.constant = call, constants, True

    def __call__(self, left: Any, right: Any) -> Any:
        # Tensors
        if isinstance(left, Ref) and isinstance(right, Ref):
            if left.number in self.constants:
                return self.constants[left.number]
            self.constant = False
        # Everything else, by its kind
        if isinstance(left, tuple) and isinstance(right, tuple) and len(left) == len(right):
            return tuple(self(a, b) for a, b in zip(left, right, strict=True))
        if isinstance(left, slice) and isinstance(right, slice):
            return slice(*(self(getattr(left, key), getattr(right, key)) for key in ("start", "stop", "step")))
        if isinstance(left, Constant) and isinstance(right, Constant):
            if left.tensor is right.tensor or torch.equal(left.tensor, right.tensor):
                return left
            raise Unrecorded(
                f"{self.call.module} makes a tensor in {self.call.function} that depends on its input's size"
            )
        if type(left) is int and type(right) is int and left != right:
            self.constant = False
            return dimension(left, right)
        if left is right or left == right:
            return left
        where = f"{self.call.module}.{self.call.function}"
        raise Unrecorded(f"{where} takes {left} for one size and {right} for another")


def dimension(left: int, right: int) -> int | Size:
    """The integer, where both turns have the same, or the size that it is. Raises Unrecorded."""
    if left == right:
        return left
    for names in (*((name,) for name in SIZES), *combinations(SIZES, 2)):
        if [left, right] == [prod(SIZES[name][turn] for name in names) for turn in (0, 1)]:
            return Size(names)
    raise Unrecorded(f"a size that is {left} for one input and {right} for another")
