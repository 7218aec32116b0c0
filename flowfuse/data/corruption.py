"""Corruption of one modality of a training sample, so that the network learns which one to trust.

Frames and events of a generated scene agree. Those of real cameras often do not: clocks differ,
events are lost, frames are blurred, clipped or repeated. A corrupted sample has one modality that
is wrong in one way; the other one and the ground truth stay as they are. The ground truth belongs
to the pixels of the frames where the events are displaced, and to the middle of the readout where
rows of the frames are read one after the other.

Every function returns a new sample and leaves the given tensors unchanged. Random draws come
from a numpy Generator alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flowfuse.data.samples import Sample
from flowfuse.data.synthetic.presets import log_uniform
from flowfuse.geometry.grid import pixel_grid
from flowfuse.geometry.grid import sample as sample_image
from flowfuse.inputs import PairKind

Range = tuple[float, float]

EVENT_FIELDS = ("slices", "event_sum")
FRAME_FIELDS = ("frame0", "frame1")

# Of the events.
SHIFT: Range = (0.02, 0.3)  # in intervals between the frames, log-uniform
GAIN: Range = (0.2, 5.0)  # log-uniform
BALANCE: Range = (1.5, 6.0)  # of one polarity's gain over the other's, log-uniform
LINES = 4  # hot rows and columns, at most
LINE_RATE: Range = (0.3, 3.0)  # events of a hot pixel in a bin, log-uniform
NOISE_RATE: Range = (0.05, 1.5)  # noise events per pixel over the whole input, log-uniform
VIEW_SHIFT = 6  # px, at most
VIEW_SCALE = 0.04  # the view is larger or smaller by up to this share
VIEW_ROTATION = 0.06  # radians, at most
RESAMPLED = 0.2  # of the samples with right events

# Of the frames.
EXPOSURE: Range = (0.3, 3.0)  # gain of the gamma-encoded image, log-uniform
DEFOCUS: Range = (0.8, 4.0)  # px, standard deviation, log-uniform
SMEAR: Range = (4.0, 24.0)  # px
GRAIN: Range = (0.04, 0.25)  # standard deviation, log-uniform
READOUT: Range = (0.05, 0.3)  # of the interval, from the first row to the last
JUMP: Range = (0.5, 4.0)  # px, of the second frame
VIGNETTE = 0.7  # share of the light that is missing in the corners, at most
BAND: Range = (0.03, 0.25)  # width of a band in the shade, of the image's
SHADE: Range = (0.2, 0.9)  # gain in the band, and under spots
SPOTS = 8  # on the lens, at most
SPOT_SIZE: Range = (1.0, 8.0)  # px, radius, log-uniform
FIXED_NOISE: Range = (0.005, 0.05)  # standard deviation of gains, log-uniform
BOTH = 0.5  # probability that both frames are corrupted, where it can be one


class Kind(NamedTuple):
    """One way in which a modality is wrong.

    Attributes:
        apply: makes the corrupted sample.
        weight: how often it is drawn, relative to the others.
        broken: pairs of latents that correspond no longer.
    """

    apply: Callable[[Sample, np.random.Generator], Sample]
    weight: float
    broken: tuple[int, ...] = ()


def corrupt(sample: Sample, rng: np.random.Generator, *, events: float, frames: float) -> Sample:
    """Corrupt one modality, or none.

    Args:
        sample: with both modalities.
        rng: where every draw comes from.
        events, frames: probability that this one is corrupted; at most 1 together.

    Returns:
        The sample with ``matching``.
    """
    which = rng.random()
    kinds = EVENT_KINDS if which < events else FRAME_KINDS if which < events + frames else None
    if kinds is None:
        if rng.random() < RESAMPLED:
            # Shifted events are blurred a little in time. That alone must not give them away.
            sample = _with_slices(sample, _shift(sample.slices, 0.0))
        return with_matching(sample)
    weights = np.array([kind.weight for kind in kinds.values()])
    kind = list(kinds.values())[rng.choice(len(kinds), p=weights / weights.sum())]
    matching = torch.ones(3)
    matching[list(kind.broken)] = 0.0
    return kind.apply(sample, rng)._replace(matching=matching)


def with_matching(sample: Sample) -> Sample:
    """Add ``matching`` = [1, 1, 1]: everything corresponds."""
    return sample._replace(matching=torch.ones(3))


def shift_events(sample: Sample, rng: np.random.Generator) -> Sample:
    """Events that are late or early; the first or last ones repeat where none are known."""
    slices = sample.slices
    steps = (len(slices) - 1) * max(slices.shape[1] - 1, 1)  # between the frames
    late = log_uniform(rng, SHIFT) * rng.choice((-1.0, 1.0))
    return _with_slices(sample, _shift(slices, late * steps))


def scale_events(sample: Sample, rng: np.random.Generator) -> Sample:
    """Events of another contrast threshold than that which frames and events were trained with."""
    gain = log_uniform(rng, GAIN)
    return sample.map(lambda sums: sums * gain, EVENT_FIELDS)


def unbalance_polarity(sample: Sample, rng: np.random.Generator) -> Sample:
    """ON and OFF events of different gains."""
    slices, ratio = sample.slices, log_uniform(rng, BALANCE) ** rng.choice((-0.5, 0.5))
    return _with_slices(sample, slices.clamp(min=0) * ratio + slices.clamp(max=0) / ratio)


def invert_polarity(sample: Sample, rng: np.random.Generator) -> Sample:
    """ON and OFF swapped."""
    return sample.map(torch.neg, EVENT_FIELDS)


def lose_burst(sample: Sample, rng: np.random.Generator) -> Sample:
    """Lose the events of a slice or a part of one, or get them twice; of all rows or of a band."""
    slices = sample.slices.clone()
    count, bins, rows, _ = slices.shape
    part = _span(rng, bins) if rng.random() < 0.5 else slice(None)
    band = _span(rng, rows) if rng.random() < 0.5 else slice(None)
    slices[rng.integers(count), part, band] *= rng.choice((0.0, 2.0))
    return _with_slices(sample, slices)


def heat_lines(sample: Sample, rng: np.random.Generator) -> Sample:
    """Rows and columns that fire all the time, each with one polarity or with both."""
    slices = sample.slices.clone()
    for _ in range(rng.integers(1, LINES + 1)):
        axis = int(rng.choice((-2, -1)))
        line = slices.select(axis, int(rng.integers(slices.shape[axis])))
        count = torch.from_numpy(rng.poisson(log_uniform(rng, LINE_RATE), line.shape)).float()
        signs = ((1.0, 1.0), (-1.0, -1.0), (-1.0, 1.0))[rng.integers(3)]
        line += count * torch.from_numpy(rng.choice(np.array(signs, np.float32), line.shape))
    return _with_slices(sample, slices)


def add_noise_events(sample: Sample, rng: np.random.Generator) -> Sample:
    """Dense noise events of both polarities."""
    slices = sample.slices
    cells = slices.shape[0] * slices.shape[1]
    count = rng.poisson(log_uniform(rng, NOISE_RATE) / cells, slices.shape)
    signs = rng.choice(np.array([-1.0, 1.0], np.float32), slices.shape)
    return _with_slices(sample, slices + torch.from_numpy(count * signs).float())


def displace_events(sample: Sample, rng: np.random.Generator) -> Sample:
    """The events' view is shifted by whole pixels."""
    shift = rng.integers(-VIEW_SHIFT, VIEW_SHIFT + 1, 2)
    if not shift.any():
        shift[rng.integers(2)] = 1
    return sample.map(lambda image: _moved(image, *shift), EVENT_FIELDS)


