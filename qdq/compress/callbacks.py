"""Functions of the caller as PaddleNLP's documents print them: with `self`, or calling the model in Paddle's order.

The older API prints ``model(input_ids, token_type_ids, attention_mask=[None, head_mask])``: Paddle's models take token
types second, and the list is the mask of the tokens and that of the heads. transformers' models take neither.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from qdq.errors import ConfigError

PADDLE_ORDER = ("input_ids", "token_type_ids", "position_ids", "attention_mask")
PLAIN = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def bound(function: Callable[..., Any] | None, count: int, owner: Any, name: str) -> Callable[..., Any] | None:
    """`function` as one of `count` arguments; one that takes `self` before them, as a method does, gets `owner` there.

    Raises ConfigError, which calls it `name`, for one that takes another number of arguments.
    """
    if function is None:
        return None
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # one written in C says nothing of its parameters
        return function
    plain = [parameter for parameter in parameters if parameter.kind in PLAIN]
    required = sum(parameter.default is parameter.empty for parameter in plain)
    most = count + 1 if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters) else len(plain)
    if required == count + 1:
        return partial(function, owner)
    if not required <= count <= most:
        raise ConfigError(
            f"{name}: takes {required if required > count else most} arguments; it is called with {count}, or as a "
            f"method with self and {count}"
        )
    return function


@contextmanager
def paddle_calls(model: nn.Module, logits_of: Callable[[Any], Any]) -> Iterator[None]:
    """Let `model` be called Paddle's way, too, while the block runs.

    A call whose `attention_mask` is a list, ``[mask, head mask]``, has its other arguments in Paddle's order, and
    returns what `logits_of` finds in the output. Without a mask, padding is left out by its id. The mask of the heads
    acts in our attention function already. Other calls pass as they are.
    """
    padding = getattr(getattr(model, "config", None), "pad_token_id", None) or 0
    translated = [False]  # of the call that runs

    def before(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        masks: Any = named.get("attention_mask")
        translated[0] = isinstance(masks, (list, tuple))
        if not translated[0]:
            return positional, named
        if len(masks) != 2:
            raise ConfigError(f"attention_mask: is a list of {len(masks)}; Paddle's form is [mask or None, head mask]")
        given = {**dict(zip(PADDLE_ORDER, positional, strict=False)), **named}
        ids: Tensor = given["input_ids"]
        given["attention_mask"] = (ids != padding).long() if masks[0] is None else masks[0]
        return (), {name: value for name, value in given.items() if value is not None}

    def after(module: nn.Module, positional: tuple[Any, ...], output: Any) -> Any:
        return logits_of(output) if translated[0] else output

    hooks = model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
