"""Small random checkpoints and texts that the tests of the PyTorch side build for themselves; no network needed."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast

from qdq.cli.main import main
from qdq.loading.kinds import TASKS
from qdq.loading.model import LoadedModel, load_model, quiet_transformers

SUBJECTS = ("the cat", "a small dog", "our teacher", "the old river", "my young brother", "every good engine")
VERBS = ("finds", "likes", "sees", "never leaves", "slowly follows", "wants")
OBJECTS = ("the blue house", "a warm meal", "some fresh bread", "this long road", "the new city", "a quiet garden")
ENDINGS = (".", "in the morning .", "again and again .", "when it rains !", "but why ?", "without a reason .")

ROBERTA_LIKE = ("roberta", "xlm-roberta", "camembert", "mpnet")  # padding has id 1, positions start behind it
WITH_TOKEN_TYPES = ("bert", "electra", "ernie", "albert")

CheckpointFactory = Callable[..., Path]
Batch = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny models are slower on more threads, and a sum's order then stays the same; a compile before set its own."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _one_thread_for_shared_fixtures() -> None:
    torch.set_num_threads(1)


def english() -> tuple[str, ...]:
    """36 varied sentences; every word is in the tiny tokenizer's vocabulary."""
    pairs = list(product(range(6), range(6)))
    return tuple(
        f"{SUBJECTS[i]} {VERBS[j]} {OBJECTS[(i + j) % 6]} {ENDINGS[(2 * i + j) % 6]}"
        + (f" {SUBJECTS[j]} {VERBS[i]} {OBJECTS[(i + 2 * j) % 6]} ." if (i + j) % 3 == 0 else "")
        for i, j in pairs
    )


def vocabulary(model_type: str) -> dict[str, int]:
    """Special tokens, the words of `english()`, and reserved words up to 120 entries."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if model_type in ROBERTA_LIKE:
        special = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    words = sorted({word for text in english() for word in text.split()})
    entries = [*special, *words]
    entries += [f"reserved{index}" for index in range(120 - len(entries))]
    return {entry: index for index, entry in enumerate(entries)}


def tiny_tokenizer(model_type: str = "bert") -> PreTrainedTokenizerFast:
    """A lower-casing word-level tokenizer with BERT's special tokens."""
    words = vocabulary(model_type)
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, words[token]) for token in ("[CLS]", "[SEP]")],
    )
    types = ["token_type_ids"] if model_type in WITH_TOKEN_TYPES else []
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        model_max_length=64,
        model_input_names=["input_ids", *types, "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def tiny_config(model_type: str, **changes: Any) -> Any:
    """Two layers, hidden size 32, two heads, 64 usable positions; weights large enough for attention to matter."""
    words = vocabulary(model_type)
    names = {
        "hidden_size": "dim" if model_type == "distilbert" else "hidden_size",
        "num_hidden_layers": "n_layers" if model_type == "distilbert" else "num_hidden_layers",
        "num_attention_heads": "n_heads" if model_type == "distilbert" else "num_attention_heads",
        "intermediate_size": "hidden_dim" if model_type == "distilbert" else "intermediate_size",
    }
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    values: dict[str, Any] = {names[key]: value for key, value in sizes.items()}
    values |= {"vocab_size": 120, "initializer_range": 0.15, "pad_token_id": words["[PAD]"]}
    values["max_position_embeddings"] = 66 if model_type in ROBERTA_LIKE else 64
    if model_type in ROBERTA_LIKE:
        values |= {"bos_token_id": words["[CLS]"], "eos_token_id": words["[SEP]"]}
    if model_type in ("electra", "albert"):
        values["embedding_size"] = 16
    return AutoConfig.for_model(model_type, **(values | changes))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> CheckpointFactory:
    """Factory ``(model_type="bert", task="text-classification", **config) -> folder`` of a small random checkpoint.

    Built once per arguments with a fixed seed and shared by the session: copy a folder before changing it.
    """
    built: dict[tuple[Any, ...], Path] = {}

    def build(model_type: str = "bert", task: str = "text-classification", **config: Any) -> Path:
        key = (model_type, task, *sorted((name, repr(value)) for name, value in config.items()))
        if key not in built:
            folder = tmp_path_factory.mktemp(f"tiny-{model_type}-{task}") / f"tiny-{model_type}"
            _save(folder, model_type, task, config)
            built[key] = folder
        return built[key]

    return build


def _save(folder: Path, model_type: str, task: str, changes: dict[str, Any]) -> None:
    auto = TASKS[task].auto()
    values = {"is_decoder": True, **changes} if task == "language-modeling" else changes
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(20)
        model = auto.from_config(tiny_config(model_type, **values))
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases start at zero and norms at one: nothing would notice their loss
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder)
        tiny_tokenizer(model_type).save_pretrained(folder)


