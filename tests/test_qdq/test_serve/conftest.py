"""A real Triton server on tiny models of every task; its tests are skipped where the machine has no server.

Every server here is on loopback, has a time limit, and must leave no process and no shared memory behind.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from engines.client import Call, LoadSettings, ModelInfo, TextRow, connect, feeds_of, parse_address, run_load
from engines.triton.server import Server, ServerOptions, find, running
from engines.triton.server.leftovers import SHARED, processes
from qdq.base.choices import INFORMATION_EXTRACTION
from qdq.cli.judge import Judge
from qdq.errors import Unavailable
from qdq.loading.kinds import TASKS

from ..conftest import SMALL, CheckpointFactory, english, run_qdq

pytest.importorskip("tritonclient.grpc.service_pb2", reason="the triton extra is not installed")
SEQUENCE = 32
QUICK = (*SMALL, "--batch", "8", "--placement", "linear", "--target", "onnxruntime")
CLASSIFIER = "text-classification"
SERVED = tuple(TASKS)
HANGS = 120.0  # seconds after which a request has no answer; a machine that is busy with other work takes long
STARTED: list[str] = []  # prefixes of the servers of the running test


@pytest.fixture(scope="session", autouse=True)
def _needs_a_server() -> None:
    try:
        find()
    except Unavailable as reason:
        pytest.skip(f"no Triton server on this machine: {reason}")


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """After a test, the processes and the shared memory of the servers that it started are gone."""
    STARTED.clear()
    yield
    for prefix in STARTED:
        assert sorted(SHARED.glob(f"{prefix}*")) == []
        assert processes(prefix) == []


@pytest.fixture(scope="session")
def deployed(
    tiny_checkpoint: CheckpointFactory, jsonl_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`deployed(task)`: the work directory of a tiny model, compiled once and named like its task."""
    made: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("deployed")

    def deploy(task: str) -> Path:
        if task not in made:
            source = root / task
            layers = 2 if task == INFORMATION_EXTRACTION else 1
            shutil.copytree(tiny_checkpoint("bert", task, num_hidden_layers=layers), source)
            words = ("--model", source, "--calibration", jsonl_file, "--out", root / f"{task}-work", *QUICK)
            ran = run_qdq("compile", *words)
            assert ran.code == 0, ran.err
            made[task] = root / f"{task}-work"
        return made[task]

    return deploy


@pytest.fixture(scope="session")
def zoo(deployed: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with a model of every task, each named like it."""
    repository = tmp_path_factory.mktemp("zoo") / "models"
    for task in SERVED:
        shutil.copytree(deployed(task) / "onnxruntime" / "model_repository" / task, repository / task)
    with running(repository) as server:
        yield server


@pytest.fixture
def repository(deployed: Callable[[str], Path], tmp_path: Path) -> Path:
    """A repository of the test's own that holds the classifier."""
    folder = tmp_path / "models"
    shutil.copytree(deployed(CLASSIFIER) / "onnxruntime" / "model_repository", folder)
    return folder


@pytest.fixture(scope="session")
def rows() -> Mapping[str, list[TextRow]]:
    """More than 200 rows of text for every task, of different lengths: sentences, and both halves of each."""
    whole = list(english())
    words = [text.split() for text in whole]
    halves = [part for one in words for part in (one[: len(one) // 2], one[len(one) // 2 :])]
    texts = [*whole, *(" ".join(part) for part in halves)]
    pairs = [TextRow(text, texts[(number + 7) % len(texts)]) for number, text in enumerate(texts)]
    short = [TextRow(" ".join(row.text.split()[:6]), " ".join((row.pair or "").split()[:12])) for row in pairs]
    plain = [TextRow(text) for text in texts]
    return {
        CLASSIFIER: [*plain[:24], *short[24:]],
        "token-classification": plain,
        "feature-extraction": plain,
        "fill-mask": [TextRow(text.replace(" the ", " [MASK] ", 1)) for text in texts],
        "language-modeling": plain,
        "question-answering": short,
        INFORMATION_EXTRACTION: [TextRow("the cat", row.pair) for row in short],
        "next-sentence-prediction": short,
        "multiple-choice": [
            TextRow(row.text, None, (row.pair or "", "again and again .", "but why ?")) for row in short
        ],
    }


@pytest.fixture(scope="session")
def judge(deployed: Callable[[str], Path], rows: Mapping[str, list[TextRow]]) -> Callable[[str], Judge]:
    """`judge(task)`: the engine's own answers to all rows of a task."""
    known: dict[str, Judge] = {}

    def judged(task: str) -> Judge:
        if task not in known:
            known[task] = Judge(deployed(task), task)
            known[task].prepare(rows[task])
        return known[task]

    return judged


Loaded = Callable[..., list[Call]]


@pytest.fixture(scope="session")
def classified(rows: Mapping[str, list[TextRow]], judge: Callable[[str], Judge]) -> Loaded:
    """`classified(url, clients, …)`: calls of the classifier with all its rows, none of which is answered wrongly."""

    def load(
        url: str, clients: int, requests: int | None = None, seconds: float = 600.0, timeout: float = HANGS
    ) -> list[Call]:
        model = described(url, CLASSIFIER)
        feeds = [feeds_of(model, row) for row in rows[CLASSIFIER]]
        settings = LoadSettings(clients, seconds, timeout, requests)
        calls = run_load(parse_address(url), model, feeds, settings, Judge.outputs(model))
        wrong = [judge(CLASSIFIER).differs(call.row, call.outputs) for call in calls if call.outputs is not None]
        assert not any(wrong), next(filter(None, wrong))
        return calls

    judge(CLASSIFIER)  # not while a server is loaded
    return load


def described(url: str, model: str) -> ModelInfo:
    """Inputs and outputs of a model of a server."""
    with connect(parse_address(url)) as client:
        return client.describe(model)


@contextlib.contextmanager
def serving(repository: Path, *arguments: str) -> Iterator[Server]:
    """A server of the test's own, with more of tritonserver's options."""
    with running(repository, ServerOptions(arguments=arguments)) as server:
        STARTED.append(server.prefix)
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder starts a server, or asks one."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.server)