def turn_events(sample: Sample, rng: np.random.Generator) -> Sample:
    """The events' view is a little larger or smaller, and turned."""
    scale = 1 + rng.uniform(-VIEW_SCALE, VIEW_SCALE)
    angle = rng.uniform(-VIEW_ROTATION, VIEW_ROTATION)
    coords = _similarity(sample.slices, scale, angle)
    return sample.map(lambda image: _sampled(image, coords), EVENT_FIELDS)


def expose_wrongly(sample: Sample, rng: np.random.Generator) -> Sample:
    """Frames much too bright, and clipped, or too dark, and coarse."""

    def change(frame: Tensor, gain: float) -> Tensor:
        return ((frame * gain).clamp(max=1) * 255).round() / 255

    return _change_frames(sample, rng, change, lambda: log_uniform(rng, EXPOSURE))


def defocus(sample: Sample, rng: np.random.Generator) -> Sample:
    """Frames out of focus: Gaussian blur."""

    def change(frame: Tensor, sigma: float) -> Tensor:
        radius = int(np.ceil(2.5 * sigma))
        taps = torch.arange(-radius, radius + 1, dtype=torch.float32)
        kernel = (-0.5 * (taps / sigma) ** 2).exp()
        kernel = kernel / kernel.sum()
        for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
            frame = _filtered(frame, kernel.view(shape))
        return frame

    return _change_frames(sample, rng, change, lambda: log_uniform(rng, DEFOCUS))


