"""Configurations: what every key is read as, and one clear error for everything wrong, before anything is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from qdq.auto.config import Configuration, MultiTeacherDistillation, QuantPost, read_config
from qdq.auto.config.distillation import NodeLoss
from qdq.auto.config.rates import rate_of
from qdq.errors import ConfigError

# The blocks that the document prints, one behind the other
PRINTED = """\
TrainConfig:
  epochs: 6
  eval_iter: 1070
  learning_rate: 2.0e-5
  optimizer_builder:
    optimizer:
      type: AdamW
    weight_decay: 0.01
  origin_metric: 0.7403
Distillation:
  teacher_model_dir: ./uie-base
  teacher_model_filename: inference.pdmodel
  teacher_params_filename: inference.pdiparams
Quantization:
  activation_bits: 8
  quantize_op_types:
  - conv2d
  - depthwise_conv2d
  - mul
  - matmul_v2
  weight_bits: 8
"""


@pytest.mark.document_row("004/11", "004/14", "004/17")
def test_the_printed_configuration(tmp_path: Path) -> None:
    file = tmp_path / "afqmc.yaml"
    file.write_text(PRINTED)
    found = read_config(file)
    assert found.strategies == ("qat",)
    assert (found.training.epochs, found.training.eval_iter, found.training.origin_metric) == (6, 1070, 0.7403)
    assert found.training.rate()(0) == 2e-5 and found.training.rate(quantization_last=True)(9) == pytest.approx(2e-6)
    assert found.training.builder.weight_decay == 0.01
    assert found.distillation is not None
    (teacher,) = found.distillation.teachers
    assert (teacher.model_dir, teacher.model_filename) == ("./uie-base", "inference.pdmodel")
    assert teacher.losses == (NodeLoss("l2", 1.0),)
    assert found.quant_aware is not None
    spec = found.quant_aware.spec()
    assert (spec["linear"], spec["matmul"], spec["residual"], spec["weight_bits"]) == (True, (), (), 8)


def test_sections_without_a_body_are_their_defaults() -> None:
    found = read_config(
        yaml.safe_load("Prune:\nDistillation:\nQuantPost:\nHyperParameterOptimization:\nTrainConfig:\n")
    )
    assert found.strategies == ("prune", "ptq")
    assert found.prune is not None and found.search is not None and found.quant_post is not None
    assert (found.prune.pruned_ratio, found.search.max_quant_count) == (0.25, 20)
    assert (found.training.learning_rate, found.training.eval_iter, found.training.logging_iter) == (0.02, 1000, 10)
    assert (found.quant_post.algorithm, found.quant_post.batch_size) == ("percentile:99.9", 32)
    assert found.quant_post.spec()["matmul"] == tuple("qkav")  # matmul is among the default operators
    assert read_config({}).strategies == ()


@pytest.mark.parametrize(
    ("sections", "steps"),
    [
        ("Distillation", ("distill",)),
        ("MultiTeacherDistillation", ("distill",)),
        ("QuantPost", ("ptq",)),
        ("Quantization HyperParameterOptimization", ("ptq",)),
        ("QuantAware Distillation", ("qat",)),
        ("TransformerPrune Distillation", ("prune",)),
        ("TransformerPrune Distillation QuantAware", ("prune", "qat")),
        ("QuantPost Distillation", ("distill", "ptq")),
    ],
)
def test_steps_of_sections(sections: str, steps: tuple[str, ...]) -> None:
    """Quantization runs last, whatever the order of the sections."""
    content: dict[str, Any] = dict.fromkeys(reversed(sections.split()))
    if "MultiTeacherDistillation" in content:
        content["MultiTeacherDistillation"] = {"teacher_model_dir": ["a", "b"]}
    assert read_config(content).strategies == steps


def test_nodes_losses_and_alphas() -> None:
    def losses(**keys: Any) -> tuple[NodeLoss, ...]:
        found = read_config({"Distillation": keys}).distillation
        assert found is not None
        return found.teachers[0].losses

    assert losses(node=["teacher_a", "b", "c"]) == (NodeLoss("l2", 1.0, (("a", "b"), ("c", "c"))),)
    both = (NodeLoss("l2", 1.0, (("a", "a"),)), NodeLoss("soft_label", 0.5, (("b", "c"),)))
    assert losses(loss=["l2", "soft_label"], alpha=[1.0, 0.5], node=[["a"], ["teacher_b", "c"]]) == both
    assert losses(loss=["l2", "soft_label"], alpha=[1.0, 0.5], node=["a", "teacher_b", "c"]) == both
    assert losses(loss="fsp", node=["a", "b"]) == (NodeLoss("fsp", 1.0, (("a", "a"), ("b", "b"))),)
    former = losses(
        distill_loss="soft_label", distill_lambda=2.0, distill_node_pair=["teacher_a", "b"], merge_feed=True
    )
    assert former == (NodeLoss("soft_label", 2.0, (("a", "b"),)),)
    several = read_config(
        {"MultiTeacherDistillation": {"teacher_model_dir": ["x", "y"], "alpha": [1.0, 3.0], "node": [["a"], ["b"]]}}
    ).distillation
    assert isinstance(several, MultiTeacherDistillation)
    assert [teacher.losses[0].alpha for teacher in several.teachers] == [1.0, 3.0]
    assert [teacher.losses[0].pairs for teacher in several.teachers] == [(("a", "a"),), (("b", "b"),)]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ({"type": "PiecewiseDecay", "boundaries": [2, 4], "values": [1.0, 0.5, 0.1]}, [1, 1, 0.5, 0.5, 0.1]),
        ({"type": "ExponentialDecay", "learning_rate": 1.0, "gamma": 0.5}, [1, 0.5, 0.25]),
        ({"type": "NaturalExpDecay", "learning_rate": 1.0, "gamma": 0.1}, [1, 0.904837, 0.818731]),
        ({"type": "InverseTimeDecay", "learning_rate": 1.0, "gamma": 1.0}, [1, 0.5, 1 / 3]),
        (
            {"type": "PolynomialDecay", "learning_rate": 1.0, "decay_steps": 4, "end_lr": 0.0},
            [1, 0.75, 0.5, 0.25, 0, 0],
        ),
        ({"type": "StepDecay", "learning_rate": 1.0, "step_size": 2}, [1, 1, 0.1, 0.1, 0.01]),
        ({"type": "MultiStepDecay", "learning_rate": 1.0, "milestones": [1, 3], "gamma": 0.5}, [1, 0.5, 0.5, 0.25]),
        ({"type": "CosineAnnealingDecay", "learning_rate": 1.0, "T_max": 4}, [1, 0.853553, 0.5, 0.146447, 0]),
        ({"type": "NoamDecay", "d_model": 4, "warmup_steps": 2}, [0.176777, 0.353553, 0.288675]),
        (
            {"type": "LinearWarmup", "learning_rate": 2.0, "warmup_steps": 2, "start_lr": 0.0, "end_lr": 1.0},
            [0, 0.5, 2, 2],
        ),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_learning_rates_by_name(schedule: dict[str, Any], rates: list[float]) -> None:
    """Against Paddle's formulas, worked out by hand; each is stepped once per batch."""
    rate = rate_of(schedule)
    assert [rate(step) for step in range(len(rates))] == pytest.approx(rates, abs=1e-6)


