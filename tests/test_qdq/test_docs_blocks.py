"""Every code block of the pages runs in a test, or says here why it does not."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path for pattern in ("*.md", "docs/*.md", "examples/*.md", "calib_data/*.md") for path in ROOT.glob(pattern)
)
QUICK = ["--bench-seconds", "0.3", "--threads", "1", "--batch", "2", "--sequence", "32"]

# Who runs the blocks that are not run below: page and first line -> file and test
ELSEWHERE = {
    ("docs/triton.md", "curl localhost:8000/v2/models/<name>/ready -i"): (
        "tests/test_qdq/test_docs_triton.py",
        "test_the_printed_requests_are_answered",
    ),
    ("docs/triton.md", "import numpy as np"): (
        "tests/test_qdq/test_docs_triton.py",
        "test_the_printed_client_gets_the_engines_answers",
    ),
    ("examples/README.md", ".venv/bin/python examples/quickstart.py build/quickstart/model.qdq.onnx"): (
        "tests/test_qdq/test_examples.py",
        "test_the_quickstart_exports_every_point_it_placed",
    ),
    ("CONTRIBUTING.md", ".venv/bin/python -m qdq.studies.pages"): (
        "tests/test_qdq/test_studies/test_pages.py",
        "test_the_pages_are_what_the_results_give",
    ),
    ("docs/compression.md", "make walkthrough DATA=glue_data/MRPC"): (
        "tests/test_qdq/test_examples.py",
        "test_the_walkthrough_compares_every_contestant",
    ),
    ("docs/compression.md", "from qdq.compress.paddlenlp import CompressionArguments, PdArgumentParser, Trainer"): (
        "tests/test_qdq/test_compress/test_paddlenlp.py",
        "test_what_the_parser_returns_is_given_to_the_trainer_as_it_is",
    ),
    ("docs/compression.md", "python examples/download_glue_data.py --data_dir='./glue_data' --tasks='MRPC'"): (
        "tests/test_qdq/test_glue_examples.py",
        "test_glue_files_are_downloaded_by_name",
    ),
    ("docs/compression.md", "from qdq.compress import DynamicModel, quantize_dynamic"): (
        "tests/test_qdq/test_glue_examples.py",
        "test_the_printed_evaluation_and_the_saved_model",
    ),
    ("docs/custom-model.md", "python -m qdq.loading.convert best_models/TNEWS --out tnews"): (
        "tests/test_qdq/test_loading/test_convert.py",
        "test_the_command_says_what_it_wrote_and_refuses_in_one_line",
    ),
    ("docs/uie.md", ".venv/bin/python -m qdq.loading.convert uie-base-paddle --out uie-base"): (
        "tests/test_qdq/test_loading/test_convert.py",
        "test_a_uie_computes_the_same",
    ),
    ("docs/uie.md", "from qdq.uie.extract import Extraction"): (
        "tests/test_qdq/test_uie/test_page.py",
        "test_the_page_runs_from_annotation_to_extraction",
    ),
    ("README.md", "import qdq"): ("tests/test_qdq/test_api/test_docs.py", "test_the_quickstart_runs"),
    ("docs/python.md", "import qdq"): ("tests/test_qdq/test_api/test_docs.py", "test_the_quickstart_runs"),
    ("docs/custom-model.md", "from safetensors.numpy import save_file"): (
        "tests/test_qdq/test_loading/test_convert.py",
        "test_paddle_weights_in_safetensors_are_converted_and_named_where_they_are_not",
    ),
}
# Blocks of a page that one test runs all of, by the page and the block's language
WHOLE_PAGES = {
    **{
        (f"docs/{page}", "bash"): ("tests/test_qdq/test_docs.py", "test_page_commands_run")
        for page in ("custom-model.md", "custom-data.md", "calibration.md")
    },
    ("docs/compression.md", "bash"): (
        "tests/test_qdq/test_studies/test_compression_page.py",
        "test_the_commands_run_as_they_stand",
    ),
    **{
        ("docs/auto.md", language): ("tests/test_qdq/test_auto/test_page.py", "test_the_page_runs")
        for language in ("yaml", "bash", "python")
    },
    ("docs/uie.md", "bash"): (
        "tests/test_qdq/test_uie/test_page.py",
        "test_the_page_runs_from_annotation_to_extraction",
    ),
    ("CONTRIBUTING.md", "python"): ("tests/test_markdown.py", "test_code_that_contributing_shows_is_in_the_source"),
}
GPU, DOCKER, OUTPUT = "needs an NVIDIA GPU with TensorRT", "needs docker", "is printed text, no command"
NOT_RUN = {
    ("README.md", "36 of 36 encoder linears and 6 of 12 attention matmuls run in INT8"): f"{OUTPUT}; make results",
    ("docs/tensorrt.md", "building with TensorRT 11.4.0.106; this takes some minutes"): OUTPUT,
    ("docs/tensorrt.md", "TensorRT for RTX 1.7.1.116 for compute capability 7.5:"): f"{OUTPUT}; make prove",
    ("docs/estimate.md", "time    = overhead + max(compute, memory)"): "is a formula",
    ("docs/triton.md", "# CPU: in the model's folder, where Dockerfile is"): DOCKER,
    (
        "docs/tensorrt.md",
        'docker run --gpus all -it --rm -v "$PWD:/work" -w /work nvcr.io/nvidia/tensorrt:<yy.mm>-py3',
    ): DOCKER,
    ("docs/tensorrt.md", "python build_engine.py"): GPU,
    ("docs/tensorrt.md", "python build_engine.py --batch 1 8 8 --sequence 1 64 64 --optimization-level 5"): GPU,
    ("docs/tensorrt.md", "sh trtexec.sh 10"): GPU,
    ("docs/tensorrt.md", "python run_engine.py --batch 40 --sequence 128 --seconds 5"): GPU,
    ("docs/bench-gpu.md", "qdq bench --engine model.plan"): GPU,
    ("docs/bench-gpu.md", "from pathlib import Path"): GPU,
    ("docs/bench-gpu.md", "python -m pytest tests/test_engines/test_gpu_torch.py -m gpu -s"): GPU,
    ("docs/check.md", "import modelopt.torch.quantization as mtq"): "other tools' calls; make prove runs those it can",
    ("CONTRIBUTING.md", "make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu"): "installs packages",
    ("docs/tensorrt.md", "make setup"): "installs packages",
}
# Blocks of make alone: `make -n` has to know target and variables
MAKE = {
    ("README.md", "make engine"),
    ("docs/README.zh-CN.md", "make engine"),
    ("docs/README.zh-CN.md", "make engine MODEL=模型目录 CALIB=train.tsv EVAL=dev.tsv"),
    ("README.md", "make engine MODEL=path/or/hub-id CALIB=train.tsv EVAL=dev.tsv TARGET=onnxruntime"),
    ("calib_data/README.md", "make engine MODEL=… CALIB=my_texts.jsonl"),
    ("docs/tensorrt.md", "make engine TARGET=tensorrt MODEL=…"),
    ("docs/tensorrt.md", "make engine TARGET=tensorrt-rtx MODEL=…"),
    ("docs/tensorrt.md", "make test-gpu"),
    ("docs/compression.md", "make walkthrough DATA=glue_data/MRPC"),
    ("docs/triton.md", "make serve"),
}
# Blocks of qdq that run here, beside a compiled model: words in the place of the page's, words more that make a command
# short, and the exit codes that it may have (1: findings, 3: NVIDIA's compiler is not installed)
HERE: dict[tuple[str, str], tuple[dict[str, str], list[str], set[int]]] = {
    ("docs/check.md", "qdq check model.onnx"): ({}, [], {0, 1, 3}),
    ("docs/estimate.md", "qdq estimate build/my-bert --device t4"): ({}, [], {0}),
    ("docs/performance.md", "qdq profile build/my-bert/openvino/model.xml"): ({}, [*QUICK[2:], "--rounds", "3"], {0}),
    ("docs/performance.md", "qdq bench --out build/my-bert --mode throughput --threads 1"): (
        {},
        [*QUICK[:2], *QUICK[4:]],
        {0},
    ),
    ("docs/report.md", "qdq report build/my-bert"): ({}, [], {0}),
    ("docs/triton.md", "make engine"): ({}, [], {0}),
    ("docs/triton.md", "qdq deploy --out build/my-bert --raw-inputs"): ({}, [], {0}),
    ("docs/triton.md", "qdq deploy --out build/my-bert --buckets 32,64,128"): (
        {"32,64,128": "8,16,32"},  # the tiny model has 64 positions
        [],
        {0},
    ),
    (
        "CONTRIBUTING.md",
        ".venv/bin/qdq lower --out build/all-MiniLM-L6-v2 --target openvino && sha256sum "
        "build/all-MiniLM-L6-v2/openvino/*.*",
    ): ({}, [], {0}),
}


def blocks() -> Iterator[tuple[tuple[str, str], str, str]]:
    """(page, first line without its comment), language and content of every fenced block."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for language, content in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
            first = next(line for line in content.splitlines() if line.strip())
            yield (page.relative_to(ROOT).as_posix(), re.sub(r"(?<=\S)\s{2,}#.*", "", first).strip()), language, content


