"""What the GPU tests share: the reason to skip, checkpoints and their lowered graphs, the reference, the comparison.

Nothing here needs a GPU; test_gpu_preparation.py runs all of it on any machine.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from engines.bench import BenchSettings, Contestant
from engines.bench.interleave import Race
from engines.tensorrt import probe
from engines.types import Runner
from qdq.base.types import Feeds, Outputs

WORDS = 400  # in the vocabulary of a random checkpoint
TEXTS = 48

# Two executions of one lowered graph differ where a rounding in FP16 moves a value across the border of an INT8 step,
# and the next layers carry that on. Two ways ONNX Runtime runs the tiny graph (optimized and as written) agree to 0.996
# in the worst row; ignoring the attention mask gives at most 0.977.
LEAST_COSINE = 0.99


@cache
def lacking() -> str:
    """Why this machine cannot run the GPU tests; "" when it can."""
    missing = probe().missing
    return f"this machine cannot build a TensorRT engine: {'; '.join(missing)}" if missing else ""


@pytest.hookimpl(tryfirst=True)  # before any fixture is made: those take minutes
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and lacking():
        pytest.skip(lacking())


# --- checkpoints and graphs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graphs:
    """A model's graphs for TensorRT, each alone in a folder as a build wants it."""

    int8: Path
    fp16: Path


def write_texts(path: Path) -> Path:
    """Lines of random words, of different lengths."""
    rng = np.random.default_rng(5)
    lines = (" ".join(f"w{word}" for word in rng.integers(0, WORDS, rng.integers(4, 60))) for _ in range(TEXTS))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def random_checkpoint(folder: Path, **config: Any) -> Path:
    """A BERT classifier with random weights, and a tokenizer that knows the words of `write_texts`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    from qdq.loading.model import quiet_transformers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: index for index, word in enumerate([*special, *(f"w{word}" for word in range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])]
    )
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(7)
        model = BertForSequenceClassification(BertConfig(vocab_size=len(words), **(config | {"num_labels": 16})))
        model.save_pretrained(folder)
        names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
        PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=tokenizer, model_max_length=model.config.max_position_embeddings, **names
        ).save_pretrained(folder)
    return folder


def prepare(out: Path, *model: str, sequence: int) -> Graphs:
    """Calibrate, export and lower a model for TensorRT; `model` are the qdq options that name it and its text."""
    from export.passes import float_variant
    from qdq.cli.main import main
    from qdq.pipeline.run import CANONICAL, FLOAT

    options = ("--target", "tensorrt", "--placement", "qdqbert", "--out", str(out))
    shape = ("--samples", "16", "--batch", "2", "--sequence", str(sequence))
    for command in (("calibrate", *model, *options, *shape), ("export", *options), ("lower", *options)):
        assert main(list(command)) == 0, f"qdq {command[0]} failed; its message is above"
    assert (out / CANONICAL).is_file()
    float_variant(out / FLOAT, "fp16", out / "fp16")
    return Graphs(out / "tensorrt" / "model.onnx", out / "fp16" / "model.onnx")


TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """Two layers, hidden size 64, head size 32, sequences to 64."""
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = random_checkpoint(folder / "checkpoint", **TINY, max_position_embeddings=64, initializer_range=0.15)
    texts = write_texts(folder / "texts.txt")
    return prepare(folder / "work", "--model", str(checkpoint), "--calibration", str(texts), sequence=64)


@pytest.fixture(scope="session")
def default_model(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """The bundled all-MiniLM-L6-v2."""
    return prepare(tmp_path_factory.mktemp("default") / "work", sequence=128)


@pytest.fixture(scope="session")
def base_sized(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """BERT-base with random weights: a latency does not depend on their values."""
    folder = tmp_path_factory.mktemp("base")
    checkpoint = random_checkpoint(folder / "checkpoint")
    texts = write_texts(folder / "texts.txt")
    return prepare(folder / "work", "--model", str(checkpoint), "--calibration", str(texts), sequence=128)


# --- feeds, reference, comparison -----------------------------------------------------------------------------------


def feeds_of(model: Path, batch: int, sequence: int) -> dict[str, NDArray[Any]]:
    """Random ids for every input of a graph, in its types; every second row is padded in its last third."""
    graph = onnx.load(model, load_external_data=False).graph
    mask = np.ones((batch, sequence), np.int64)
    mask[1::2, sequence - sequence // 3 :] = 0
    ids = np.random.default_rng(batch * 1000 + sequence).integers(5, WORDS, (batch, sequence))
    values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    types = {
        value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in graph.input
    }
    return {name: values[name].astype(kind) for name, kind in types.items()}


def reference(model: Path, feeds: Feeds, optimized: bool = False) -> Outputs:
    """ONNX Runtime on the CPU on the very graph TensorRT gets; without optimizations it runs the nodes as written."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    results = session.run(names, dict(feeds))
    return {name: np.asarray(value, np.float32) for name, value in zip(names, results, strict=True)}


def least_cosine(found: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> float:
    """The least cosine between rows (of the last axis) of two sets of outputs; -1 where one is not finite."""
    assert set(found) == set(expected)
    cosines = []
    for name, right in expected.items():
        left = found[name]
        assert left.shape == right.shape, f"{name}: {left.shape} against {right.shape}"
        norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
        cosines.append(float(np.min((left * right).sum(-1) / np.maximum(norms, 1e-12))))
    return min(cosines) if np.isfinite(cosines).all() else -1.0


def medians(runs: Mapping[str, Runner], feeds: Feeds, rounds: int) -> dict[str, float]:
    """Median milliseconds of every runner on one batch, measured in turns."""
    contestants = [Contestant(name, "tensorrt", run) for name, run in runs.items()]
    batch, sequence = feeds["input_ids"].shape
    settings = BenchSettings(batch, sequence, budget_s=None, warmup=max(3, rounds // 10), samples=rounds)
    timed = Race(contestants, [feeds], settings, time.perf_counter_ns).run().samples
    return {name: float(np.median(list(samples.values()))) / 1e6 for name, samples in timed.items()}


def wait_until_ready(url: str, server: Popen[bytes], timeout_s: float) -> None:
    """Poll a health address until it answers 200; fails when the server ends first or the time is up."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        assert server.poll() is None, f"the server ended with status {server.returncode}; its messages are above"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, TimeoutError):
            pass
        time.sleep(0.2)
    pytest.fail(f"{url} was not ready within {timeout_s:g} seconds")


def texts(folder: Path) -> Path:
    """A file of `write_texts` in `folder`."""
    return write_texts(folder / "texts.txt")


@dataclass(frozen=True)
class Tools:
    """The functions above, for tests, which cannot import this file."""

    texts: Callable[[Path], Path] = texts

    feeds_of: Callable[..., dict[str, NDArray[Any]]] = feeds_of
    reference: Callable[..., Outputs] = reference
    least_cosine: Callable[..., float] = least_cosine
    medians: Callable[..., dict[str, float]] = medians
    wait_until_ready: Callable[..., None] = wait_until_ready
    tolerance: float = LEAST_COSINE


@pytest.fixture(scope="session")
def tools() -> Tools:
    return Tools()
