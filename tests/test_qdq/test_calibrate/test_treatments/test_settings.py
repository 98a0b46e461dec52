"""Settings of post-training quantization: wrong values are named, activation types decide the algorithm."""

from __future__ import annotations

import pytest

from qdq.calibrate.treatments.settings import PtqSettings, Treatments
from qdq.errors import ConfigError


def test_settings_name_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="algo_list: unknown value 'KLL'; did you mean 'KL'"):
        PtqSettings(algo_list=("KLL",)).algorithms()
    with pytest.raises(ConfigError, match=r"moving_rate 1\.5 is outside"):
        PtqSettings(activation_quantize_type="moving_average_abs_max", moving_rate=1.5).algorithms()
    with pytest.raises(ConfigError, match="round_type: unknown value 'adarond'; did you mean 'adaround'"):
        Treatments(round_type="adarond")


def test_activation_types_decide_the_algorithm() -> None:
    listed = PtqSettings(algo_list=("mse", "abs_max", "min_max", "KL"))
    assert [a.name for a in listed.algorithms()] == ["mse", "max", "entropy"]  # abs_max and min_max are one
    frozen = PtqSettings(activation_quantize_type="abs_max")
    assert [a.name for a in frozen.algorithms()] == ["max"]
    moving = PtqSettings(activation_quantize_type="moving_average_abs_max", moving_rate=0.5)
    assert [(a.name, a.moving_rate) for a in moving.algorithms()] == [("moving_average", 0.5)]