@pytest.fixture(scope="session")
def load_tiny(tiny_checkpoint: CheckpointFactory) -> Callable[..., LoadedModel]:
    """Factory with the arguments of `tiny_checkpoint`; a freshly loaded model every time."""
    return lambda *arguments, **config: load_model(str(tiny_checkpoint(*arguments, **config)))


@pytest.fixture(scope="session")
def encode() -> Callable[..., Batch]:
    """Factory ``(loaded, count=12) -> padded inputs`` of that many sentences of different lengths."""

    def encoded(loaded: LoadedModel, count: int = 12) -> Batch:
        tokens = loaded.tokenizer(list(english()[:count]), padding=True, return_tensors="pt")
        inputs = {name: tokens[name] for name in loaded.inputs}
        if loaded.task.choices:
            return {name: tensor.unflatten(0, (-1, 2)) for name, tensor in inputs.items()}
        return inputs

    return encoded


@pytest.fixture(scope="session")
def sentences() -> tuple[str, ...]:
    """36 varied English sentences out of the tiny vocabulary."""
    return english()


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sentences as plain text, one per line."""
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text("\n".join(english()) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def jsonl_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sentences as JSON lines with the keys ``text`` and ``label`` (0 or 1)."""
    path = tmp_path_factory.mktemp("text") / "sentences.jsonl"
    rows = (json.dumps({"text": text, "label": index % 2}) for index, text in enumerate(english()))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@dataclass(frozen=True)
class Ran:
    """What one `qdq` command did."""

    code: int
    out: str
    err: str


# A compile that takes seconds: no text is longer than the sequence, 16 texts calibrate and 20 are left to evaluate.
SMALL = ("--samples", "16", "--batch", "2", "--sequence", "32", "--threads", "1", "--bench-seconds", "0.2")


def run_qdq(*arguments: str | Path) -> Ran:
    """One `qdq` command in this process, which has torch in memory already."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # --help and --version
            code = int(end.code or 0)
    return Ran(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def qdq() -> Callable[..., Ran]:
    """`qdq(*arguments)`: run one command in this process."""
    return run_qdq


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Options that make a compile of a tiny checkpoint take seconds."""
    return SMALL


@pytest.fixture(scope="session")
def compiled(tiny_checkpoint: CheckpointFactory, jsonl_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its labelled text, and ``work/``: both compiled for openvino, then for onnxruntime.

    The commands used relative paths, so a copy of the folder is as good. Copy it before changing anything
    (`workplace` does).
    """
    folder = tmp_path_factory.mktemp("compiled")
    shutil.copytree(tiny_checkpoint("bert", "text-classification", num_hidden_layers=1), folder / "tiny-bert")
    shutil.copyfile(jsonl_file, folder / "text.jsonl")
    source = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--out", "work")
    with contextlib.chdir(folder):
        for target in ("openvino", "onnxruntime"):
            ran = run_qdq("compile", *source, "--target", target, *SMALL)
            assert ran.code == 0, ran.err
            (folder / f"{target}.out").write_text(ran.out, encoding="utf-8")
            (folder / f"{target}.err").write_text(ran.err, encoding="utf-8")
    return folder


@pytest.fixture
def workplace(compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `compiled` of the test's own, which is the current folder."""
    shutil.copytree(compiled, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


class Hub:
    """A hub of one data set: `rows` of every split, and the names of the classes in its column `label`."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
        self.rows, self.names = rows, names
        self.asked: tuple[str, ...] = ()

    def load_dataset(self, *asked: str) -> Any:
        """As `datasets.load_dataset`, for any name; `asked` keeps it."""
        self.asked = asked
        split = type("Split", (list,), {"features": {"label": types.SimpleNamespace(names=list(self.names))}})
        return {"train": split(self.rows), "validation": split(self.rows)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    """`hub(rows, names)`: the data set that every name of the hub has from now on; no network is asked."""
    datasets = pytest.importorskip("datasets", reason="the optional extra 'train' is not installed")

    def serve(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Hub:
        served = Hub(rows, names)
        monkeypatch.setattr(datasets, "load_dataset", served.load_dataset)
        # By its module: the attribute `load` of qdq is the function of that name
        monkeypatch.setattr("qdq.loading.hub.silence", lambda name: "")
        return served

    return serve
