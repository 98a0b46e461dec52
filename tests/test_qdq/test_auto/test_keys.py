"""Every documented key of a configuration changes what it says: trainings, ranges and points of tiny models."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qdq.auto.compression import AutoCompression
from qdq.auto.config import HyperParameterOptimization, QuantAware, QuantPost, read_config
from qdq.auto.config.training import TrainConfig
from qdq.auto.steps import draw
from qdq.auto.strategy import Result
from qdq.auto.training.distance import flow_between
from qdq.auto.training.recipe import Gradients, Recompute, norm_limit
from qdq.compress.fake_quant import RangeSettings, TrainedQuantizer
from qdq.errors import ConfigError
from qdq.inject import inject, quantizers
from qdq.inject.quantizer import TensorQuantizer
from qdq.inject.spec import QuantSpec
from qdq.loading.model import LoadedModel

pytestmark = pytest.mark.usefixtures("light_collections")  # a training ends with a full one

State = Mapping[str, torch.Tensor]
TRAINING: dict[str, Any] = {"train_iter": 3, "eval_iter": 3, "learning_rate": 0.1}
LAYER = "bert.encoder.layer.0"


@pytest.fixture
def teacher(tiny_checkpoint: Callable[..., Path]) -> str:
    """A model of the same size that answers otherwise."""
    return str(tiny_checkpoint("bert", "text-classification", initializer_range=0.3))


@pytest.fixture
def run(compressing: Callable[..., AutoCompression], tmp_path: Path) -> Callable[..., Result]:
    """`run(config)`: the result of a run in a folder of its own; the evaluator finds every model better than before."""
    number = itertools.count()

    def one(config: dict[str, Any], **options: Any) -> Result:
        metrics = itertools.count(1)
        given = {"eval_callback": lambda model, loader: float(next(metrics)), **options}
        return compressing(config, save_dir=str(tmp_path / f"run-{next(number)}"), **given).compress()

    return one


def state(result: Result) -> State:
    return {name: tensor.clone() for name, tensor in result.model.state_dict().items()}


def alike(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


BUILDER = "optimizer_builder"


@pytest.mark.document_row("004/11", "004/14", "004/15")
def test_keys_of_training_and_distillation(run: Callable[..., Result], teacher: str) -> None:
    """Each of them, changed alone, gives other weights; the same configuration gives the same."""

    def trained(train: dict[str, Any], distillation: dict[str, Any]) -> State:
        teaching = {"teacher_model_dir": teacher, **distillation}
        return state(run({"Distillation": teaching, "TrainConfig": {**TRAINING, **train}}))

    base = trained({}, {})
    assert alike(base, trained({}, {}))
    decay = {"type": "PiecewiseDecay", "boundaries": [1], "values": [0.1, 0.01]}
    changed: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "learning_rate": ({"learning_rate": 0.05}, {}),
        "learning_rate by step": ({"learning_rate": decay}, {}),
        "optimizer": ({BUILDER: {"optimizer": {"type": "Momentum"}}}, {}),
        "weight_decay": ({BUILDER: {"weight_decay": 0.1}}, {}),
        "regularizer": ({BUILDER: {"regularizer": {"type": "L1Decay", "coeff": 0.1}}}, {}),
        "grad_clip": ({BUILDER: {"grad_clip": {"type": "ClipGradByGlobalNorm", "clip_norm": 0.01}}}, {}),
        "train_iter": ({"train_iter": 2, "eval_iter": 2}, {}),
        "epochs": ({"train_iter": None, "epochs": 1}, {}),
        "amp_config": ({"amp_config": {"dtype": "bfloat16"}}, {}),
        "loss": ({}, {"loss": "soft_label"}),
        "alpha": ({}, {"alpha": 0.3}),
        "node": ({}, {"node": [LAYER]}),
        "node of the teacher": ({}, {"node": ["teacher_bert.encoder.layer.1", LAYER]}),
        "fsp": ({}, {"loss": "fsp", "node": [LAYER, "bert.encoder.layer.1"]}),
        "teacher_model_dir": ({}, {"teacher_model_dir": None}),
    }
    found = {name: trained(*keys) for name, keys in changed.items()}
    assert [name for name, weights in found.items() if alike(base, weights)] == []
    different = [name for (name, one), (_, other) in itertools.combinations(found.items(), 2) if alike(one, other)]
    assert different == []


def test_several_teachers(run: Callable[..., Result], teacher: str, tiny_checkpoint: Callable[..., Path]) -> None:
    other = str(tiny_checkpoint("bert", "text-classification", initializer_range=0.2))

    def trained(**keys: Any) -> State:
        return state(run({"MultiTeacherDistillation": keys, "TrainConfig": TRAINING}))

    alone, both = trained(teacher_model_dir=[teacher]), trained(teacher_model_dir=[teacher, other])
    assert not alike(alone, both)
    assert alike(alone, trained(teacher_model_dir=[teacher, other], alpha=[1.0, 0.0]))


@pytest.mark.document_row("004/12")
def test_evaluations_and_lines_of_the_loss(
    run: Callable[..., Result], teacher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """eval_iter batches between evaluations, of which the best model is kept; logging_iter between lines."""
    evaluated: list[int] = []

    def evaluate(model: nn.Module, loader: Any) -> float:
        evaluated.append(1)
        return [1.0, 0.1, 0.6, 0.3, 0.2][min(len(evaluated), 5) - 1]  # before, at the start, and every second batch

    training = TRAINING | {"train_iter": 6, "eval_iter": 2, "logging_iter": 3}
    config = {"Distillation": {"teacher_model_dir": teacher}, "TrainConfig": training}
    result = run(config, eval_callback=evaluate)
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("loss ") == 2  # standard output is for the result
    assert len(evaluated) == 6  # and the result at the end
    assert result.steps[0]["notes"]["best_step"] == 2
    history = json.loads((result.folder / "training/distill/checkpoint-6/trainer_state.json").read_text())[
        "log_history"
    ]
    assert [line["step"] for line in history if "loss" in line] == [3, 6]


@pytest.mark.parametrize(
    ("keys", "metrics", "stopped"),
    [
        ({}, (0.5, 0.1, 0.2, 0.3, 0.4, 0.4), False),
        ({"target_metric": 0.25}, (0.5, 0.1, 0.2, 0.3, 0.4, 0.4), True),
        ({"target_metric": 0.45}, (0.5, 0.1, 0.2, 0.3, 0.4, 0.4), False),
        ({}, (0.5, 0.1, 0.2, 0.4985, 0.2, 0.2), True),  # within half a per cent of the metric before
        ({}, (0.5, 0.1, 0.2, 0.4965, 0.2, 0.2), False),
    ],
)
def test_a_training_that_is_good_enough_ends(
    keys: dict[str, Any], metrics: tuple[float, ...], stopped: bool, run: Callable[..., Result], teacher: str
) -> None:
    """Evaluations: before, at the start, at steps 2, 4 and 6, and the result."""
    values = iter(metrics)
    training = TRAINING | {"train_iter": 6, "eval_iter": 2, **keys}
    config = {"Distillation": {"teacher_model_dir": teacher}, "TrainConfig": training}
    folder = run(config, eval_callback=lambda model, loader: next(values)).folder / "training" / "distill"
    assert (folder / "stopped.json").is_file() == stopped
    assert (folder / "checkpoint-6").is_dir() != stopped


def test_a_training_that_ended_is_not_begun_again(
    compressing: Callable[..., AutoCompression], teacher: str, tmp_path: Path
) -> None:
    """A run that was killed behind the early end of its training takes the best model over."""
    training = TRAINING | {"train_iter": 6, "eval_iter": 2, "target_metric": 0.2}
    config = {"Distillation": {"teacher_model_dir": teacher}, "TrainConfig": training}
    results = []
    for values in (iter((0.5, 0.1, 0.3, 0.3)), iter((0.5, 0.3))):  # before and result only
        ac = compressing(config, save_dir=str(tmp_path), eval_callback=lambda model, loader, v=values: next(v))  # type: ignore[misc]
        results.append(state(ac.compress()))
    assert alike(*results)


def test_origin_metric_stops_before_any_training(run: Callable[..., Result], tmp_path: Path) -> None:
    config = {"Distillation": None, "TrainConfig": TRAINING | {"origin_metric": 0.94}}
    with pytest.raises(ConfigError, match=r"origin_metric is 0.94 and the given model has 1.0000, more than 0.05 off"):
        run(config)
    assert not list(tmp_path.glob("*/training"))
    config["TrainConfig"]["origin_metric"] = 0.96  # type: ignore[index]
    assert run(config).baseline == 1.0


def test_recomputed_layers(run: Callable[..., Result], teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights, from layers that were computed again."""
    seen: list[bool] = []
    begin = Recompute.on_train_begin

    def watched(self: Recompute, *arguments: Any, **kwargs: Any) -> None:
        begin(self, *arguments, **kwargs)
        seen.append(kwargs["model"].student.is_activation_checkpointing)

    monkeypatch.setattr(Recompute, "on_train_begin", watched)
    config = {"Distillation": {"teacher_model_dir": teacher}, "TrainConfig": TRAINING}
    plain = run(config)
    again = run({**config, "TrainConfig": TRAINING | {"recompute_config": {}}})
    assert seen == [True] and not again.model.is_activation_checkpointing
    assert all(torch.allclose(one, state(again)[name], atol=1e-5) for name, one in state(plain).items())


