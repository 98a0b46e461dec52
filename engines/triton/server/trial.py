"""A real request for each model of a repository: its own warm-up sample, by which readiness is tested."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engines.serving.form import FILE, TextForm
from engines.triton.interface import CONFIG_FILE, DATA_TYPES, VERSION, WARMUP_FOLDER
from engines.triton.model_config import read_config, schema
from qdq.errors import DeployError

REFUSED, FULL = 400, 503
Inputs = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Trial:
    """One request of a model, as the JSON of Triton's HTTP protocol."""

    model: str
    inputs: Inputs

    @property
    def texts(self) -> dict[str, Any]:
        """The body for /generate, {} for a model that takes no texts."""
        if any(item["datatype"] != "BYTES" for item in self.inputs):
            return {}
        return {item["name"]: item["data"] if len(item["data"]) > 1 else item["data"][0] for item in self.inputs}

    def curl(self, url: str) -> str:
        """The same request for the shell."""
        path, body = ("generate", self.texts) if self.texts else ("infer", {"inputs": list(self.inputs)})
        quoted = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
        return f"curl -s {url}/v2/models/{self.model}/{path} -d '{quoted}'"

    def ask(self, url: str, timeout: float = 60.0) -> dict[str, Any]:
        """The server's answer. Raises OSError while it has none."""
        request = urllib.request.Request(
            f"{url}/v2/models/{self.model}/infer", json.dumps({"inputs": list(self.inputs)}).encode()
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # our own http address
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def refusal(self, url: str, timeout: float = 60.0) -> str | None:
        """The server's words when the model is ready and refuses this request all the same, None otherwise."""
        try:
            urllib.request.urlopen(f"{url}/v2/models/{self.model}/ready", timeout=timeout).close()
            self.ask(url, timeout)
        except urllib.error.HTTPError as error:
            words = error.read().decode("utf-8", "replace")
            return words if error.url.endswith("/infer") and error.code != FULL else None
        except OSError:
            return None
        return None

    def alive(self, url: str, timeout: float = 60.0) -> bool:
        """True when the model answers, refuses, or says that its queue is full.

        Texts are another number each time, because a response cache would answer those it knows.
        """
        fresh = tuple(
            item | {"data": [str(time.time_ns() % 100_000)] * len(item["data"])}
            if item["datatype"] == "BYTES"
            else item
            for item in self.inputs
        )
        try:
            replace(self, inputs=fresh).ask(url, timeout)
        except urllib.error.HTTPError as error:
            return error.code in (REFUSED, FULL)
        except OSError:
            return False
        return True


def trials(repository: Path) -> Iterator[Trial]:
    """A request for every model in `repository` that clients ask. Raises DeployError without any."""
    found = False
    for model in sorted(path.parent for path in repository.glob(f"*/{CONFIG_FILE}")):
        form = model / VERSION / FILE
        inputs = _texts(TextForm.read(form)) if form.is_file() else _warm_up(model)
        if inputs:
            found = True
            yield Trial(model.name, inputs)
    if not found:
        raise DeployError(f"{repository} holds no model of ours to try; give a repository that qdq deploy wrote")


def _texts(form: TextForm) -> Inputs:
    """The sample of a text model."""
    return tuple(_input(name, [1, len(texts)], "BYTES", list(texts)) for name, texts in form.sample.items())


def _warm_up(model: Path) -> Inputs:
    """The first warm-up sample of a model of token ids, () without one."""
    pb2, _ = schema()
    config = read_config(model / CONFIG_FILE)
    inputs = []
    for name, entry in sorted(config.model_warmup[0].inputs.items()) if config.model_warmup else ():
        kind = pb2.DataType.Name(entry.data_type)
        dtype = next(dtype for dtype, spelling in DATA_TYPES.items() if spelling == kind)
        array = np.frombuffer((model / WARMUP_FOLDER / entry.input_data_file).read_bytes(), dtype)
        shape = [*([1] if config.max_batch_size else []), *entry.dims]
        inputs.append(_input(name, shape, kind.removeprefix("TYPE_"), array.tolist()))
    return tuple(inputs)


def _input(name: str, shape: list[int], datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}