WRONG: list[tuple[str, str]] = [
    ("Distilation:", "unknown section 'Distilation'; did you mean 'Distillation'?"),
    ("ChannelPrune: {pruned_ratio: 0.3}", "section ChannelPrune cuts channels of convolutions"),
    ("ASPPrune:", "section ASPPrune makes zeros that no INT8 engine"),
    ("UnstructurePrune:", "section UnstructurePrune makes zeros"),
    ("Prune: {prune_algo: asp}\nDistillation:", "Prune: prune_algo: asp makes zeros"),
    ("Prune: {prune_algo: prune}\nDistillation:", "Prune: prune_algo: prune cuts channels"),
    ("Prune: {prune_params_name: [a]}\nDistillation:", "Prune: prune_params_name: heads and neurons of every layer"),
    ("Prune: {criterion: bn_scale}\nDistillation:", "criterion: unknown value 'bn_scale'"),
    ("Prune:", "Prune trains by distillation; add a section Distillation:"),
    ("QuantAware:", "QuantAware trains by distillation"),
    ("QuantAware:\nQuantPost:\nDistillation:", "QuantAware and QuantPost both quantize"),
    ("Quantization:\nQuantAware:\nDistillation:", "two names of one section"),
    ("Distillation:\nMultiTeacherDistillation: {teacher_model_dir: [a]}", "leave Distillation out"),
    ("HyperParameterOptimization:", "add a section QuantPost:"),
    ("QuantPost: {algo: KL}\nHyperParameterOptimization:", "QuantPost: algo: HyperParameterOptimization searches it"),
    ("Quantization: {use_pact: true}\nHyperParameterOptimization:", "use_pact: HyperParameterOptimization trains"),
    ("TrainConfig: {epoch: 3}", "TrainConfig: unknown key 'epoch'; did you mean 'epochs'?"),
    ("TrainConfig: {epochs: six}", "TrainConfig: epochs: expected int | None, found 'six'"),
    ("TrainConfig: {epochs: 0}", "TrainConfig: epochs: 0 must be positive"),
    ("TrainConfig: {epochs: 1, train_iter: 2}", "both say how long to train"),
    ("TrainConfig: {learning_rate: 2e-5}", "learning_rate: YAML reads 2e-5 as text; write 2.0e-5"),
    ("TrainConfig: {learning_rate: {type: PiecewiseDecai}}", "unknown type 'PiecewiseDecai'; did you mean"),
    ("TrainConfig: {learning_rate: {boundaries: [1]}}", "learning_rate: has no type"),
    ("TrainConfig: {learning_rate: {type: StepDecay, learning_rate: 1.0}}", "StepDecay: has no step_size"),
    ("TrainConfig: {learning_rate: {type: LambdaDecay}}", "LambdaDecay: takes a function"),
    (
        "TrainConfig: {learning_rate: {type: PiecewiseDecay, boundaries: [1], values: [1.0]}}",
        "1 boundaries need 2 values, found 1",
    ),
    ("TrainConfig: {optimizer_builder: {optimizer: {type: AdmW}}}", "unknown type 'AdmW'; did you mean 'Adam"),
    ("TrainConfig: {optimizer_builder: {optimizer: {type: Lamb}}}", "type Lamb: torch has none"),
    ("TrainConfig: {optimizer_builder: {weigth_decay: 0.1}}", "did you mean 'weight_decay'?"),
    ("TrainConfig: {optimizer_builder: {grad_clip: {type: ClipGradByValue}}}", "ClipGradByValue: has no max"),
    ("TrainConfig: {amp_config: {custom_white_list: [softmax]}}", "custom_white_list: operators are chosen by torch"),
    ("TrainConfig: {amp_config: {use_pure_fp16: true}}", "use_pure_fp16: weights stay in FP32"),
    ("TrainConfig: {recompute_config: {checkpoints: [a]}}", "checkpoints: names variables of a Paddle program"),
    ("TrainConfig: {sharding_config: {}}", "sharding_config: parameters are sharded by"),
    ("TrainConfig: {sparse_model: true}", "sparse_model: no engine here"),
    ("Distillation: {loss: l3}", "loss: unknown value 'l3'"),
    ("Distillation: {loss: [l2, l2], node: [[a]]}", "loss: has 2 entries for 1 of lists of nodes"),
    ("Distillation: {loss: fsp, node: [a]}", "fsp compares the flow between two nodes"),
    ("Distillation: {node: [teacher_a]}", "behind teacher_a the node of the student is missing"),
    ("Distillation: {node: [a, [b]]}", "names and lists of names beside each other"),
    ("Distillation: {merge_feed: false}", "merge_feed: teacher and student read the same batches"),
    ("Distillation: {node: [a], distill_node_pair: [b]}", "node is given twice"),
    ("MultiTeacherDistillation:", "has no teacher_model_dir"),
    ("MultiTeacherDistillation: {teacher_model_dir: [a, b], alpha: [1.0]}", "alpha: has 1 entries for 2 of teacher"),
    ("QuantPost: {activation_bits: 4}", "activation_bits: 4: engines multiply 8 bits"),
    ("QuantPost: {weight_bits: 16}", "weight_bits: 16 is outside 2..8"),
    ("QuantPost: {algo: minmax}", "algo: unknown value 'minmax'"),
    ("QuantPost: {quantize_op_types: [matmull]}", "quantize_op_types: unknown value 'matmull'"),
    ("QuantPost: {quantize_op_types: [conv2d]}", "names convolutions only"),
    ("QuantPost: {onnx_format: false}", "onnx_format: engines are built from QuantizeLinear"),
    ("QuantPost: {recon_level: region-wise}", "region-wise is not built here"),
    ("QuantPost: {regions: []}", "regions: belongs to recon_level region-wise"),
    ("QuantPost: {region_weights_names: []}", "region_weights_names: belongs to recon_level region-wise"),
    ("QuantPost: {simulate_activation_quant: true}", "simulate_activation_quant: AdaRound looks at inputs in floating"),
    ("QuantPost: {epochs: 3}", "epochs and lr are those of recon_level"),
    ("QuantPost: {algo: KL, hist_percent: 0.9}", "hist_percent: is of algo hist"),
    ("QuantPost: {hist_percent: 99.9}", "hist_percent: 99.9 is outside (0, 1]"),
    ("QuantPost: {algo: KL, activation_quantize_type: abs_max}", "abs_max is a range by itself"),
    ("QuantAware: {dtype: int4}\nDistillation:", "dtype: int4: codes are int8"),
    ("QuantAware: {window_size: 5}\nDistillation:", "window_size: is of range_abs_max"),
    ("QuantAware: {use_pact: true, moving_rate: 0.5}\nDistillation:", "moving_rate: use_pact learns the ranges"),
    ("QuantPost:\nHyperParameterOptimization: {batch_num: [3]}", "batch_num: [3] must be a lower and an upper bound"),
    ("QuantPost:\nHyperParameterOptimization: {hist_percent: [0.9, 1.5]}", "hist_percent: 1.5 is outside (0, 1]"),
    ("QuantPost:\nHyperParameterOptimization: {max_quant_count: 0}", "max_quant_count: 0 must be positive"),
    ("Global: {batch_size: 3}", "Global: has no model_dir"),
    ("Global: {model_dir: m, dataset: clue, task_name: afqmk}", "clue has no task 'afqmk'; did you mean 'afqmc'?"),
    ("Global: {model_dir: m, dataset: clue}", "task_name is missing"),
    ("Global: [a]", "Global: expected keys with values"),
    ("3: {}", "unknown section '3'"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[text[:50] for text, _ in WRONG])
def test_everything_wrong_is_one_clear_error(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_config(file)
    assert message in str(error.value) and str(error.value).startswith(str(file))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(ConfigError, match="expected a mapping"):
        read_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_config(tmp_path / "broken.yaml")
    with pytest.raises(ConfigError, match="section Global is missing"):
        read_config({"TrainConfig": None}, needs_model=True)


def test_a_search_over_the_former_name() -> None:
    found: Configuration = read_config({"Quantization": {"weight_bits": 4}, "HyperParameterOptimization": None})
    assert isinstance(found.quant_post, QuantPost) and found.quant_post.weight_bits == 4 and found.quant_aware is None


def test_every_key_of_the_document_is_typed_in_a_test() -> None:
    """Keys of all sections, and those that are refused or renamed: none is read without a test that writes it."""
    from dataclasses import fields

    from qdq.auto import config
    from qdq.auto.config.distillation import FORMER
    from qdq.auto.config.quantization import QUANT_POST_REFUSED
    from qdq.auto.config.sections import PRUNE_REFUSED
    from qdq.auto.config.training import TRAIN_REFUSED, OptimizerBuilder

    sections = ("Global", "TrainConfig", "Distillation", "MultiTeacherDistillation", "TransformerPrune")
    sections += ("QuantAware", "QuantPost", "HyperParameterOptimization")
    keys = {field.name for name in sections for field in fields(getattr(config, name))}
    keys |= {field.name for field in fields(OptimizerBuilder)}
    keys |= {*FORMER, *QUANT_POST_REFUSED, *PRUNE_REFUSED, *TRAIN_REFUSED, "prune_algo", "merge_feed"}
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py")))
    written = set(re.findall(r"(\w+)(?:\"\])?[\"']?\s*(?:=|:)", text))
    assert sorted(keys - written) == []
