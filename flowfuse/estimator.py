"""Frames and events in, dense and continuous flow out: what a user calls.

estimator = load("small")
result = estimator(frame0, frame1, events, t0=t0, t1=t1)
result.flow          # [2, H, W] px, from t0 to t1
result.at(0.5)       # [2, H, W] px, from t0 to the middle
"""

from __future__ import annotations

import logging
import operator
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowfuse.events import Events
from flowfuse.inputs import (
    Exposures,
    Modality,
    ModelInputs,
    input_interval,
    prepare_inputs,
    to_device,
)
from flowfuse.model import FlowFuse
from flowfuse.model.checkpoint import load_checkpoint, resolve_checkpoint
from flowfuse.model.encoders import EncodedFrame
from flowfuse.model.flowfuse import MINIMUM_SIZE, ModelOutput
from flowfuse.ops.events import MAX_DURATION
from flowfuse.ops.extension import announce
from flowfuse.precision import NO_INSTRUCTIONS, has_native_bfloat16
from flowfuse.result import Array, Result, as_events

_log = logging.getLogger(__name__)

# Of numpy; in the byte order of the machine, as torch takes them.
FRAME_DTYPES = tuple(map(np.dtype, ("uint8", "uint16", "float16", "float32", "float64")))
FEWEST_USED = 1000  # of so many events given, one at least should lie in [t0, t1)
UNITS = (("nanoseconds", 1, 1000), ("milliseconds", 1000, 1), ("seconds", 1_000_000, 1))
MAX_TIME = 2**61  # us: what is an interval or two earlier or later still fits into int64


