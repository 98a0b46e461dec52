"""Length buckets are models of their own: written, read back, chosen by length, refused where they make no sense."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.triton import check_repository, model_for, write_repository
from engines.triton import model_config as model_config_module
from engines.types import BuiltEngine
from qdq.errors import ConfigError, DeployError

from .triton_parts import FEEDS, settings


def test_every_bucket_is_a_model_of_its_own_length(engine: BuiltEngine, plan: BuiltEngine, tmp_path: Path) -> None:
    folder = tmp_path / "model_repository"
    samples = [{name: np.resize(array, width) for name, array in FEEDS.items()} for width in (4, 16)]
    served = settings(buckets=(4, 16), threads=2)
    write_repository(engine, served, samples, folder)
    check_repository(folder, engine, served)
    for width in (4, 16):
        config = model_config_module.read_config(folder / f"tiny_s{width}" / "config.pbtxt")
        assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[width], [width], [2]]
        assert [(sample.batch_size, list(sample.inputs["input_ids"].dims)) for sample in config.model_warmup] == [
            (1, [width]),
            (40, [width]),
        ]
        (resource,) = config.instance_group[0].rate_limiter.resources
        assert (resource.name, getattr(resource, "global"), resource.count) == ("tiny_cores", True, 1)
    assert [model_for("tiny", (4, 16), tokens) for tokens in (1, 4, 5)] == [
        ("tiny_s4", 4),
        ("tiny_s4", 4),
        ("tiny_s16", 16),
    ]
    with pytest.raises(ConfigError, match=r"17 tokens fits none of the buckets \(4, 16\); cut it to 16"):
        model_for("tiny", (4, 16), 17)
    on_gpu = tmp_path / "gpu"
    write_repository(plan, settings(backend="tensorrt", buckets=(4, 16)), samples, on_gpu)
    config = model_config_module.read_config(on_gpu / "tiny_s16" / "config.pbtxt")
    assert not config.instance_group[0].rate_limiter.resources  # instances on a GPU do not share cores
    with pytest.raises(DeployError, match="models: found"):
        check_repository(folder, engine, settings(buckets=(4, 8, 16)))
    path = folder / "tiny_s4" / "config.pbtxt"
    path.write_text(path.read_text().replace("tiny_cores", "my_cores"))
    with pytest.raises(DeployError, match=r"tiny_s4.*rate_limiter resources"):
        check_repository(folder, engine, served)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": (8, 4)}, "strictly increasing"),
        ({"buckets": (4, 4)}, "strictly increasing"),
        ({"buckets": (4,), "backend": "openvino"}, "openvino backend, whose batches are the client's"),
    ],
)
def test_buckets_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


def test_a_bucket_needs_its_sample_and_a_length_the_engine_takes(engine: BuiltEngine, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 Triton model\(s\) need one warm-up sample each; found 1"):
        write_repository(engine, settings(buckets=(4, 6)), [FEEDS], tmp_path / "model_repository")
    fixed = dataclasses.replace(
        engine, inputs=tuple(dataclasses.replace(info, shape=("batch", 8)) for info in engine.inputs)
    )
    with pytest.raises(DeployError, match="takes 8 tokens, so it cannot serve a bucket of 6"):
        write_repository(fixed, settings(buckets=(6,)), [FEEDS], tmp_path / "model_repository")