@pytest.mark.parametrize(
    ("clip", "gradients"),
    [
        ({"type": "ClipGradByGlobalNorm", "clip_norm": 1.0}, [[0.6, 0.0], [0.8]]),
        ({"type": "ClipGradByNorm", "clip_norm": 1.0}, [[1.0, 0.0], [1.0]]),
        ({"type": "ClipGradByValue", "max": 3.5}, [[3.0, 0.0], [3.5]]),
        ({"type": "ClipGradByValue", "max": 5.0, "min": 3.2}, [[3.2, 3.2], [4.0]]),
    ],
)
def test_clips_of_gradients(clip: dict[str, Any], gradients: list[list[float]]) -> None:
    section = TrainConfig(optimizer_builder={"grad_clip": clip})
    parameters = [nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([1.0]))]
    for parameter, gradient in zip(parameters, ([3.0, 0.0], [4.0]), strict=True):
        parameter.grad = torch.tensor(gradient)
    Gradients(section.builder.clip, None).on_pre_optimizer_step(None, None, None, optimizer=torch.optim.SGD(parameters))
    for parameter, wanted in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None and torch.allclose(parameter.grad, torch.tensor(wanted), atol=1e-5)
    assert norm_limit(section) == float("inf") and norm_limit(TrainConfig()) == 0


