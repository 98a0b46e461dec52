"""The repository of a text model: what is written, and that it is written whole or not at all."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from engines.serving.form import FILE, TextForm
from engines.triton import TritonSettings, write_text_repository
from engines.triton.model_config import read_config
from engines.triton.text.orchestration import compose, kubernetes
from engines.types import BuiltEngine
from qdq.errors import DeployError

pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="the triton extra is not installed")
SETTINGS = TritonSettings("tiny", "onnxruntime", max_batch_size=8, queue_size=3, about=("a model",))


@pytest.fixture
def form() -> TextForm:
    return TextForm(
        task="text-classification",
        engine="onnxruntime",
        files=("model.onnx",),
        threads=2,
        hint="f32",
        inputs=("input_ids", "attention_mask"),
        outputs=("logits",),
        types={"input_ids": "int64", "attention_mask": "int64"},
        sequence=8,
        characters=512,
        packed=False,
        typed=False,
        pad={"input_ids": 0, "token_type_ids": 0},
        pad_left=False,
        sample={"TEXT": ("it's a cat",)},
        labels=("no", "yes"),
    )


Write = Callable[..., Path]


@pytest.fixture
def write(engine: BuiltEngine, form: TextForm, tmp_path: Path) -> Write:
    """`write(settings, **changes of the form)`: the repository of the tiny engine."""

    def written(settings: TritonSettings = SETTINGS, **changes: Any) -> Path:
        folder = tmp_path / "repository"
        write_text_repository(engine, replace(form, **changes), '{"a": "tokenizer"}', settings, folder)
        return folder

    return written


def test_the_engine_file_is_served_with_its_tokenizer(write: Write, engine: BuiltEngine, form: TextForm) -> None:
    version = write() / "tiny" / "1"
    assert (version / engine.files[0].name).read_bytes() == engine.files[0].read_bytes()
    assert (version / "tokenizer.json").read_text() == '{"a": "tokenizer"}'
    assert TextForm.read(version / FILE) == form
    assert (version / "lib/engines/onnxruntime/runner.py").is_file()


def test_the_configuration_takes_strings(write: Write) -> None:
    config = read_config(write() / "tiny" / "config.pbtxt")
    assert (config.backend, config.max_batch_size) == ("python", 8)
    assert [(item.name, item.data_type, list(item.dims), item.optional) for item in config.input] == [
        ("TEXT", 13, [1], False),
        ("TEXT_PAIR", 13, [1], True),
    ]
    assert [item.name for item in config.output] == ["LABEL", "SCORE", "PROBABILITIES", "LOGITS", "TOKENS", "CUT"]
    assert not config.dynamic_batching.preferred_batch_size
    assert not config.response_cache.enable
    values = [config.parameters[name].string_value for name in ("threads", "characters", "queue_size")]
    assert values == ["2", "512", "256"]


def test_only_a_timeout_gives_the_queue_a_policy_of_tritons(write: Write) -> None:
    """With any policy its batcher sleeps while requests wait for a busy instance; the model keeps the limit."""
    assert not read_config(write() / "tiny" / "config.pbtxt").dynamic_batching.HasField("default_queue_policy")
    timed = read_config(write(replace(SETTINGS, queue_timeout_ms=20)) / "tiny" / "config.pbtxt")
    policy = timed.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (3, 20_000)


def test_requests_of_unequal_many_choices_wait_together(write: Write) -> None:
    config = read_config(
        write(task="multiple-choice", sample={"TEXT": ("a",), "CHOICES": ("b", "c")}) / "tiny/config.pbtxt"
    )
    assert [(list(item.dims), item.allow_ragged_batch) for item in config.input] == [([1], False), ([-1], True)]


def test_the_response_cache_is_an_option(write: Write) -> None:
    assert read_config(write(replace(SETTINGS, cache=True)) / "tiny" / "config.pbtxt").response_cache.enable


def test_requirements_name_the_versions_that_were_timed(write: Write) -> None:
    model = write() / "tiny"
    lines = (model / "requirements.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in lines] == ["numpy", "tokenizers", "onnxruntime", "onnx"]
    dockerfile = (model / "Dockerfile").read_text().splitlines()
    assert len(dockerfile) == 3 and dockerfile[0].startswith("FROM nvcr.io/nvidia/tritonserver:")


def test_the_readme_has_a_request_for_the_shell(write: Write) -> None:
    readme = (write() / "tiny" / "README.md").read_text()
    assert """curl localhost:8000/v2/models/tiny/generate -d '{"TEXT": "it'\\''s a cat"}'""" in readme
    assert "at most 8 tokens and 512 characters" in readme and "a model" in readme


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "PROBABILITIES are the softmax of LOGITS"),
        ({"head": "scores", "activation": "sigmoid", "labels": ()}, "SCORE is what sigmoid makes of them"),
        ({"head": "multi-label", "thresholds": (0.5, 0.25)}, "is above 0.5, 0.25"),
        ({"prompt": "query: "}, "the server puts the prompt 'query: ' in front"),
        ({"task": "question-answering", "sample": {"QUESTION": ("a",), "CONTEXT": ("b",)}}, "START to END"),
    ],
)
def test_what_outputs_mean_is_said(write: Write, changes: dict[str, Any], said: str) -> None:
    model = write(**changes) / "tiny"
    assert said in (model / "README.md").read_text()
    assert any(said in line for line in (model / "config.pbtxt").read_text().splitlines() if line.startswith("# "))


def test_the_same_engine_gives_the_same_bytes(write: Write) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert contents(write()) == contents(write())


