"""The network of an estimator: without gradients, in its precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from flowfuse.inputs import ModelInputs, to_device
from flowfuse.model import FlowFuse
from flowfuse.model.encoders import EncodedFrame
from flowfuse.model.flowfuse import ModelOutput


class NetworkRunner:
    """Runs a network on inputs that are ready.

    Args:
        model: the network; it is moved to ``device`` and put into evaluation mode.
        device: where it runs.
        dtype: float32, or the low precision of automatic mixed precision.
    """

    def __init__(self, model: FlowFuse, device: torch.device, dtype: torch.dtype) -> None:
        self.model = model.to(device).eval()
        self.device = device
        self.dtype = dtype

    def __call__(
        self,
        inputs: ModelInputs,
        iterations: int | None = None,
        flow_init: Tensor | None = None,
        encoded_frames: tuple[EncodedFrame, EncodedFrame] | None = None,
    ) -> ModelOutput:
        """Run it; arguments as of :class:`FlowFuse`, on any device."""
        inputs = ModelInputs(*(to_device(value, self.device) for value in inputs))
        start = None if flow_init is None else to_device(flow_init, self.device)
        with self._precision():
            return self.model(
                inputs, iterations=iterations, flow_init=start, encoded_frames=encoded_frames
            )

    def encode_frame(self, frame: Tensor) -> EncodedFrame:
        """Encode frames [B, 1 | 3, H, W], see :meth:`FlowFuse.encode_frame`."""
        frame = to_device(frame, self.device)
        with self._precision():
            return self.model.encode_frame(frame)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        mixed = self.dtype != torch.float32
        low_precision = self.dtype if mixed else torch.bfloat16
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, low_precision, enabled=mixed),
        ):
            yield