def load(
    checkpoint: str | Path = "small",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Estimator:
    """Load a trained network.

    Args:
        checkpoint: the name of a shipped checkpoint ("small") or the path of a .safetensors file.
        device: "cpu", "cuda", "cuda:N", or "auto" (CUDA where torch sees a GPU).
        dtype: None or torch.float32 for full precision; torch.bfloat16 (or, on CUDA, torch.float16)
            for automatic mixed precision. Coordinates and flow are float32 in either. On a CPU
            without bfloat16 instructions bfloat16 is slower than float32: it is used as asked for,
            and a RuntimeWarning says so once.

    Returns:
        The estimator; ``estimator.info`` tells where the weights come from.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the file is no checkpoint of flowfuse, or the device or dtype cannot be used.
    """
    if not isinstance(checkpoint, (str, os.PathLike)):
        raise ValueError(f"load: checkpoint must be a name or a path, got {checkpoint!r}")
    device = select_device(device)
    path = resolve_checkpoint(checkpoint)
    model, info = load_checkpoint(path, map_location=device)
    _log.info("%s: network %s on %s", path, model.config.name, device)
    return Estimator(model, device=device, dtype=dtype, info=info)


def select_device(device: str | torch.device) -> torch.device:
    """Check that a device can be used here; "auto" is CUDA where torch sees a GPU, else the CPU.

    Raises:
        ValueError: saying what is there instead.
    """
    wrong = f"device must be auto, cpu, cuda or cuda:N, got '{device}'"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(wrong) from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(wrong)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (device.index or 0):
            found = f"sees {count} CUDA device(s)" if count else "sees no CUDA device"
            if torch.version.cuda is None:
                found = "is built without CUDA and sees no GPU"
            raise ValueError(
                f"device '{device}' was asked for, but torch {torch.__version__} {found} here; "
                f"use device '{'cuda:0' if count else 'cpu'}'"
            )
    return device


# What a result was made from, by the number of frames.
FRAMES_USED: tuple[tuple[str, ...], ...] = ((), ("frame0",), ("frames",))


class Estimator:
    """A network ready to be called on arrays; holds no state between calls.

    Args:
        model: the network; it is moved to ``device`` and put into evaluation mode.
        device: where it runs.
        dtype: precision, see :func:`load`.
        info: what is known about the weights.

    Attributes:
        model, device, dtype, info: as given.
    """

    def __init__(
        self,
        model: FlowFuse,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        self.device = select_device(device)
        usable: tuple[torch.dtype | None, ...] = (None, torch.float32, torch.bfloat16)
        if self.device.type == "cuda":
            usable += (torch.float16,)
        if dtype not in usable:
            names = ", ".join(str(choice) for choice in usable)
            raise ValueError(f"dtype on {self.device.type} must be one of {names}; got {dtype}")
        if dtype == torch.bfloat16 and not has_native_bfloat16(self.device):
            announce(f"dtype torch.bfloat16: {NO_INSTRUCTIONS}")
        self.dtype = torch.float32 if dtype is None else dtype
        self.model = model.to(self.device).eval()
        self.info = dict(info or {})

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
                any event in [t0, t1) the flow comes from the frames alone.
            t0, t1: times of the frames (middle of the exposure), integer microseconds.
            exposure0, exposure1: durations in microseconds; None where unknown. Without both
                frames they are left out.
            iterations: recurrent updates: fewer are faster; the network's default is None.
            history: whether ``events`` cover the time before t0; None: they do when the first one
                is earlier than t0.
            flow_init: [2, H, W], px, flow from t0 to t1 to start from instead of the network's own
                first estimate; not finite where it has nothing to say. Networks are trained
                without, so it need not help.
            initial: the former name of ``flow_init``, which goes with the next release.
            as_torch: whether the result gives torch tensors on the estimator's device, or numpy
                arrays; None: tensors when the frames (or, without frames, the event arrays) are.

        Returns:
            :class:`Result`.

        Raises:
            ValueError: naming the argument, what was found and what was expected.
        """
        inputs, (t0, t1), modalities = self._prepare(
            frame0, frame1, events, (t0, t1), (exposure0, exposure1), history
        )
        if initial is not None:
            warnings.warn("estimator: initial is now called flow_init", FutureWarning, stacklevel=2)
            flow_init = initial
        height, width = inputs.frame0.shape[-2:]
        start = _flow_init(flow_init, height, width)
        output = self._forward(inputs.as_batch(), iterations, start)
        if as_torch is None:
            as_torch = _is_torch(frame0, frame1, events)
        return _results(output, [(t0, t1)], [modalities], as_torch)[0]

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

        A data set whose items these are can be read by the workers of a
        ``torch.utils.data.DataLoader``, whose own ``collate_fn`` makes batches of them.

        Args:
            frame0, frame1, events, t0, t1, exposure0, exposure1, history: as of a call.

        Returns:
            :class:`~flowfuse.inputs.ModelInputs` without a batch axis, on the estimator's device.

        Raises:
            ValueError: as a call.
        """
        inputs, _, _ = self._prepare(
            frame0, frame1, events, (t0, t1), (exposure0, exposure1), history
        )
        return inputs

    def run(
        self,
        inputs: ModelInputs,
        *,
        t0: Any,
        t1: Any,
        iterations: int | None = None,
        flow_init: Array | None = None,
        as_torch: bool = False,
        encoded_frames: tuple[EncodedFrame, EncodedFrame] | None = None,
    ) -> list[Result]:
        """Estimate from inputs that are ready.

        Args:
            inputs: of B pairs, or of one without a batch axis; any device.
            t0, t1: [B] integers (list, numpy or torch), or one number for all; microseconds.
            iterations: as of a call.
            flow_init: [B, 2, H, W] px, as of a call; B = 1 for inputs without a batch axis.
            as_torch: as of a call.
            encoded_frames: what :meth:`encode_frame` makes of both frames, where all B pairs have
                both: they are not encoded again.

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
        if inputs.slices.dim() == 4:
            inputs = inputs.as_batch()
        count, (height, width) = len(inputs.slices), inputs.slices.shape[-2:]
        starts, ends = _column("t0", t0, count), _column("t1", t1, count)
        times = [_interval(*pair) for pair in zip(starts, ends, strict=True)]
        start = _flow_init(flow_init, height, width, count)
        inputs = ModelInputs(*(to_device(value, self.device) for value in inputs))
        output = self._forward(inputs, iterations, start, encoded_frames)
        modalities = []
        for row in inputs.modality_mask.tolist():  # waits for a GPU, which is at work by now
            count = int(row[Modality.FRAMES] * (1 + row[Modality.SECOND_FRAME]))
            modalities.append(self._modalities(count, row[Modality.EVENTS] > 0))
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
        frame = to_device(frame, self.device)
        with self._precision():
            return self.model.encode_frame(frame if frame.dim() == 4 else frame.unsqueeze(0))

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
        given = (frame0, frame1, events, t0, t1)
        lengths = {len(part) for part in given if part is not None and hasattr(part, "__len__")}
        if len(lengths) != 1 or not lengths - {0}:
            names = ("frame0", "frame1", "events", "t0", "t1")
            found = ", ".join(
                f"{name}: {len(part) if hasattr(part, '__len__') else type(part).__name__}"
                for name, part in zip(names, given, strict=True)
            )
            raise ValueError(f"estimate_batch: expected the same number of each, got {found}")
        count = lengths.pop()
        columns = [
            [None] * count if part is None else [part[i] for i in range(count)]
            for part in (frame0, frame1, events)
        ]
        columns += [_column("t0", t0, count), _column("t1", t1, count)]
        columns += [
            list(part) if hasattr(part, "__len__") else [part] * count
            for part in (exposure0, exposure1, history)
        ]
        prepared = []
        for index, row in enumerate(zip(*columns, strict=True)):
            image0, image1, found, start0, end0, length0, length1, before = row
            try:
                prepared.append(
                    self._prepare(image0, image1, found, (start0, end0), (length0, length1), before)
                )
            except ValueError as error:
                raise ValueError(f"item {index}: {error}") from error
        inputs, times, modalities = zip(*prepared, strict=True)
        batch = _stack_inputs(inputs, [image is not None for image in columns[0]])
        height, width = batch.frame0.shape[-2:]
        start = _flow_init(flow_init, height, width, count)
        output = self._forward(batch, iterations, start)
        if as_torch is None:
            as_torch = any(map(_is_torch, *columns[:3]))
        return _results(output, times, modalities, as_torch)

    def _prepare(
        self,
        frame0: Any,
        frame1: Any,
        events: Any,
        times: tuple[Any, Any],
        given_exposures: tuple[Any, Any],
        history: Any,
    ) -> tuple[ModelInputs, tuple[int, int], tuple[str, ...]]:
        """Check a frame pair: its inputs, its times, and what it is estimated from."""
        t0, t1 = _interval(*times)
        if history is not None and not isinstance(history, (bool, np.bool_)):
            raise ValueError(f"estimator: history must be True, False or None, got {history!r}")
        exposures = (
            _exposure("exposure0", given_exposures[0]),
            _exposure("exposure1", given_exposures[1]),
        )
        frames = [as_frame("frame0", frame0), as_frame("frame1", frame1)]
        shown = self._frames_shown(frames)
        if len(shown) < 2:
            exposures = (None, None)
        for name, exposure in zip(("exposure0", "exposure1"), exposures, strict=True):
            # Exposures of one camera do not overlap, and they are centred at t0 and t1.
            if exposure is not None and exposure > 2 * (t1 - t0):
                raise ValueError(
                    f"estimator: {name} must be at most 2 (t1 - t0) = {2 * (t1 - t0)} us, "
                    f"got {exposure} us"
                )
        events = as_events(events)
        height, width = _size(frames, events)
        used = self._used_events(events, t0, t1, exposures, height, width)
        has_events = len(used.slice_time(t0, t1)) > 0
        if events is not None:
            _check_times(events, t0, t1, all_used=len(used) == len(events))
        if history is None:
            history = events is not None and len(events) > 0 and int(events.t[0]) < t0
        self._check_modalities(len(shown) == 2, has_events, t0, t1)
        inputs = prepare_inputs(
            shown[0] if shown else None,
            shown[1] if len(shown) == 2 else None,
            used,
            t0=t0,
            t1=t1,
            spec=self.model.config.input_spec,
            exposures=exposures,
            history=history,
            device=self.device,
        )
        return inputs, (t0, t1), self._modalities(len(shown), has_events)

    def _forward(
        self,
        inputs: ModelInputs,
        iterations: int | None,
        flow_init: Tensor | None,
        encoded_frames: tuple[EncodedFrame, EncodedFrame] | None = None,
    ) -> ModelOutput:
        if iterations is not None:
            iterations = _integer("iterations", iterations, "an integer")
        with self._precision():
            return self.model(
                inputs,
                iterations=iterations,
                flow_init=None if flow_init is None else flow_init.to(self.device),
                encoded_frames=encoded_frames,
            )

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Run the network without gradients, in the precision asked for."""
        mixed = self.dtype != torch.float32
        low_precision = self.dtype if mixed else torch.bfloat16
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, low_precision, enabled=mixed),
        ):
            yield

    def _modalities(self, frames: int, has_events: bool) -> tuple[str, ...]:
        """What a result says it was made from, of so many frames, and events or none."""
        config = self.model.config
        used = FRAMES_USED[frames if config.frames else 0]
        return used + ("events",) * (has_events and config.events)

    def _frames_shown(self, frames: list[Tensor | None]) -> list[Tensor]:
        """The frames that the network is shown: both, frame 0 if it can use it alone, or none."""
        shown = [frame for frame in frames if frame is not None]
        one_is_enough = self.model.config.weighs_evidence and frames[0] is not None
        return shown if len(shown) == 2 or one_is_enough else []

    def _used_events(
        self,
        events: Events | None,
        t0: int,
        t1: int,
        exposures: Exposures,
        height: int,
        width: int,
    ) -> Events:
        """The events that any input needs, checked against the image size."""
        if events is None:
            return Events.empty(height, width)
        used = events.slice_time(*input_interval(t0, t1, self.model.config.slices, *exposures))
        return Events(used.x, used.y, used.t, used.p, height=height, width=width)

    def _check_modalities(self, has_frames: bool, has_events: bool, t0: int, t1: int) -> None:
        config = self.model.config
        if not (has_frames or has_events):
            raise ValueError(
                "estimator: flow needs both frames, or events in the time interval; got no frame "
                f"pair, and no event in [{t0}, {t1}) us"
            )
        if not (has_frames and config.frames) and not (has_events and config.events):
            kind = "frames" if config.frames else "events"
            raise ValueError(f"estimator: this network uses {kind} only, and none were given")