def test_a_repository_of_somebody_else_is_refused(write: Write) -> None:
    folder = write()
    (folder / "other").mkdir()
    with pytest.raises(DeployError, match="holds 'other' beside the model 'tiny'"):
        write()


def test_a_missing_engine_file_leaves_the_repository_as_it_was(write: Write, engine: BuiltEngine) -> None:
    folder = write()
    engine.files[0].unlink()
    with pytest.raises(DeployError, match="is missing"):
        write()
    assert (folder / "tiny" / "config.pbtxt").is_file()


def test_a_form_of_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"task": "text-classification", "colour": 1}))
    with pytest.raises(ValueError, match=r"text\.json cannot be read .* deploy the model again"):
        TextForm.read(tmp_path / FILE)


@pytest.mark.parametrize(("value", "threads"), [("4", 4), ("0", 0)])
def test_the_servers_own_parameters_change_the_form(form: TextForm, value: str, threads: int) -> None:
    assert form.changed({"threads": {"string_value": value}, "other": {"string_value": "x"}}).threads == threads


def test_a_parameter_that_is_no_number_is_named(form: TextForm) -> None:
    with pytest.raises(ValueError, match="parameter threads is 'all'; it is a whole number"):
        form.changed({"threads": {"string_value": "all"}})


def test_a_plan_is_served_by_a_model_of_its_own_behind_the_texts(
    engine: BuiltEngine, form: TextForm, tmp_path: Path
) -> None:
    (tmp_path / "model.plan").write_bytes(b"plan")
    plan = replace(engine, target="tensorrt", files=(tmp_path / "model.plan",))
    settings = replace(SETTINGS, backend="tensorrt")
    folder = tmp_path / "repository"
    served = replace(form, engine="tensorrt", files=("model.plan",), buckets=(4, 8))
    assert write_text_repository(plan, served, "{}", settings, folder) == ["tiny", "tiny_plan"]
    config = read_config(folder / "tiny_plan" / "config.pbtxt")
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 0)
    assert [list(item.dims) for item in config.input] == [[-1, -1], [-1, -1]]
    assert not (folder / "tiny" / "1" / "model.plan").exists()
    assert not list((folder / "tiny" / "1" / "lib").rglob("openvino"))


@pytest.mark.parametrize("name", ["tiny", "My_Model.v2"])
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_orchestration_tries_the_model_with_a_real_request(form: TextForm, name: str, target: str) -> None:
    served = replace(form, engine=target)
    settings = replace(SETTINGS, name=name, backend=target)
    (service,) = yaml.safe_load(compose(served, settings))["services"].values()
    deployment, exposed = yaml.safe_load_all(kubernetes(served, settings))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    probe = container["livenessProbe"]["exec"]["command"]
    assert [word.replace("$$", "$") for word in service["healthcheck"]["test"]] == ["CMD", *probe]
    assert probe[3:] == [f"http://localhost:8000/v2/models/{name}/generate", '{"TEXT": "it\'s a cat"}']
    # Shared memory, an end in order, limits
    assert (
        service["shm_size"] == "512mb"
        and {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
    )
    assert pod["terminationGracePeriodSeconds"] > 60 and container["lifecycle"]["preStop"]
    assert container["resources"]["limits"].get("nvidia.com/gpu") == ("1" if target == "tensorrt" else None)
    assert exposed["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", deployment["metadata"]["name"])


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize(("code", "healthy"), [("200", True), ("503", True), ("500", False), ("000", False)])
def test_the_probe_takes_a_full_queue_for_health_and_an_error_for_none(
    form: TextForm, tmp_path: Path, code: str, healthy: bool, cache: bool
) -> None:
    (service,) = yaml.safe_load(compose(form, replace(SETTINGS, cache=cache)))["services"].values()
    command = [word.replace("$$", "$") for word in service["healthcheck"]["test"][1:]]  # as compose reads it
    (tmp_path / "curl").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nprintf {code}\n')
    (tmp_path / "curl").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    ran = subprocess.run(command, env=environment)
    assert (ran.returncode == 0) == healthy
    asked = (tmp_path / "asked").read_text()
    assert re.search(r'\{"TEXT": "\d{9,}"\}' if cache else r"it's a cat", asked)  # what a cache has not seen


def test_a_plan_runs_each_bucket_on_its_own_profile_with_graphs(
    plan: BuiltEngine, write: Write, tmp_path: Path
) -> None:
    """Behind the profile of all shapes; without profiles in the plan the configuration names none."""
    form = TextForm.read(write() / "tiny" / "1" / FILE)
    form = replace(form, engine="tensorrt", files=("model.plan",), buckets=(4, 8))
    settings = TritonSettings("tiny", "tensorrt", max_batch_size=3, buckets=(4, 8))
    write_text_repository(plan, form, "{}", settings, tmp_path / "plans")
    config = read_config(tmp_path / "plans" / "tiny_plan" / "config.pbtxt")
    assert list(config.instance_group[0].profile) == ["1", "2"] and config.optimization.cuda.graphs
    specs = [
        {name: list(shape.dim) for name, shape in spec.input.items()} for spec in config.optimization.cuda.graph_spec
    ]
    assert [spec["input_ids"] for spec in specs] == [[size, length] for length in (4, 8) for size in (1, 2, 3)]
    assert all(spec["attention_mask"] == spec["input_ids"] for spec in specs) and config.max_batch_size == 0
    write_text_repository(plan, form, "{}", replace(settings, buckets=()), tmp_path / "plans")
    plain = read_config(tmp_path / "plans" / "tiny_plan" / "config.pbtxt")
    assert not plain.instance_group[0].profile and not plain.optimization.HasField("cuda")
