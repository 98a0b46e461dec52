"""The OpenVINO engine: what it runs in INT8 by its own account, settings that are applied, files whole or absent."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper

from engines.instructions import Int8Sums, int8_sums
from engines.openvino import OpenVINORunner, OpenVINOSettings, build
from engines.pieces import piece_of
from engines.types import BuiltEngine, MatmulNames
from export.to_onnx import save_proto
from qdq.errors import BuildError, ConfigError, DeployError
from qdq.pipeline.stages.build import multiplications

ONE_THREAD = OpenVINOSettings(threads=1)
TAKEN_OUT = "two activations could saturate on this CPU; computed in float"
DENSE = "intermediate.dense"
DENSE_MATMUL = f"encoder.layer.0.{DENSE}.MatMul"
QK, PV = "encoder.layer.0.attention.self.MatMul", "encoder.layer.0.attention.self.MatMul_1"
SATURATES = int8_sums().saturate  # then engines built here have float attention, see engines/openvino/saturation.py


def built(model: Path, settings: OpenVINOSettings = ONE_THREAD, names: MatmulNames | None = None) -> BuiltEngine:
    return build(model, model.parent / "openvino", settings, names or multiplications(model))


def report(engine: BuiltEngine) -> Any:
    assert engine.int8 is not None
    return engine.int8


def float_linears(found: Any) -> list[tuple[str, str]]:
    """(name, reason) of what is not INT8, attention left out where every engine built here has it in float."""
    return [(item.name, item.reason) for item in found.not_int8 if not (SATURATES and item.name in (QK, PV))]


def check_attention_is_float(found: Any) -> None:
    assert (found.attention_matmul, found.inferred) == ((0, 2), ())
    assert {item.name: item.reason for item in found.not_int8} == dict.fromkeys((QK, PV), TAKEN_OUT)


def supports(precision: str) -> bool:
    return precision in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


# --- what runs in INT8 ----------------------------------------------------------------------------------------------


def test_every_quantized_multiplication_reads_back_int8(write_encoder: Callable[..., Path]) -> None:
    found = report(built(write_encoder()))
    assert found.encoder_linear == (6, 6)
    if SATURATES:
        check_attention_is_float(found)
        return
    assert found.attention_matmul == (2, 2)
    assert found.not_int8 == ()
    assert found.inferred == (QK, PV)  # one fused block reports one precision for both


def test_for_a_cpu_whose_products_saturate_attention_is_float(write_encoder: Callable[..., Path]) -> None:
    """On whatever CPU it is built; two activations can both be large, so no weight could be made to fit."""
    engine = built(write_encoder(), OpenVINOSettings(1, sums=Int8Sums(("avx2",), saturate=True)))
    found = report(engine)
    assert found.encoder_linear == (6, 6)
    check_attention_is_float(found)
    fitted = engine.settings["int8_sums"]["fitted"]
    assert (fitted["linears"], fitted["float_products"]) == (6, [QK, PV])


def test_a_linear_without_quantizers_is_counted_and_named(write_encoder: Callable[..., Path]) -> None:
    found = report(built(write_encoder(float_inputs=[DENSE], float_weights=[DENSE])))
    assert found.encoder_linear == (5, 6)
    assert float_linears(found) == [(DENSE_MATMUL, "the placement quantizes neither operand")]


@pytest.mark.parametrize(
    ("float_inputs", "float_weights", "says"),
    [
        ([DENSE], [DENSE], "OpenVINO's FullyConnected takes f32 and f32"),
        ([], [DENSE], "OpenVINO's FullyConnected takes f32 and f32"),
        # OpenVINO stores the INT8 weight, calls the FullyConnected i8, and multiplies floats: not to be believed
        ([DENSE], [], "OpenVINO's compiled model has no multiplication of this name"),
    ],
)
def test_a_linear_that_reads_back_float_is_reported_whatever_was_expected(
    write_encoder: Callable[..., Path], float_inputs: list[str], float_weights: list[str], says: str
) -> None:
    """The names come from the fully quantized graph, so nothing but the engine knows that one linear is float."""
    expected = multiplications(write_encoder("expected.onnx"))
    found = report(built(write_encoder("m.onnx", float_inputs, float_weights), names=expected))
    assert found.encoder_linear == (5, 6)
    assert float_linears(found) == [(DENSE_MATMUL, says)]


def test_unsigned_attention_reads_back_float(write_encoder: Callable[..., Path], tmp_path: Path) -> None:
    """Why OpenVINO gets s8: with u8 codes its attention matmuls run in f32, each a primitive of its own."""
    from export.passes import lower

    lower(write_encoder(), "onnxruntime", tmp_path / "u8")
    found = report(built(tmp_path / "u8" / "model.onnx"))
    assert found.encoder_linear == (6, 6)
    if SATURATES:
        check_attention_is_float(found)
        return
    assert found.attention_matmul == (0, 2)
    assert [item.reason for item in found.not_int8] == ["OpenVINO's MatMul takes f32 and f32"] * 2
    assert found.inferred == ()


def test_a_half_quantized_attention_counts_the_quantized_matmul_only(write_encoder: Callable[..., Path]) -> None:
    found = report(built(write_encoder(operands=("q", "k"))))
    assert found.attention_matmul == (0 if SATURATES else 1, 2)
    assert found.inferred == (() if SATURATES else (QK,))
    assert [item.name for item in found.not_int8] == ([QK, PV] if SATURATES else [PV])


def test_a_floating_point_engine_has_no_report(write_encoder: Callable[..., Path], tmp_path: Path) -> None:
    engine = build(write_encoder(), tmp_path / "float", ONE_THREAD, None, stem="fp32")
    assert engine.int8 is None
    assert [file.name for file in engine.files] == ["fp32.xml", "fp32.bin"]


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hint", ["f32", "bf16"])
def test_the_precision_hint_is_recorded_and_applied(write_encoder: Callable[..., Path], hint: str) -> None:
    if hint == "bf16" and not supports("BF16"):
        pytest.skip("this CPU has no bf16, OpenVINO computes in f32 instead")
    model = write_encoder(float_inputs=[DENSE], float_weights=[DENSE])
    expected = MatmulNames((DENSE_MATMUL,), ())
    engine = built(model, OpenVINOSettings(1, hint), expected)
    said = dict(engine.settings)
    assert said.pop("int8_sums").items() >= int8_sums().as_json().items()
    assert said == {
        "threads": 1,
        "precision_hint": hint,
        "packing": False,
        "inference_precision": hint,
        "openvino": openvino.__version__,
    }
    assert float_linears(report(engine)) == [(DENSE_MATMUL, f"OpenVINO's FullyConnected takes {hint} and {hint}")]


def test_a_misspelt_hint_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"precision hint: unknown value 'bf61'; did you mean 'bf16'\?"):
        OpenVINOSettings(precision_hint="bf61")


# --- files ----------------------------------------------------------------------------------------------------------


def digests(engine: BuiltEngine) -> list[str]:
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in engine.files]


def test_two_builds_are_byte_identical_and_name_no_path(write_encoder: Callable[..., Path]) -> None:
    first, second = (built(write_encoder(f"{name}/model.onnx")) for name in ("here", "elsewhere"))
    assert digests(first) == digests(second)
    assert b"here" not in first.files[0].read_bytes()
    assert sorted(file.name for file in first.files[0].parent.iterdir()) == ["model.bin", "model.xml"]
    assert first.files == (first.files[0].with_name("model.xml"), first.files[0].with_name("model.bin"))


FULL_DISK = """
import resource, sys
from pathlib import Path
from engines.openvino import OpenVINOSettings, build
from qdq.errors import DeployError
model, folder = Path(sys.argv[1]), Path(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    build(model, folder, OpenVINOSettings(1), None)
except DeployError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file size limit")
@pytest.mark.parametrize("room", [1000, 60_000])  # the weights do not fit; the weights fit, the XML does not
def test_a_full_disk_leaves_the_engine_that_was_there(write_encoder: Callable[..., Path], room: int) -> None:
    model = write_encoder()
    before = digests(engine := built(model))
    folder = engine.files[0].parent
    command = [sys.executable, "-c", FULL_DISK, str(model), str(folder), str(room)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert f"refused: cannot write {folder / 'model.xml'}: OpenVINO could not write it" in done.stderr
    assert digests(engine) == before
    assert sorted(file.name for file in folder.iterdir()) == ["model.bin", "model.xml"]


def test_a_folder_that_cannot_be_made_is_one_clear_error(write_encoder: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(DeployError, match=r"cannot write .*taken.*--out"):
        build(write_encoder(), tmp_path / "taken" / "openvino", ONE_THREAD, None)


@pytest.mark.parametrize("content", [b"", b"hello world", b"\xff" * 50, None], ids=["empty", "text", "junk", "cut"])
def test_a_damaged_file_is_a_build_error(write_encoder: Callable[..., Path], content: bytes | None) -> None:
    model = write_encoder()
    model.write_bytes(model.read_bytes()[: model.stat().st_size // 2] if content is None else content)
    names = MatmulNames((), ())
    with pytest.raises(BuildError, match=r"model.qdq.onnx.*; run the lower stage again") as caught:
        built(model, names=names)
    assert "\n" not in str(caught.value)
    assert not (model.parent / "openvino").exists()
    with pytest.raises(BuildError, match=r"OpenVINO cannot load .*; build it again"):
        OpenVINORunner(model, ONE_THREAD)


def test_an_operator_openvino_does_not_know_is_named(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    node = helper.make_node("Frobnicate", ["x"], ["y"], name="odd")
    ports = [value("x", TensorProto.FLOAT, [2])], [value("y", TensorProto.FLOAT, [2])]
    model = helper.make_model(helper.make_graph([node], "g", *ports), opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(BuildError, match=r"OpenVINO cannot build .*Frobnicate.*run the lower stage again"):
        built(tmp_path / "m.onnx")


# --- running --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [None, (3, 9)])
def test_requests_at_once_give_what_one_alone_gives(
    write_encoder: Callable[..., Path], make_feeds: Any, shape: tuple[int, int] | None
) -> None:
    built(model := write_encoder())
    xml, settings = model.parent / "openvino" / "model.xml", OpenVINOSettings(1, shape=shape, streams=2)
    assert settings.properties() | {"NUM_STREAMS": 2, "INFERENCE_NUM_THREADS": 2} == settings.properties()
    feeds = [make_feeds(3, 9, seed=seed) for seed in range(6)]
    alone, together = OpenVINORunner(xml, OpenVINOSettings(1, shape=shape)), OpenVINORunner(xml, settings)
    with ThreadPoolExecutor(2) as pool:
        for got, feed in zip(pool.map(together, feeds), feeds, strict=True):
            np.testing.assert_array_equal(got["last_hidden_state"], alone(feed)["last_hidden_state"])


@pytest.mark.parametrize("tokens", [1280, 32, 9], ids=["two pieces", "four pieces on two streams", "whole"])
def test_a_runner_for_one_shape_takes_every_other_shape_too(
    write_encoder: Callable[..., Path], make_feeds: Any, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """Its static variant and the dynamic one are two compilations: float sums may differ in their last bits."""
    monkeypatch.setattr("engines.pieces.PIECE_TOKENS", tokens)
    built(model := write_encoder())
    xml = model.parent / "openvino" / "model.xml"
    general, special = OpenVINORunner(xml, ONE_THREAD), OpenVINORunner(xml, OpenVINOSettings(2, shape=(8, 16)))
    for shape in ((8, 16), (3, 9), (8, 16), (8, 17)):
        expected, got = (runner(make_feeds(*shape))["last_hidden_state"] for runner in (general, special))
        assert got.shape == expected.shape
        # a code that rounds the other way moves one product by a scale; most values must be equal all the same
        assert np.median(np.abs(got - expected)) < 1e-5
        assert (np.median(np.abs(got - expected), axis=(1, 2)) < 1e-2).all()  # and every row is in its place
    with pytest.raises(BuildError, match="cannot load"):
        OpenVINORunner(xml, OpenVINOSettings(1, shape=(2, 9, 9)))


@pytest.mark.parametrize(
    ("shape", "threads", "rows"),
    [
        ((40, 128), 2, 10),
        ((8, 128), 2, 4),
        ((40, 16), 2, 20),
        ((6, 2, 64), 2, 3),  # multiple choice
        ((40, 128), 1, 40),  # nobody to share with
        ((1, 128), 2, 1),
        ((41, 128), 2, 41),  # no even share
        ((4, 4096), 2, 4),  # one row is beyond a piece
        ((16, 128), 8, 2),
    ],
)
def test_a_batch_is_cut_into_even_pieces_of_limited_size(shape: tuple[int, ...], threads: int, rows: int) -> None:
    assert piece_of(shape, threads) == rows


def test_a_runner_for_one_shape_needs_no_linux(
    write_encoder: Callable[..., Path], make_feeds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.sched_getaffinity")  # macOS and Windows have none
    run = OpenVINORunner(write_encoder(), OpenVINOSettings(shape=(4, 16)))
    assert run(make_feeds(4, 16))["last_hidden_state"].shape == (4, 16, 64)


def test_runner_names_outputs_as_the_graph_does(write_encoder: Callable[..., Path], make_feeds: Any) -> None:
    """Compiled, an output also carries the name of the tensor it is a copy of, in no fixed order."""
    path = write_encoder()
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Identity", ["encoder.layer.0.output.Add"], ["residual"], name="copy"))
    model.graph.output.append(helper.make_tensor_value_info("residual", TensorProto.FLOAT, [None, None, 64]))
    onnx.save(model, path)
    engine = built(path)
    assert [tensor.name for tensor in engine.outputs] == ["last_hidden_state", "residual"]
    for file in (engine.files[0], path):
        outputs = OpenVINORunner(file, ONE_THREAD)(make_feeds(1, 4))
        assert list(outputs) == ["last_hidden_state", "residual"]
        assert np.abs(outputs["residual"].mean(-1)).max() > 1e-3  # LayerNorm's output has mean 0, this has not


def test_external_data_is_read_and_missing_external_data_is_explained(write_encoder: Callable[..., Path]) -> None:
    path = write_encoder()
    whole = digests(built(path))
    save_proto(onnx.load(path), path, external_data_bytes=100)
    assert digests(built(path)) == whole
    path.with_name(path.name + ".data").unlink()
    # The words are OpenVINO's, or onnx's where the graph is made to fit first.
    with pytest.raises(BuildError, match=r"OpenVINO cannot build .*(externally stored|stored in).*model.qdq.onnx.data"):
        built(path)