def test_penalties_are_added_behind_the_clip() -> None:
    section = TrainConfig(optimizer_builder={"regularizer": {"type": "L2Decay", "coeff": 0.5}})
    parameter = nn.Parameter(torch.tensor([2.0, -4.0]))
    parameter.grad = torch.zeros(2)
    callback = Gradients(None, section.builder.penalty)
    callback.on_pre_optimizer_step(None, None, None, optimizer=torch.optim.SGD([parameter]))
    assert parameter.grad.tolist() == [1.0, -2.0]


@pytest.mark.parametrize("name", ["SGD", "Momentum", "Adam", "AdamW", "Adamax", "Adagrad", "Adadelta", "RMSProp"])
def test_optimizers_by_name(name: str) -> None:
    section = TrainConfig(optimizer_builder={"optimizer": {"type": name}, "weight_decay": 0.5})
    parameter = nn.Parameter(torch.tensor([2.0]))
    from qdq.auto.config.keys import typed
    from qdq.auto.config.optimizers import OPTIMIZERS

    made = typed(OPTIMIZERS, section.builder.optimizer, "optimizer").make([{"params": [parameter], "lr": 0.1}], 0.5)
    assert type(made).__name__.lower() == {"Momentum": "sgd"}.get(name, name.lower())
    assert made.param_groups[0]["weight_decay"] == 0.5
    assert made.param_groups[0].get("momentum", 0) == (0.9 if name == "Momentum" else 0)