def _interval(t0: Any, t1: Any) -> tuple[int, int]:
    t0, t1 = _time("t0", t0), _time("t1", t1)
    if t1 <= t0:
        raise ValueError(f"estimator: t1 must be later than t0, got t0 = {t0} us, t1 = {t1} us")
    if t1 - t0 > MAX_DURATION:
        raise ValueError(
            f"estimator: t1 - t0 must be at most {MAX_DURATION} us, got t0 = {t0} us, t1 = {t1} us"
        )
    return t0, t1


def _column(name: str, values: Any, count: int) -> list[Any]:
    """One value for each item of a batch; a single number is that of all."""
    column = values.tolist() if hasattr(values, "tolist") else values
    column = list(column) if isinstance(column, (list, tuple)) else [column] * count
    if len(column) != count:
        raise ValueError(f"{name} must be one number, or [{count}], got {len(column)} numbers")
    return column


def _stack_inputs(items: Sequence[ModelInputs], has_frames: Sequence[bool]) -> ModelInputs:
    """Stack items of one size; absent frames are black in any number of colours."""
    channels = {len(item.frame0) for item, has in zip(items, has_frames, strict=True) if has}
    sizes = {tuple(item.frame0.shape[-2:]) for item in items}
    if len(sizes) > 1 or len(channels) > 1:
        found = ", ".join(f"{w} x {h}" for h, w in sorted(sizes))
        kinds = "gray and RGB frames" if len(channels) > 1 else "frames of one kind"
        raise ValueError(
            f"estimate_batch: expected items of one size, all gray or all RGB; got {found} px, "
            f"{kinds}"
        )
    wanted = channels.pop() if channels else 1
    grown = []
    for item in items:
        frames = (
            frame if len(frame) == wanted else frame.expand(wanted, -1, -1)
            for frame in (item.frame0, item.frame1)
        )
        frame0, frame1 = frames
        grown.append(item._replace(frame0=frame0, frame1=frame1))
    return ModelInputs(*(torch.stack(values) for values in zip(*grown, strict=True)))