def test_every_block_runs_in_a_test_or_says_why_not() -> None:
    known = {*ELSEWHERE, *NOT_RUN, *MAKE, *HERE}
    found = {key: language for key, language, _ in blocks()}
    unknown = [key for key, language in found.items() if key not in known and (key[0], language) not in WHOLE_PAGES]
    assert not unknown, f"blocks that nothing runs: {unknown}"
    assert not known - found.keys(), f"blocks that are on no page: {sorted(known - found.keys())}"
    for file, test in (*ELSEWHERE.values(), *WHOLE_PAGES.values()):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{test}"


def commands(key: tuple[str, str]) -> list[str]:
    """The lines of a block without comments."""
    (content,) = {content for found, _, content in blocks() if found == key}
    return [line for text in content.splitlines() if (line := re.sub(r"(^|\s+)# .*", "", text).strip())]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("key", sorted(MAKE))
def test_make_knows_what_is_asked_of_it(key: tuple[str, str]) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    for command in commands(key):
        words = shlex.split(command)
        assert words[0] == "make"
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, timeout=60, env=clean)
        assert done.returncode == 0, done.stderr
        named = {word.partition("=")[0] for word in words[2:]}
        assert all(re.search(rf"\b{name}\b", (ROOT / "Makefile").read_text()) for name in named), named