def placed(load_tiny: Callable[..., LoadedModel], spec: dict[str, Any]) -> dict[str, TensorQuantizer]:
    loaded = load_tiny()
    inject(loaded.model, QuantSpec(**spec))
    return dict(quantizers(loaded.model))


@pytest.mark.document_row("004/17")
def test_points_of_the_quantization_sections(load_tiny: Callable[..., LoadedModel]) -> None:
    """Operators, patterns, bits and scales decide what is quantized, and how."""
    linears = placed(load_tiny, QuantPost(quantize_op_types=("mul",)).spec())
    assert placed(load_tiny, QuantPost(quantize_op_types=("conv2d", "matmul_v2")).spec()).keys() == linears.keys()
    products = placed(load_tiny, QuantPost(quantize_op_types=("matmul",)).spec())
    default = placed(load_tiny, QuantAware().spec())
    assert default.keys() == linears.keys() | products.keys() and not linears.keys() & products.keys()
    full = placed(load_tiny, QuantAware(is_full_quantize=True).spec())
    assert full.keys() > default.keys() and any("add" in name for name in full.keys() - default.keys())
    fused = placed(load_tiny, QuantAware(for_tensorrt=True).spec())
    assert default.keys() < fused.keys() < full.keys()
    # Names that stay in floating point
    for section in (QuantAware(not_quant_pattern=("layer.1",)), QuantPost(skip_tensor_list=("layer.1",))):
        kept = placed(load_tiny, section.spec())
        assert kept and not any("layer.1" in name for name in kept)
    # Bits and scales of weights
    weights = [point for point in placed(load_tiny, QuantPost(weight_bits=4).spec()).values() if point.axis is not None]
    assert weights and {point._num_bits for point in weights} == {4}
    single = placed(load_tiny, QuantPost(weight_quantize_type="abs_max").spec())
    assert all(point.axis is None for point in single.values())


def test_ranges_of_quantization_aware_training(run: Callable[..., Result]) -> None:
    """use_pact, activation_quantize_type and moving_rate: other ranges after the same training."""

    def trained(**keys: Any) -> list[float]:
        config = {"QuantAware": {"quantize_op_types": ["mul"], **keys}, "Distillation": None, "TrainConfig": TRAINING}
        result = run(config)
        return [float(point.amax) for point in quantizers(result.model).values() if point.axis is None]

    found = [
        trained(),
        trained(use_pact=True),
        trained(activation_quantize_type="range_abs_max"),
        trained(activation_quantize_type="abs_max"),
        trained(moving_rate=0.5),
    ]
    assert len({tuple(one) for one in found}) == 5


def test_the_window_of_range_abs_max() -> None:
    """The largest magnitude of the last batches, of which the calibrated range is the first."""
    plain = TensorQuantizer("point", 8, None, "tokens")
    plain.set_amax(torch.tensor(5.0))
    point = TrainedQuantizer(plain, RangeSettings("range_abs_max", pact=False, window=2)).train()
    seen = []
    for largest in (2.0, 1.0, 3.0):
        point(torch.full((1, 2, 2), largest))
        seen.append(float(point.final_amax()))
    assert seen == [5.0, 2.0, 3.0]
    assert read_config(
        {"QuantAware": {"window_size": 7, "activation_quantize_type": "range_abs_max"}, "Distillation": {}}
    )


def test_ranges_and_weights_of_post_training_quantization(run: Callable[..., Result]) -> None:
    """Each key of QuantPost alone gives another quantized model."""

    def made(**keys: Any) -> State:
        return state(run({"QuantPost": {"batch_size": 4, "batch_nums": 2, "quantize_op_types": ["mul"], **keys}}))

    found = {
        "base": made(),
        "batch_size": made(batch_size=3),
        "batch_nums": made(batch_nums=1),
        "all data": made(batch_nums=None),
        "algo": made(algo="abs_max"),
        "hist_percent": made(hist_percent=0.9),
        "bias_correction": made(bias_correction=True),
        "activation_quantize_type": made(activation_quantize_type="moving_average_abs_max"),
        "recon_level": made(recon_level="layer-wise", epochs=5),
        "epochs": made(recon_level="layer-wise", epochs=6),
        "lr": made(recon_level="layer-wise", epochs=5, lr=0.02),
    }
    same = [(one, other) for one, other in itertools.combinations(found, 2) if alike(found[one], found[other])]
    assert same == []