def _results(
    output: ModelOutput,
    times: Sequence[tuple[int, int]],
    modalities: Sequence[tuple[str, ...]],
    as_torch: bool,
) -> list[Result]:
    # Copies made outside inference_mode are ordinary tensors, which autograd accepts.
    return [
        Result(
            output.control_points[i : i + 1].float().clone(),
            output.uncertainty[i : i + 1].float().clone(),
            output.boundary[i : i + 1].float().clone(),
            t0=t0,
            t1=t1,
            modalities=found,
            as_torch=as_torch,
        )
        for i, ((t0, t1), found) in enumerate(zip(times, modalities, strict=True))
    ]


def _integer(name: str, value: Any, expected: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"estimator: {name} must be {expected}, got {value!r}") from None


def _time(name: str, value: Any) -> int:
    time = _integer(name, value, "integer microseconds")
    if abs(time) > MAX_TIME:
        raise ValueError(f"estimator: {name} must be within +-{MAX_TIME} us, got {time} us")
    return time


def _exposure(name: str, value: Any) -> int | None:
    if value is None:
        return None
    duration = _time(name, value)
    if duration < 0:
        raise ValueError(f"estimator: {name} must not be negative, got {duration} us")
    return duration


def _flow_init(flow: Any, height: int, width: int, count: int | None = None) -> Tensor | None:
    """Flow to start from as [B, 2, H, W] float32; ``count``: B, None where it has no such axis."""
    if flow is None:
        return None
    shape = [2, height, width] if count is None else [count, 2, height, width]
    try:
        flow = torch.as_tensor(flow, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"estimator: flow_init must be numbers of shape {shape}, "
            f"got {type(flow).__name__} ({reason})"
        ) from error
    if list(flow.shape) != shape:
        raise ValueError(f"estimator: flow_init must have shape {shape}, got {list(flow.shape)}")
    return flow if count is not None else flow.unsqueeze(0)


