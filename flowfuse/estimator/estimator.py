"""What a user calls: from arrays to results, for one frame pair or for many."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowfuse.estimator.alignment import AlignmentCheck
from flowfuse.estimator.arguments import (
    as_choice,
    as_column,
    as_flow_init,
    as_interval,
    as_iterations,
    check_flow_init,
    is_torch,
)
from flowfuse.estimator.batches import argument_rows, stack_inputs
from flowfuse.estimator.devices import select_device, select_dtype
from flowfuse.estimator.late_start import begin_earlier
from flowfuse.estimator.pairs import PreparedPair, modalities_used, prepare_pair
from flowfuse.estimator.running import Estimates, NetworkRunner
from flowfuse.events import Events
from flowfuse.geometry.laplace import widened
from flowfuse.inputs import Modality, ModelInputs
from flowfuse.model import FlowFuse, ModelConfig
from flowfuse.model.encoders import EncodedFrame, EncodedSlice
from flowfuse.model.normalization import SliceScale
from flowfuse.result import Array, Result


class Estimator:
    """A network ready to be called on arrays; no result depends on earlier calls.

    Args:
        model: the network; it is moved to ``device`` and put into evaluation mode.
        device: where it runs.
        dtype: precision, see :func:`load`.
        info: what is known about the weights.
        graph: whether the network runs by CUDA graphs, one for each size of images and number of
            iterations, which take the time of starting thousands of kernels away. "auto": on a GPU,
            from the second estimate of a size on; where a graph cannot be recorded, a
            RuntimeWarning says so, and estimates go on without. True: from the first estimate on;
            where that fails, a RuntimeError says so. False: never.

    Attributes:
        model, device, dtype, info, graph: as given.
        check_alignment: whether the first calls with frames and events warn where the events
            explain the frames only mirrored, with x and y swapped or with inverted polarity.

    Raises:
        ValueError: the device, the dtype or ``graph`` cannot be used.
    """

    def __init__(
        self,
        model: FlowFuse,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        info: Mapping[str, Any] | None = None,
        graph: bool | str = "auto",
    ) -> None:
        self.device = select_device(device)
        self.dtype = select_dtype(dtype, self.device)
        self.graph = graph
        self._network = NetworkRunner(model, self.device, self.dtype, graph)
        self.model = self._network.model
        self.info = dict(info or {})
        self.check_alignment = True
        self._alignment = AlignmentCheck()

    def __repr__(self) -> str:
        return f"Estimator({self.model.config.name}, {self.device}, {self.dtype})"

    def __call__(  # noqa: PLR0913 - all that a user may know of a frame pair
        self,
        frame0: Array | None,
        frame1: Array | None,
        events: Events | tuple | Mapping[str, Any] | None,
        *,
        t0: int,
        t1: int,
        exposure0: int | None = None,
        exposure1: int | None = None,
        iterations: int | None = None,
        history: bool | None = None,
        flow_init: Array | None = None,
        initial: Array | None = None,
        as_torch: bool | None = None,
    ) -> Result:
        """Estimate the motion of every pixel from t0 to t1.

        Args:
            frame0, frame1: images at t0 and t1: [H, W] gray or [H, W, 3] RGB; uint8, uint16
                (0 to 65535: 12 bits must be scaled to 16), or floating in [0, 1], gamma-encoded as
                cameras give them. H, W >= 16. With frame1 None, the flow comes from frame 0 and the
                events since, in networks that fuse by evidence, else from the events alone; with
                frame0 None, always from the events alone.
            events: :class:`Events`, a tuple (x, y, t, p), a mapping with these keys, or None. Give
                those of [t0, t1); those before t0 (one slice, (t1 - t0) / K) are used as history,
                those during the exposures before t0 and after t1 too. Others are left out. Without
                any event in [t0, t1) the flow comes from the frames alone. Without history
                and without a pair of frames, the network starts one of K + 1 slices late, on events
                alone, and its trajectories are extended back to t0.
            t0, t1: times of the frames (middle of the exposure), integer microseconds.
            exposure0, exposure1: durations in microseconds; None where unknown. Without both
                frames they are left out.
            iterations: recurrent updates: fewer are faster; the network's default is None.
            history: whether ``events`` cover the time before t0; None: they do when the first one
                is earlier than t0; without frames, when enough of them are in the slice before t0.
            flow_init: [2, H, W], px, flow from t0 to t1 to start from instead of the network's own
                first estimate; not finite where it has nothing to say, else at most 10 times the
                longer side of the image. Networks are trained without, so it need not help.
            initial: the former name of ``flow_init``, which goes with the next release.
            as_torch: whether the result gives torch tensors on the estimator's device, or numpy
                arrays; None: tensors when the frames (or, without frames, the event arrays) are.

        Returns:
            :class:`Result`.

        Raises:
            ValueError: naming the argument, what was found and what was expected.
        """
        if initial is not None:
            warnings.warn("estimator: initial is now called flow_init", FutureWarning, stacklevel=2)
            flow_init = initial
        as_torch = as_choice("as_torch", as_torch)
        pair = self._prepare(
            frame0, frame1, events,
            t0=t0, t1=t1, exposure0=exposure0, exposure1=exposure1, history=history,
            may_start_late=flow_init is None,
        )  # fmt: skip
        if self.check_alignment:
            self._alignment.look(frame0, frame1, events, *pair.times)
        height, width = pair.inputs.frame0.shape[-2:]
        start = as_flow_init(flow_init, height, width)
        check_flow_init(start)
        output = self._network(pair.inputs.as_batch(), as_iterations(iterations), start)
        if as_torch is None:
            as_torch = is_torch(frame0, frame1, events)
        return _results(output, [pair.times], [pair.modalities], as_torch, [pair.start])[0]

    def prepare(
        self,
        frame0: Array | None,
        frame1: Array | None,
        events: Events | tuple | Mapping[str, Any] | None,
        *,
        t0: int,
        t1: int,
        exposure0: int | None = None,
        exposure1: int | None = None,
        history: bool | None = None,
    ) -> ModelInputs:
        """Make the network's inputs of one frame pair, to be given to :meth:`run`.

        They begin at t0, also where a call would start late: with events alone without history.

        A data set whose items these are can be read by the workers of a
        ``torch.utils.data.DataLoader``, whose own ``collate_fn`` makes batches of them.

        Args:
            frame0, frame1, events, t0, t1, exposure0, exposure1, history: as of a call.

        Returns:
            :class:`~flowfuse.inputs.ModelInputs` without a batch axis, on the estimator's device.

        Raises:
            ValueError: as a call.
        """
        return self._prepare(
            frame0, frame1, events,
            t0=t0, t1=t1, exposure0=exposure0, exposure1=exposure1, history=history,
            may_start_late=False,
        ).inputs  # fmt: skip

    def run(
        self,
        inputs: ModelInputs,
        *,
        t0: Any,
        t1: Any,
        iterations: int | None = None,
        flow_init: Array | None = None,
        as_torch: bool = False,
        encoded_frames: tuple[EncodedFrame | None, EncodedFrame | None] | None = None,
        encoded_slices: Sequence[EncodedSlice] | None = None,
    ) -> list[Result]:
        """Estimate from inputs that are ready.

        Args:
            inputs: of B pairs, or of one without a batch axis; any device.
            t0, t1: [B] integers (list, numpy or torch), or one number for all; microseconds.
            iterations: as of a call.
            flow_init: [B, 2, H, W] px, as of a call; B = 1 for inputs without a batch axis.
            as_torch: as of a call.
            encoded_frames: what :meth:`encode_frame` makes of both frames, with None in place of
                one that none of the B pairs has: they are not encoded again.
            encoded_slices: what :meth:`encode_slice` makes of E_0 .. E_K, where all B pairs have
                events: ``inputs.slices`` are not read.

        Returns:
            B results.

        Raises:
            ValueError: naming the argument, what was found and what was expected.
        """
        if not isinstance(inputs, ModelInputs):
            raise ValueError(
                f"run: inputs must be ModelInputs, as prepare() gives them, "
                f"got {type(inputs).__name__}"
            )
        as_torch = bool(as_choice("as_torch", as_torch))
        if inputs.slices.dim() == 4:
            inputs = inputs.as_batch()
        count, (height, width) = len(inputs.slices), inputs.slices.shape[-2:]
        columns = as_column("t0", t0, count), as_column("t1", t1, count)
        times = [as_interval(*pair) for pair in zip(*columns, strict=True)]
        start = as_flow_init(flow_init, height, width, count)
        output = self._network(
            inputs,
            as_iterations(iterations),
            start,
            encoded_frames,
            encoded_slices,
            # Of arrays alone, which nobody waits for.
            flow_init_complete=isinstance(flow_init, np.ndarray)
            and bool(np.isfinite(flow_init).all()),
        )
        modalities: list[Any] = [
            partial(_modalities_of, self.model.config, row) for row in inputs.modality_mask
        ]
        if inputs.modality_mask.device.type == "cpu":  # else when asked for: it waits for a GPU
            modalities = [tell() for tell in modalities]
        return _results(output, times, modalities, as_torch)

    def encode_frame(self, frame: Tensor) -> EncodedFrame:
        """Encode a frame that several calls of :meth:`run` use.

        Args:
            frame: ``frame0`` or ``frame1`` of :meth:`prepare`, with or without a batch axis.

        Returns:
            Its features, on the estimator's device.

        Raises:
            ValueError: the network uses no frames.
        """
        return self._network.encode_frame(frame if frame.dim() == 4 else frame.unsqueeze(0))

    def encode_slice(self, voxels: Tensor, scale: SliceScale) -> EncodedSlice:
        """Encode an event slice that several calls of :meth:`run` use.

        Args:
            voxels: [bins, H, W] or [B, bins, H, W], as of ``slices`` of :meth:`prepare`.
            scale: how the slices of the interval are normalized, see
                :func:`flowfuse.model.normalization.scale_of`; of one item, or of B.

        Returns:
            Its features, on the estimator's device.

        Raises:
            ValueError: the network uses no events.
        """
        return self._network.encode_slice(voxels if voxels.dim() == 4 else voxels[None], scale)

    def estimate_batch(  # noqa: PLR0913 - all that a user may know of frame pairs
        self,
        frame0: Any,
        frame1: Any,
        events: Sequence[Events | tuple | Mapping[str, Any] | None] | None,
        *,
        t0: Any,
        t1: Any,
        exposure0: Any = None,
        exposure1: Any = None,
        history: Any = None,
        iterations: int | None = None,
        flow_init: Array | None = None,
        as_torch: bool | None = None,
    ) -> list[Result]:
        """Estimate B frame pairs of one size in one pass of the network.

        Faster than B calls where a call does not fill the device. Sums of a batch may be rounded
        in another order than those of a call.

        Args:
            frame0, frame1: B images as of a call, or None in their place: a list, or an array or
                tensor [B, H, W] or [B, H, W, 3]; None: no frames at all. Tensors on the
                estimator's device stay there.
            events: B times events as of a call; None: no events at all.
            t0, t1: [B] integers, microseconds.
            exposure0, exposure1, history: B values as of a call, or one for all.
            iterations: as of a call.
            flow_init: [B, 2, H, W] px, as of a call.
            as_torch: as of a call; None: tensors when any frame is one.

        Returns:
            B results, each as of a call.

        Raises:
            ValueError: naming the item and the argument, what was found and what was expected.
        """
        as_torch = as_choice("as_torch", as_torch)
        columns = {"frame0": frame0, "frame1": frame1, "events": events, "t0": t0, "t1": t1}
        shared = {"exposure0": exposure0, "exposure1": exposure1, "history": history}
        rows = argument_rows(columns, shared)
        pairs = []
        for index, row in enumerate(rows):
            try:
                pairs.append(self._prepare(**row, may_start_late=flow_init is None))
            except ValueError as error:
                raise ValueError(f"item {index}: {error}") from error
        inputs, times, starts, modalities = zip(*pairs, strict=True)
        if self.check_alignment:
            for row, known in zip(rows, times, strict=True):
                self._alignment.look(row["frame0"], row["frame1"], row["events"], *known)
        # A network that cannot use frame 0 alone has left it out, and it is gray then.
        shown = [
            row["frame0"] is not None
            and (not self.model.config.frames or any(name.startswith("frame") for name in found))
            for row, found in zip(rows, modalities, strict=True)
        ]
        batch = stack_inputs(inputs, shown)
        height, width = batch.frame0.shape[-2:]
        start = as_flow_init(flow_init, height, width, len(rows))
        check_flow_init(start)
        output = self._network(batch, as_iterations(iterations), start)
        if as_torch is None:
            as_torch = any(is_torch(row["frame0"], row["frame1"], row["events"]) for row in rows)
        return _results(output, times, modalities, as_torch, starts)

    def _prepare(  # noqa: PLR0913 - all that a user may know of a frame pair
        self,
        frame0: Any,
        frame1: Any,
        events: Any,
        *,
        t0: Any,
        t1: Any,
        exposure0: Any,
        exposure1: Any,
        history: Any,
        may_start_late: bool,
    ) -> PreparedPair:
        return prepare_pair(
            self.model.config,
            self.device,
            frames=(frame0, frame1),
            events=events,
            times=(t0, t1),
            exposures=(exposure0, exposure1),
            history=history,
            may_start_late=may_start_late,
        )


def _results(
    output: Estimates,
    times: Sequence[tuple[int, int]],
    modalities: Sequence[tuple[str, ...] | Callable[[], tuple[str, ...]]],
    as_torch: bool,
    starts: Sequence[int] | None = None,
) -> list[Result]:
    results = []
    for i, ((t0, t1), found) in enumerate(zip(times, modalities, strict=True)):
        # Copies made outside inference_mode are ordinary tensors, which autograd accepts.
        points, uncertainty, boundary = (part[i : i + 1].float().clone() for part in output)
        if starts is not None and starts[i] > t0:
            share = (starts[i] - t0) / (t1 - starts[i])
            points, others = begin_earlier(points, torch.cat((uncertainty, boundary), dim=1), share)
            uncertainty, boundary = (part.clone() for part in others.chunk(2, dim=1))
            uncertainty = widened(uncertainty, 1 + share)  # of the same motion for longer
        results.append(
            Result(
                points,
                uncertainty,
                boundary,
                t0=t0,
                t1=t1,
                modalities=found,
                as_torch=as_torch,
            )
        )
    return results


def _modalities_of(config: ModelConfig, mask: Tensor) -> tuple[str, ...]:
    """What a result of a network says it was made from, by its modality mask [4]."""
    row = mask.tolist()
    frames = int(row[Modality.FRAMES] * (1 + row[Modality.SECOND_FRAME]))
    return modalities_used(config, frames, row[Modality.EVENTS] > 0)
