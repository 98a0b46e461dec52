"""Damage to one file of a checkpoint: values of its JSON, its bytes, or the header of its safetensors."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 17, 1000000000, 10**30, 0.5, -0.1, 1e-300, float("nan"), float("inf")),
    *("", "x", "1", "true", "gelu", "relu", "mean", "../x", "a\u0000b", [], [1], ["x"], [None], [[1]], {}, {"x": 1}),
    {"0": "A", "1": "B"},
)
# Keys that mean something in some configuration, with a value that would
KEYS: dict[str, Any] = {
    "hidden_act": "relu",
    "layer_norm_eps": 0.1,
    "num_labels": 3,
    "problem_type": "multi_label_classification",
    "position_embedding_type": "relative_key",
    "is_decoder": True,
    "is_encoder_decoder": True,
    "add_cross_attention": True,
    "chunk_size_feed_forward": 1,
    "pruned_heads": {"0": [0]},
    "auto_map": {"AutoModel": "x.y"},
    "quantization_config": {"quant_method": "awq"},
    "dtype": "float16",
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "return_dict": False,
    "use_return_dict": False,
    "output_attentions": True,
    "output_hidden_states": True,
    "attn_implementation": "eager",
    "_attn_implementation": "flash_attention_2",
    "architectures": ["BertModel"],
    "model_type": "roberta",
    "pad_token_id": 5,
    "type_vocab_size": 1,
    "rope_theta": 1e4,
    "use_task_id": True,
    "embedding_size": 8,
    "head_size": 4,
    "classifier_dropout": 0.5,
    "max_position_embeddings": 12,
    "do_lower_case": True,
    "pooling_mode": "max",
    "pooling_mode_max_tokens": True,
    "include_prompt": True,
    "truncate_dim": 4,
    "max_seq_length": 5,
    "model_max_length": 6,
    "padding_side": "left",
    "truncation_side": "left",
    "model_input_names": ["input_ids"],
    "tokenizer_class": "BertTokenizer",
    "added_tokens_decoder": {"30": {"content": "<new>", "special": False}},
    "extra_special_tokens": ["<more>"],
    "pad_token": "film",
    "default_prompt_name": "document",
}


def mutate(folder: Path, rng: Random) -> str:
    """Damage one file of `folder`, which must be the caller's own copy; returns what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(files)
    change = {".json": _json, ".safetensors": _safetensors}.get(path.suffix, _bytes)
    try:
        done = (change if rng.random() < 0.85 else _bytes)(path, rng)
    except (ValueError, LookupError, TypeError, struct.error):  # an earlier mutation left nothing with this structure
        done = _bytes(path, rng)
    return f"{path.relative_to(folder).as_posix()}: {done}"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _json(path: Path, rng: Random) -> str:
    """Remove, retype, change, exchange or add a value."""
    content = json.loads(path.read_text(encoding="utf-8"))
    places = list(_places(content))
    shallow = [(holder, key) for holder, key in places if holder is content]
    if not places or rng.random() < 0.02:
        content, done = rng.choice(VALUES), "another value as a whole"
    else:
        holder, key = rng.choice(shallow if rng.random() < 0.6 else places)
        done = rng.choice((_removed, _retyped, _changed, _exchanged, _added))(holder, key, rng)
    path.write_text(json.dumps(content), encoding="utf-8")
    return done


def _removed(holder: Any, key: Any, rng: Random) -> str:
    del holder[key]
    return f"{key} removed"


def _retyped(holder: Any, key: Any, rng: Random) -> str:
    holder[key] = copy.deepcopy(rng.choice(VALUES))
    return f"{key} = {str(holder[key])[:40]!r}"