def test_settings_of_a_search() -> None:
    """max_quant_count different settings within the lists and bounds; as many as there are in a small space."""
    found = list(draw(QuantPost(), HyperParameterOptimization(), 1))
    assert len(set(found)) == 20
    assert {one.algo for one in found} == {"KL", "hist", "avg", "mse"} and {one.bias_correction for one in found} == {
        True,
        False,
    }
    assert all(10 <= (one.batch_nums or 0) <= 30 for one in found)
    assert all(0.98 <= one.hist_percent <= 0.999 for one in found)
    small = HyperParameterOptimization(
        ptq_algo=("mse",),
        bias_correct=(True,),
        weight_quantize_type=("abs_max", "channel_wise_abs_max"),
        batch_num=(3, 4),
        max_quant_count=9,
    )
    assert {(one.weight_quantize_type, one.batch_nums) for one in draw(QuantPost(), small, 1)} == {
        (kind, count) for kind in ("abs_max", "channel_wise_abs_max") for count in (3, 4)
    }
    assert len(list(draw(QuantPost(), HyperParameterOptimization(max_quant_count=3), 1))) == 3


def test_the_best_of_a_search_is_kept(run: Callable[..., Result]) -> None:
    metrics = iter((0.9, 0.1, 0.7, 0.3))
    search = {"max_quant_count": 3, "batch_num": [1, 2]}
    result = run({"QuantPost": None, "HyperParameterOptimization": search}, eval_callback=lambda m, d: next(metrics))
    tried = [row["metric"] for row in result.steps[0]["notes"]["search"]]
    assert tried == [0.1, 0.7, 0.3] and result.metric == 0.7


@pytest.mark.document_row("004/16")
def test_ratio_and_criterion_of_pruning(
    run: Callable[..., Result], compressing: Callable[..., AutoCompression], tiny_checkpoint: Callable[..., Path]
) -> None:
    def pruned(**keys: Any) -> State:
        return state(
            run({"TransformerPrune": {"pruned_ratio": 0.5, **keys}, "Distillation": None, "TrainConfig": TRAINING})
        )

    by_loss, by_norm = pruned(), pruned(criterion="l1_norm")
    name = f"{LAYER}.intermediate.dense.weight"
    assert by_loss[name].shape == by_norm[name].shape == (32, 32)
    assert not torch.equal(by_loss[name], by_norm[name])
    with pytest.raises(
        ConfigError, match=r"pruned_ratio: 0\.3 of 2 heads is no whole number of them; ratios that are: 1/2"
    ):
        compressing({"Prune": {"pruned_ratio": 0.3}, "Distillation": None}).compress()


def test_flow_between_states() -> None:
    first, second = torch.randn(2, 3, 4), torch.randn(2, 3, 5)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    found = flow_between(first, second, mask)
    wanted = sum(torch.outer(first[0, place], second[0, place]) for place in range(2)) / 2
    assert found.shape == (2, 4, 5) and torch.allclose(found[0], torch.as_tensor(wanted), atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"node": ["bert.encoder.layer.9"]}, "has no module 'bert.encoder.layer.9'; did you mean"),
        ({"node": ["teacher_classifier", LAYER]}, "and the teacher's classifier [4, 2]; name nodes of one size"),
        ({"teacher_model_dir": "OTHER"}, "a teacher has the task and the classes of its student"),
        ({"teacher_model_dir": "./absent"}, "teacher_model_dir: there is no folder absent"),
    ],
)
def test_teachers_that_do_not_fit(
    keys: dict[str, Any], message: str, run: Callable[..., Result], tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """One error before anything is evaluated or trained."""
    if keys.get("teacher_model_dir") == "OTHER":
        keys = {"teacher_model_dir": str(tiny_checkpoint("bert", "text-classification", num_labels=3))}
    with pytest.raises(ConfigError) as error:
        run({"Distillation": keys, "TrainConfig": TRAINING})
    assert message in str(error.value) and "Distillation" in str(error.value)
    assert not list(tmp_path.glob("*/training"))