def smear(sample: Sample, rng: np.random.Generator) -> Sample:
    """Frames blurred along a line, as by a camera that was knocked."""

    def change(frame: Tensor, line: tuple[float, float]) -> Tensor:
        length, angle = line
        radius = int(np.ceil(length / 2))
        steps = np.linspace(-length / 2, length / 2, 2 * radius + 1)
        kernel = torch.zeros(2 * radius + 1, 2 * radius + 1)
        rows = np.rint(steps * np.sin(angle)).astype(int) + radius
        columns = np.rint(steps * np.cos(angle)).astype(int) + radius
        for row, column in zip(rows, columns, strict=True):
            kernel[row, column] += 1 / len(steps)
        return _filtered(frame, kernel[None, None])

    return _change_frames(sample, rng, change, lambda: (rng.uniform(*SMEAR), rng.uniform(0, np.pi)))


def add_grain(sample: Sample, rng: np.random.Generator) -> Sample:
    """Frames full of noise."""

    def change(frame: Tensor, deviation: float) -> Tensor:
        noise = torch.from_numpy(rng.standard_normal(frame.shape, dtype=np.float32))
        return (frame + deviation * noise).clamp(0, 1)

    return _change_frames(sample, rng, change, lambda: log_uniform(rng, GRAIN))


def shade(sample: Sample, rng: np.random.Generator) -> Sample:
    """What belongs to camera and lens stands still: a vignette, a hood's shade, dust, column noise.

    Both frames are multiplied with the same gains.
    """
    height, width = sample.frame0.shape[-2:]
    x, y = pixel_grid(height, width)
    radius = ((x / width - 0.5).square() + (y / height - 0.5).square()) * 2
    gain = 1 - rng.uniform(0, VIGNETTE) * radius
    if rng.random() < 0.5:
        place, length = ((x, width), (y, height))[rng.integers(2)]
        place = place if rng.random() < 0.5 else length - 1 - place
        edge, softness = rng.uniform(*BAND) * length, rng.uniform(0.1, 4.0)
        inside = torch.sigmoid((edge - place) / softness)
        gain = gain * (1 - inside * (1 - rng.uniform(*SHADE)))
    for _ in range(rng.integers(SPOTS + 1)):
        centre_x, centre_y = rng.uniform(0, width), rng.uniform(0, height)
        distance = torch.hypot(x - centre_x, y - centre_y)
        inside = torch.sigmoid(2 * (log_uniform(rng, SPOT_SIZE) - distance))
        gain = gain * (1 - inside * (1 - rng.uniform(*SHADE)))
    for shape in ((1, width), (height, width)):
        noise = rng.standard_normal(shape, dtype=np.float32) * log_uniform(rng, FIXED_NOISE)
        gain = gain * (1 + torch.from_numpy(noise))
    return sample.map(lambda frame: ((frame * gain).clamp(0, 1) * 255).round() / 255, FRAME_FIELDS)


def roll_shutter(sample: Sample, rng: np.random.Generator) -> Sample:
    """Rows read one after the other: upper ones show the scene earlier, lower ones later.

    The ground truth tells how far a row's content has moved. Without it the sample stays as it is.
    """
    if sample.flow is None:
        return sample
    motion = torch.where(sample.valid[-1], sample.flow[-1], 0)  # [2, H, W] px
    height, width = motion.shape[-2:]
    readout = rng.uniform(*READOUT) * rng.choice((-1.0, 1.0))
    delay = readout * (torch.linspace(-0.5, 0.5, height) if height > 1 else torch.zeros(1))
    coords = pixel_grid(height, width) - motion * delay[:, None]
    return sample.map(lambda image: _sampled(image, coords, "border"), FRAME_FIELDS)


def repeat_frame(sample: Sample, rng: np.random.Generator) -> Sample:
    """The camera lost a frame, and gives the one before again."""
    return sample._replace(frame1=sample.frame0.clone())


def jump_frame(sample: Sample, rng: np.random.Generator) -> Sample:
    """The second frame is displaced: a knock, or an image stabilizer."""
    length, angle = rng.uniform(*JUMP), rng.uniform(0, 2 * np.pi)
    offset = torch.tensor([length * np.cos(angle), length * np.sin(angle)], dtype=torch.float32)
    height, width = sample.frame1.shape[-2:]
    coords = pixel_grid(height, width) - offset[:, None, None]
    return sample._replace(frame1=_sampled(sample.frame1, coords, "border"))