def _changed(holder: Any, key: Any, rng: Random) -> str:
    old = holder[key]
    if isinstance(old, bool):
        new: Any = not old
    elif isinstance(old, int | float):
        new = rng.choice((old + 1, old - 1, old * 2, old // 2, -old, float(old), str(old)))
    elif isinstance(old, str):
        new = rng.choice((old[:-1], old + "x", old.upper(), old[::-1], [old]))
    elif isinstance(old, list):
        new = rng.choice((old * 2, old[:-1], old[::-1], dict(enumerate(map(str, old)))))
    else:
        new = rng.choice((None, [old], {"x": old}))
    holder[key] = new
    return f"{key} {str(old)[:40]!r} -> {str(new)[:40]!r}"


def _exchanged(holder: Any, key: Any, rng: Random) -> str:
    other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    holder[key], holder[other] = holder[other], holder[key]
    return f"{key} and {other} exchanged"


def _added(holder: Any, key: Any, rng: Random) -> str:
    new = rng.choice(sorted(KEYS)) if rng.random() < 0.8 else "nobody_knows_this"
    value = copy.deepcopy(KEYS.get(new, 1) if rng.random() < 0.7 else rng.choice(VALUES))
    if isinstance(holder, list):
        holder.append(value)
    else:
        holder[new] = value
    return f"{new} = {str(value)[:40]!r} added"


def _bytes(path: Path, rng: Random) -> str:
    """Flip, cut, repeat or replace bytes."""
    data = bytearray(path.read_bytes())
    kinds = ("flip", "flip", "cut", "insert", "page", "empty", "utf-16", "mark")
    kind = rng.choice(kinds if data else ("page", "mark"))  # nothing can be flipped in an empty file
    if kind == "flip":
        for _ in range(rng.choice((1, 1, 3))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "insert":
        at = rng.randrange(len(data))
        data[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 9))))
    elif kind == "page":
        data = bytearray(b"<!DOCTYPE html><html><body>Not found</body></html>")
    elif kind == "empty":
        data = bytearray()
    elif kind == "utf-16":
        data = bytearray(data.decode("latin-1").encode("utf-16"))
    else:
        data[:0] = b"\xef\xbb\xbf"
    path.write_bytes(bytes(data) or b"")
    return f"bytes, {kind}"


def _safetensors(path: Path, rng: Random) -> str:
    """Change the header: its length, names, types, shapes, places, or what is said beside them."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = sorted(name for name in header if name != "__metadata__")
    name = rng.choice(names)
    kind, change = rng.choice(tuple(_HEADER.items()))
    change(header, name, rng)
    written = json.dumps(header).encode()
    size = rng.choice((0, 1, length + 1, 2**40, 2**63)) if kind == "length" else len(written)
    if kind == "tail":
        body += b"\0" * 4
    path.write_bytes(struct.pack("<Q", size) + written + body)
    return f"header, {kind} of {name}"


def _rename(header: Any, name: str, rng: Random) -> None:
    new = rng.choice(
        (f"model.{name}", f"x.{name}", name.removeprefix("bert."), f"{name}x", name.upper(), name.replace(".0.", ".1."))
    )
    header[new] = header.pop(name)


def _retype(header: Any, name: str, rng: Random) -> None:
    header[name]["dtype"] = rng.choice(("F16", "BF16", "F64", "I32", "I64", "U8", "F8_E4M3", "X", None, 3, "f32"))


def _reshape(header: Any, name: str, rng: Random) -> None:
    shape = header[name]["shape"]
    header[name]["shape"] = rng.choice(
        (shape[::-1], [*shape, 1], shape[:-1], [0], [-1], [2**62], "x", None, [1, *shape])
    )


def _offsets(header: Any, name: str, rng: Random) -> None:
    start, end = header[name]["data_offsets"]
    header[name]["data_offsets"] = rng.choice(
        ([end, start], [start + 4, end], [start, end + 4], [0, 0], [-1, end], None)
    )


def _exchange(header: Any, name: str, rng: Random) -> None:
    same = [other for other in header if other != "__metadata__" and header[other]["shape"] == header[name]["shape"]]
    other = rng.choice(same)
    header[name], header[other] = header[other], header[name]


def _metadata(header: Any, name: str, rng: Random) -> None:
    header["__metadata__"] = copy.deepcopy(rng.choice((None, {}, {"format": "tf"}, {"format": 1}, [], "x")))


def _drop(header: Any, name: str, rng: Random) -> None:
    del header[name]


def _copy(header: Any, name: str, rng: Random) -> None:
    header[f"{name}_copy"] = dict(header[name])


def _nothing(header: Any, name: str, rng: Random) -> None:
    pass


_HEADER: dict[str, Callable[[Any, str, Random], None]] = {
    "name": _rename,
    "type": _retype,
    "shape": _reshape,
    "place": _offsets,
    "exchange": _exchange,
    "metadata": _metadata,
    "loss": _drop,
    "copy": _copy,
    "length": _nothing,
    "tail": _nothing,
}
