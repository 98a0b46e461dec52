"""INT8 against the best FP32 contestant, everyone in the form that suits it better, and what is said when it loses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.bench import CROPPED
from qdq.pipeline.verdict import Verdict, float_wins, verdict, verdict_text

NAMES = {"int8": "openvino", "int8-onnxruntime": "onnxruntime", "openvino-fp32": "openvino"}
NAMES |= {"onnxruntime-fp32": "onnxruntime", "torch-fp32": "torch"}


def race(forms: bool, **ms: float | tuple[float, float]) -> dict[str, Any]:
    """A race whose contestants took these milliseconds, with `forms` padded and cropped."""
    timed: dict[str, float] = {}
    for name, cost in ms.items():
        padded, cropped = cost if isinstance(cost, tuple) else (cost, cost)
        timed[name.replace("_", "-")] = padded
        if forms:
            timed[name.replace("_", "-") + CROPPED] = cropped
    bases = {name: cost for name, cost in timed.items() if name.removesuffix(CROPPED).endswith("-fp32")}
    return {
        "contestants": {
            name: {
                "engine": NAMES[name.removesuffix(CROPPED)],
                "latency_ms": {"p50": cost},
                "speedup": {base: other / cost for base, other in bases.items()},
            }
            for name, cost in timed.items()
        }
    }


FULL = race(False, int8=10, int8_onnxruntime=20, openvino_fp32=25, onnxruntime_fp32=40, torch_fp32=30)


def test_int8_pays_by_the_texts_each_in_its_better_form() -> None:
    texts = race(True, int8=(4, 6), openvino_fp32=(25, 9), onnxruntime_fp32=(40, 12), torch_fp32=(30, 8))
    found = verdict({**FULL, "texts": texts})
    assert found == Verdict("torch-fp32", 2, 2.5) and found.pays
    for name in ("openvino-fp32", "onnxruntime-fp32", "torch-fp32"):  # a budget without room for padded FP32
        del texts["contestants"][name]
    assert verdict({**FULL, "texts": texts}) == found
    assert verdict(FULL) == Verdict("openvino-fp32", 2.5, 2.5)  # a report without that workload
    assert verdict_text({"verdict": found.as_json()}) == verdict_text({"verdict": None}) == ""


def test_the_runtime_that_serves_decides_what_it_serves() -> None:
    texts = race(True, int8=(9, 10), int8_onnxruntime=(30, 13), openvino_fp32=(25, 8), onnxruntime_fp32=(40, 14))
    report = {**FULL, "texts": texts}
    assert float_wins(report, "openvino") and not float_wins(report, "onnxruntime")
    assert not float_wins(report, "tensorrt")  # was not timed
    assert not float_wins(FULL, "openvino")


@pytest.mark.parametrize(
    ("serves", "last"),
    [
        ("fp32", "So the Triton repository serves the FP32 engine; --target openvino makes it serve INT8."),
        ("int8", "INT8, as --target openvino asks; --target auto serves the faster engine."),
        ("", "(--target tensorrt)."),
    ],
)
def test_the_last_lines_say_that_int8_is_slower_why_and_what_it_is_still_worth(
    tmp_path: Path, serves: str, last: str
) -> None:
    (tmp_path / "openvino").mkdir()
    for name, size in (("openvino/model.xml", 500_000), ("openvino/model.bin", 1_500_000), ("model.fp32.onnx", 8e6)):
        (tmp_path / name).write_bytes(bytes(int(size)))
    outcome = {"out": str(tmp_path), "target": "openvino", "serves": serves, "accuracy": {"cosine_mean": 0.9975}}
    text = verdict_text({**outcome, "verdict": Verdict("openvino-fp32", 0.8, 1.02).as_json()})
    said = " ".join(text.split())
    assert said.startswith("INT8 is not faster here: openvino-fp32 takes 0.80 of its time on these texts, 1.02 on full")
    assert " CPU " in said and "2.0 MB instead of 8.0" in said and "cosine of 0.9975" in said
    assert said.endswith(last)
    assert all(len(line) <= 80 for line in text.splitlines())