EVENT_KINDS: dict[str, Kind] = {
    "shift": Kind(shift_events, 3, (PairKind.CROSS,)),
    "gain": Kind(scale_events, 1),
    "balance": Kind(unbalance_polarity, 1.5),
    "invert": Kind(invert_polarity, 0.5, (PairKind.CROSS,)),
    "burst": Kind(lose_burst, 2, (PairKind.EVENTS, PairKind.CROSS)),
    "lines": Kind(heat_lines, 1),
    "noise": Kind(add_noise_events, 3),
    "displace": Kind(displace_events, 1.5, (PairKind.EVENTS, PairKind.CROSS)),
    "turn": Kind(turn_events, 1, (PairKind.EVENTS, PairKind.CROSS)),
}
FRAME_KINDS: dict[str, Kind] = {
    "exposure": Kind(expose_wrongly, 2),
    "defocus": Kind(defocus, 2),
    "smear": Kind(smear, 2),
    "grain": Kind(add_grain, 1.5),
    "shade": Kind(shade, 4),
    "shutter": Kind(roll_shutter, 1, (PairKind.FRAMES, PairKind.CROSS)),
    "repeat": Kind(repeat_frame, 1, (PairKind.FRAMES,)),
    "jump": Kind(jump_frame, 0.5, (PairKind.FRAMES,)),
}


def _with_slices(sample: Sample, slices: Tensor) -> Sample:
    """Replace the slices, and change the event sum by as much as their sum changes."""
    change = (slices[1:] - sample.slices[1:]).sum((0, 1))
    return sample._replace(slices=slices, event_sum=sample.event_sum + change)


def _shift(slices: Tensor, steps: float) -> Tensor:
    """Move events in time by `steps` bin distances, later ones positive.

    The bins of a slice are `bins - 1` steps apart; an event counts for the two nearest. The events
    of a step are taken as spread evenly over it.
    """
    count, bins = slices.shape[:2]
    if bins > 1:
        weights = torch.full((bins, 1, 1), 0.5)
        weights[0] = weights[-1] = 1.0
        halves = slices * weights
        per_step = (halves[:, :-1] + halves[:, 1:]).flatten(0, 1)
    else:
        per_step = slices.flatten(0, 1)
    whole = int(np.floor(steps))
    rest = steps - whole
    places = torch.arange(len(per_step)) - whole
    last = len(per_step) - 1
    per_step = (1 - rest) * per_step[places.clamp(0, last)] + rest * per_step[
        (places - 1).clamp(0, last)
    ]
    if bins == 1:
        return per_step.unflatten(0, (count, 1))
    halves = 0.5 * per_step.unflatten(0, (count, bins - 1))
    return F.pad(halves, (0, 0, 0, 0, 0, 1)) + F.pad(halves, (0, 0, 0, 0, 1, 0))


def _change_frames(
    sample: Sample,
    rng: np.random.Generator,
    change: Callable,
    draw: Callable,
) -> Sample:
    """Change one frame, or both alike: change(frame, draw())."""
    strength = draw()
    both, first = rng.random() < BOTH, rng.random() < 0.5
    names = FRAME_FIELDS if both else FRAME_FIELDS[:1] if first else FRAME_FIELDS[1:]
    return sample.map(lambda frame: change(frame, strength), names)


def _filtered(frame: Tensor, kernel: Tensor) -> Tensor:
    """Convolve the channels [C, H, W] with a kernel [1, 1, k, l], borders repeated."""
    rows, columns = kernel.shape[-2] // 2, kernel.shape[-1] // 2
    padded = F.pad(frame[:, None], (columns, columns, rows, rows), mode="replicate")
    return F.conv2d(padded, kernel)[:, 0]


def _moved(image: Tensor, rows: int, columns: int) -> Tensor:
    """Move by whole pixels, zeros coming in."""
    moved = torch.zeros_like(image)
    height, width = image.shape[-2:]
    target = (
        ...,
        slice(max(rows, 0), height + min(rows, 0)),
        slice(max(columns, 0), width + min(columns, 0)),
    )
    source = (
        ...,
        slice(max(-rows, 0), height + min(-rows, 0)),
        slice(max(-columns, 0), width + min(-columns, 0)),
    )
    if abs(rows) < height and abs(columns) < width:
        moved[target] = image[source]
    return moved


def _similarity(image: Tensor, scale: float, angle: float) -> Tensor:
    """Coordinates [2, H, W] of an image enlarged and turned about its middle."""
    height, width = image.shape[-2:]
    middle = torch.tensor([(width - 1) / 2, (height - 1) / 2])[:, None, None]
    x, y = (pixel_grid(height, width) - middle) / scale
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    return torch.stack((cosine * x + sine * y, cosine * y - sine * x)) + middle


def _sampled(image: Tensor, coords: Tensor, padding: str = "zeros") -> Tensor:
    """Sample any image [..., H, W] at coordinates [2, H, W]."""
    flat = image.reshape(1, -1, *image.shape[-2:])
    return sample_image(flat, coords[None], padding=padding).view(image.shape)


def _span(rng: np.random.Generator, length: int) -> slice:
    """A part of an axis, at least one element."""
    first, last = sorted(rng.integers(0, length, 2))
    return slice(int(first), int(last) + 1)
