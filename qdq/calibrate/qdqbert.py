"""QDQBERT as transformers up to 4.40 documents it: `QDQBertConfig` and its eight model classes.

BERT with quantizers at the inputs and weights of linears, the operands of attention products and of residual adds,
chosen by the default descriptors that are set when a model is made::

    from pytorch_quantization import nn as quant_nn
    from qdq.calibrate.qdqbert import QDQBertForSequenceClassification

    quant_nn.QuantLinear.set_default_quant_desc_input(QuantDescriptor(num_bits=8, calib_method="max"))
    model = QDQBertForSequenceClassification.from_pretrained("my-bert")

Calibration, training and ``torch.onnx.export(model, …)`` follow as the page has them. The folder of ``save_pretrained``
is a QDQBERT checkpoint, which ``qdq compile --model`` takes. Importing this module makes the Auto classes know it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
    PreTrainedModel,
)

from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrators import HistogramCalibrator
from qdq.calibrate.checkpoint import AMAX_SUFFIX, import_qdqbert, query_factors, read_amax
from qdq.errors import CalibrationError, ModelError
from qdq.inject import inject, quantizers
from qdq.inject.defaults import defaults
from qdq.inject.quantizer import TensorQuantizer
from qdq.inject.scale import scale_of
from qdq.loading.kinds import detect_task
from qdq.loading.model import QDQBERT, quiet_transformers
from qdq.loading.source import read_config, resolve

logger = logging.getLogger(__name__)

METHODS = ("entropy", "mse", "percentile")  # of pytorch-quantization's histogram calibrator


class MethodCalibrator(HistogramCalibrator):
    """A histogram whose algorithm `load_calib_amax` names, as pytorch-quantization's does."""

    def __init__(self) -> None:
        super().__init__(algorithm_named("percentile"))
        self.chosen = False

    def choose(self, method: str, *, percentile: float = 99.99, strict: bool = True) -> None:
        """Take the algorithm: entropy, mse or percentile. Raises CalibrationError for another one."""
        if method not in METHODS:
            raise CalibrationError(f"load_calib_amax: unknown method '{method}'; valid: {', '.join(METHODS)}")
        if not strict:
            raise CalibrationError("load_calib_amax: strict=False would leave points without a range; feed more data")
        self.algorithm = algorithm_named(method, percentile)
        self.chosen = True

    def amax(self, point: str) -> float:
        """The amax by the chosen algorithm."""
        if not self.chosen:
            raise CalibrationError(
                f"{point}: name the histogram's method: load_calib_amax('percentile', percentile=99.99)"
            )
        return super().amax(point)


class QDQBertConfig(BertConfig):  # type: ignore[no-untyped-call]
    """Configuration of a QDQBERT model: BERT's fields."""

    model_type = QDQBERT


class Quantized:
    """Mixed in before a class of BERT: builds it, and puts the quantizers in that the default descriptors ask for."""

    config_class = QDQBertConfig
    _keys_to_ignore_on_load_unexpected = (rf"\.{AMAX_SUFFIX}$",)  # taken by `from_pretrained`

    def __init__(self, config: BertConfig, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)  # type: ignore[call-arg]  # the transformers class behind
        model, wanted = cast(PreTrainedModel, self), defaults()
        inject(model, wanted.spec)
        for point in quantizers(model).values():
            if wanted.histogram and point.layout != "weight":
                point.calibrator = MethodCalibrator()

    @classmethod
    def from_pretrained(cls, name: str | Path, *arguments: Any, **options: Any) -> Any:
        """Load a checkpoint of BERT or QDQBERT, the ranges of the latter with it; options are those of transformers.

        Pickled weights are read with ``use_safetensors=False`` only. Raises ModelError for another family, and for
        ranges that were calibrated with other descriptors than those that are set.
        """
        pickled = options.get("use_safetensors") is False
        folder, _ = resolve(str(name), pickled)
        family = read_config(folder).get("model_type", "bert")
        if family not in ("bert", QDQBERT):
            raise ModelError(f"{folder}: is a checkpoint of '{family}'; {cls.__name__} takes those of bert and qdqbert")
        if "config" not in options:
            with quiet_transformers():  # it says that bert is not qdqbert
                config, options = QDQBertConfig.from_pretrained(folder, return_unused_kwargs=True, **options)
            config.model_type = QDQBERT  # the file may say bert
            options["config"] = config
        made = super().from_pretrained(folder, *arguments, **options)  # type: ignore[misc]
        model = made[0] if isinstance(made, tuple) else made
        _, unmatched = import_qdqbert(model, read_amax(folder, pickled))
        if unmatched:
            logger.warning(f"{folder}: {len(unmatched)} ranges match no point, such as {unmatched[0]}")
        return made

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write a QDQBERT checkpoint: BERT's parameters, and every calibrated range in QDQBERT's units beside them."""
        model = cast(PreTrainedModel, self)
        state: dict[str, Tensor] = dict(options.pop("state_dict", None) or model.state_dict())
        for path, factor in query_factors(model).items():
            if (key := f"{path}.{AMAX_SUFFIX}") in state:
                point = cast(TensorQuantizer, model.get_submodule(path))
                state[key] = _divided(state[key], factor, point.num_bits)
        super().save_pretrained(folder, state_dict=state, **options)  # type: ignore[misc]


def _divided(amax: Tensor, factor: float, bits: int) -> Tensor:
    """`amax` over `factor`, rounded so that the same scale comes out when it is multiplied again."""
    found = amax / factor
    for end in (torch.inf, 0.0):
        near = torch.nextafter(amax / factor, torch.full_like(amax, end))
        found = torch.where(scale_of(found * factor, bits) == scale_of(amax, bits), found, near)
    return found


class QDQBertModel(Quantized, BertModel):  # type: ignore[misc, no-untyped-call]
    """The bare encoder with its pooler."""


class QDQBertLMHeadModel(Quantized, BertLMHeadModel):  # type: ignore[misc, no-untyped-call]
    """Language modelling: the next token of each position."""


class QDQBertForMaskedLM(Quantized, BertForMaskedLM):  # type: ignore[misc, no-untyped-call]
    """Language modelling: the masked tokens."""


class QDQBertForSequenceClassification(Quantized, BertForSequenceClassification):  # type: ignore[misc, no-untyped-call]
    """A class for each text or pair."""


class QDQBertForNextSentencePrediction(Quantized, BertForNextSentencePrediction):  # type: ignore[misc, no-untyped-call]
    """Two classes: the second text follows the first, or it does not."""


class QDQBertForMultipleChoice(Quantized, BertForMultipleChoice):  # type: ignore[misc, no-untyped-call]
    """A score for each choice."""


class QDQBertForTokenClassification(Quantized, BertForTokenClassification):  # type: ignore[misc, no-untyped-call]
    """A class for each token."""


class QDQBertForQuestionAnswering(Quantized, BertForQuestionAnswering):  # type: ignore[misc, no-untyped-call]
    """The first and the last token of an answer."""


MODELS = (
    *(QDQBertModel, QDQBertLMHeadModel, QDQBertForMaskedLM, QDQBertForSequenceClassification),
    *(QDQBertForNextSentencePrediction, QDQBertForMultipleChoice, QDQBertForTokenClassification),
    QDQBertForQuestionAnswering,
)

AutoConfig.register(QDQBERT, QDQBertConfig)
for _model in MODELS:
    detect_task([_model.__name__], __name__).auto().register(QDQBertConfig, _model)
