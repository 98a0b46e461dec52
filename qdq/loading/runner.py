"""A torch module as a runner: numpy feeds in, named float32 arrays out, as every engine's runner."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qdq.base.types import Feeds, Outputs
    from qdq.loading.model import EncoderModule


class TorchRunner:
    """A loaded model's module, floating-point or fake-quantized, as a runner."""

    def __init__(self, module: EncoderModule, threads: int | None = None) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self._module = module

    def __call__(self, feeds: Feeds) -> Outputs:
        """Feeds as the module names them, on the module's device; returns float32 arrays."""
        import torch

        device = next(self._module.parameters()).device
        with torch.inference_mode():
            results = self._module(**{name: torch.from_numpy(array).to(device) for name, array in feeds.items()})
        named = zip(self._module.outputs, results, strict=True)
        return {name: value.float().cpu().numpy() for name, value in named}