@pytest.fixture
def my_bert(workplace: Path) -> Path:
    """A folder with what the pages' commands name: two compiled models, a graph, and another tool's engine."""
    for name in ("my-bert", "all-MiniLM-L6-v2"):
        (workplace / "build").mkdir(exist_ok=True)
        shutil.copytree(workplace / "work", workplace / "build" / name)
    (workplace / "build/my-bert/tensorrt").mkdir()
    for place in (workplace, workplace / "build/my-bert/tensorrt"):
        shutil.copyfile(workplace / "work/model.qdq.onnx", place / "model.onnx")
    for suffix in ("xml", "bin"):
        shutil.copyfile(workplace / f"work/openvino/model.{suffix}", workplace / f"nncf.{suffix}")
    return workplace


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(key for key in HERE if key[1] != "make engine"))
def test_commands_of_a_page_run(my_bert: Path, key: tuple[str, str], qdq: Callable[..., Any]) -> None:
    instead, more, codes = HERE[key]
    for command in commands(key):
        first, _, behind = command.partition("&&")
        words = [instead.get(word, word) for word in shlex.split(first)]
        assert words[0].rpartition("/")[2] == "qdq"
        ran = qdq(*words[1:], *more)
        assert ran.code in codes, f"{command}\n{ran.out}\n{ran.err}"
        assert "internal error" not in ran.err
        if behind:
            subprocess.run(["sh", "-c", behind], cwd=my_bert, check=True, timeout=60, capture_output=True)


def test_the_repository_has_the_files_that_its_page_draws(my_bert: Path) -> None:
    """The tree in docs/triton.md, of a classifier for ONNX Runtime."""
    (content,) = (content for key, _, content in blocks() if key == ("docs/triton.md", "make engine"))
    drawn = re.findall(r"[├└]── (\S+)", content)
    folder = my_bert / "work/onnxruntime/model_repository"
    assert drawn[0] == "<name>/"
    for name in drawn[1:]:
        assert (folder / "tiny-bert" / name).exists(), name