def _is_torch(frame0: Any, frame1: Any, events: Any) -> bool:
    frames = [frame for frame in (frame0, frame1) if frame is not None]
    if frames:
        return any(isinstance(frame, Tensor) for frame in frames)
    if isinstance(events, Mapping):
        return any(isinstance(value, Tensor) for value in events.values())
    return isinstance(events, tuple) and any(isinstance(value, Tensor) for value in events)


def as_frame(name: str, frame: Any) -> Tensor | None:
    """Check an image that a caller gives.

    Args:
        name: of the argument, for messages.
        frame: [H, W], [H, W, 1] or [H, W, 3]; uint8, or floating in [0, 1]; None: there is none.

    Returns:
        It as uint8 or as float32 in [0, 1], on the device it came on; a copy of a numpy array.

    Raises:
        ValueError: it is none; naming what was found and what was expected.
    """
    if frame is None:
        return None
    if not isinstance(frame, (np.ndarray, Tensor)):
        raise ValueError(f"{name} must be a numpy array or a tensor, got {type(frame).__name__}")
    if isinstance(frame, np.ndarray) and frame.dtype not in FRAME_DTYPES:
        raise ValueError(
            f"{name} must be uint8, uint16, or float16, float32 or float64 in [0, 1]; "
            f"got dtype {frame.dtype}"
        )
    image = frame.detach() if isinstance(frame, Tensor) else torch.from_numpy(frame.copy())
    if not (image.dim() == 2 or (image.dim() == 3 and image.shape[2] in (1, 3))):
        raise ValueError(f"{name} must have shape [H, W] or [H, W, 3], got {list(image.shape)}")
    height, width = image.shape[:2]
    if min(height, width) < MINIMUM_SIZE:
        raise ValueError(
            f"{name} must be at least {MINIMUM_SIZE} x {MINIMUM_SIZE} px, got {width} x {height}"
        )
    if image.dtype == torch.uint8:
        return image
    if image.dtype == torch.uint16:
        _check_depth(name, int(image.int().max()))
        return image
    if not image.is_floating_point():
        raise ValueError(f"{name} must be uint8, uint16, or floating in [0, 1]; got {image.dtype}")
    image = image.float()
    if not torch.isfinite(image).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    low, high = image.min().item(), image.max().item()
    # Interpolation and rounding overshoot a little; anything more is another range.
    if low < -1e-3 or high > 1 + 1e-3:
        hint = "; divide by 255, or give uint8" if high > 2 else ""
        raise ValueError(f"{name}: a float image must lie in [0, 1], got {low:g} to {high:g}{hint}")
    return image.clamp(0, 1)


