"""The network of an estimator: without gradients, in its precision, by CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from flowfuse.estimator.casting import CastNetwork
from flowfuse.estimator.graphs import CudaRecorder, GraphCache, Tensors
from flowfuse.inputs import ModelInputs, to_device
from flowfuse.model import FlowFuse
from flowfuse.model.encoders import EncodedFrame, EncodedSlice
from flowfuse.model.normalization import SliceScale

GRAPH_CHOICES = ("auto", True, False)


class Estimates(NamedTuple):
    """What results are made of; of :class:`~flowfuse.model.ModelOutput`.

    Attributes:
        control_points: [B, n, 2, H, W] float32.
        uncertainty, boundary: [B, 2, H, W] float32.
    """

    control_points: Tensor
    uncertainty: Tensor
    boundary: Tensor


class NetworkRunner:
    """Runs a network on inputs that are ready; never waits for a GPU.

    Args:
        model: the network; it is moved to ``device`` and put into evaluation mode.
        device: where it runs.
        dtype: float32, or the low precision of automatic mixed precision.
        graph: "auto", True or False, see :class:`~flowfuse.estimator.Estimator`.

    Raises:
        ValueError: there are no graphs on this device, or ``graph`` is none of the three.
    """

    def __init__(
        self,
        model: FlowFuse,
        device: torch.device,
        dtype: torch.dtype,
        graph: bool | str = "auto",
    ) -> None:
        if graph not in GRAPH_CHOICES:
            raise ValueError(f'graph must be "auto", True or False, got {graph!r}')
        always = graph != "auto" and bool(graph)
        if always and device.type != "cuda":
            raise ValueError(f"graph=True needs a CUDA device, got device {device}")
        self.model = model.to(device).eval()
        self.device = device
        self.dtype = dtype
        self._cast = CastNetwork(self.model, dtype) if dtype != torch.float32 else None
        self.graphs: GraphCache | None = None
        if graph and device.type == "cuda":
            self.graphs = GraphCache(self.model, CudaRecorder(device), always=always)

    def __call__(
        self,
        inputs: ModelInputs,
        iterations: int | None = None,
        flow_init: Tensor | None = None,
        encoded_frames: tuple[EncodedFrame | None, EncodedFrame | None] | None = None,
        encoded_slices: Sequence[EncodedSlice] | None = None,
        *,
        flow_init_complete: bool = False,
    ) -> Estimates:
        """Estimate; arguments as of :class:`FlowFuse`, on any device.

        Of ``encoded_frames``, one is None where the items do not have it.
        """
        if iterations is None:
            iterations = self.model.config.iterations
        given: list[Tensor] = [*inputs]
        if flow_init is not None:
            given.append(flow_init)
        # Not by graphs: it would change from call to call, and each kind needs one.
        complete = self.graphs is None and flow_init_complete
        model = self._network()
        there = [frame is not None for frame in encoded_frames or ()]
        for frame in encoded_frames or ():
            given += frame or ()
        for part in encoded_slices or ():
            given += part

        def estimate(tensors: Sequence[Tensor]) -> Tensors:
            parts = iter(tensors)
            taken = ModelInputs(*(next(parts) for _ in ModelInputs._fields))
            start = None if flow_init is None else next(parts)
            batch, _, height, width = taken.frame0.shape
            with self._precision():
                frames = [
                    EncodedFrame(*(next(parts) for _ in EncodedFrame._fields))
                    if known
                    else model.absent_frame(batch, height, width)
                    for known in there
                ]
                slices = [
                    EncodedSlice(*(next(parts) for _ in EncodedSlice._fields))
                    for _ in encoded_slices or ()
                ]
                output = model(
                    taken,
                    iterations=iterations,
                    flow_init=start,
                    flow_init_complete=complete,
                    encoded_frames=(frames[0], frames[1]) if frames else None,
                    encoded_slices=slices or None,
                )
            return output.control_points, output.uncertainty, output.boundary

        kind = "estimate", iterations, flow_init is not None, complete, *there, bool(encoded_slices)
        tensors = [to_device(value, self.device) for value in given]
        if self.graphs is None:
            return Estimates(*estimate(tensors))
        return Estimates(*self.graphs(kind, estimate, tensors))

    def encode_frame(self, frame: Tensor) -> EncodedFrame:
        """Encode frames [B, 1 | 3, H, W], see :meth:`FlowFuse.encode_frame`."""

        model = self._network()

        def encode(tensors: Sequence[Tensor]) -> Tensors:
            with self._precision():
                return model.encode_frame(tensors[0])

        tensors = [to_device(frame, self.device)]
        if self.graphs is None:
            return EncodedFrame(*encode(tensors))
        return EncodedFrame(*self.graphs("frame", encode, tensors))

    def encode_slice(self, voxels: Tensor, scale: SliceScale) -> EncodedSlice:
        """Encode slices [B, bins, H, W], see :meth:`FlowFuse.encode_slice`."""

        model = self._network()

        def encode(tensors: Sequence[Tensor]) -> Tensors:
            voxels, *parts = tensors
            with self._precision():
                return model.encode_slice(voxels, SliceScale(*parts))

        tensors = [to_device(value, self.device) for value in (voxels, *scale)]
        if self.graphs is None:
            return EncodedSlice(*encode(tensors))
        return EncodedSlice(*self.graphs("slice", encode, tensors))

    def _network(self) -> FlowFuse:
        """The network in the form that is fastest in this precision."""
        return self.model if self._cast is None else self._cast.current()

    @contextmanager
    def _precision(self) -> Iterator[None]:
        mixed = self.dtype != torch.float32
        low_precision = self.dtype if mixed else torch.bfloat16
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, low_precision, enabled=mixed),
        ):
            yield
