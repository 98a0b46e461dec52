"""Types that many modules name: model inputs and outputs by name, and progress callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feeds = Mapping[str, NDArray[Any]]  # input name -> array
Outputs = dict[str, NDArray[np.float32]]  # output name -> array
Progress = Callable[[int, int], None]  # called with (done, total)