def _check_depth(name: str, largest: int) -> None:
    """Warn of a 16-bit image that seems to hold 8, 10 or 12 bits."""
    if 0 < largest < 1 << 12:
        bits = next(bits for bits in (8, 10, 12) if largest >> bits == 0)
        warnings.warn(
            f"{name}: values up to {largest} of 65535: black to the network; if the camera has "
            f"{bits} bits, multiply by 65535 / {(1 << bits) - 1}",
            stacklevel=4,
        )


def _check_times(events: Events, t0: int, t1: int, all_used: bool) -> None:
    """Warn where next to none of the events lie in the time interval; guess why.

    Events that are all used may be those before t0 alone, and are warned of only where another unit
    would bring them into the interval.
    """
    inside = len(events.slice_time(t0, t1))
    if inside * FEWEST_USED >= len(events):
        return
    first, last = int(events.t[0]), int(events.t[-1])
    guess = ""
    for unit, numerator, divisor in UNITS:
        # t x numerator / divisor in [t0, t1), without an overflow of int64
        limits = [-(-time * divisor // numerator) for time in (t0, t1)]
        found = int(np.diff(np.searchsorted(events.t, limits))[0])
        if found * FEWEST_USED >= len(events) and found > inside:
            guess = f"; {found} would, were their times in {unit}: all times are microseconds"
            break
    else:
        if all_used:
            return
        if last < t0 or t1 <= first:
            guess = "; is it one clock?"
    warnings.warn(
        f"estimator: {inside} of the {len(events)} events given lie in [t0, t1) = [{t0}, {t1}) us; "
        f"they go from {first} to {last} us{guess}",
        stacklevel=3,
    )


def _size(frames: list[Tensor | None], events: Events | None) -> tuple[int, int]:
    """Height and width on which all inputs agree."""
    sizes = {f"frame{i}": tuple(f.shape[:2]) for i, f in enumerate(frames) if f is not None}
    if events is not None and events.height is not None and events.width is not None:
        sizes["events"] = (events.height, events.width)
    if not sizes:
        if events is None:
            raise ValueError("estimator: frames and events are None; give both frames, or events")
        raise ValueError(
            "estimator: without frames the sensor size must be known; "
            "give Events(x, y, t, p, height=, width=)"
        )
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} is {w} x {h}" for name, (h, w) in sizes.items())
        raise ValueError(f"estimator: frames and events must have one size in px, got {found}")
    height, width = next(iter(sizes.values()))
    if min(height, width) < MINIMUM_SIZE:
        raise ValueError(
            f"events must come from a sensor of at least {MINIMUM_SIZE} x {MINIMUM_SIZE} px, "
            f"got {width} x {height}"
        )
    return height, width
