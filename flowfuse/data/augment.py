"""Augmentation of training samples: crop, symmetries of the image plane, sensor variation, dropout.

Every function takes a sample without a batch axis, with ground truth or without. It returns a new
sample and leaves the given tensors unchanged. Random draws come from a numpy Generator alone, so a
sample is a function of its seed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flowfuse.data.corruption import corrupt, with_matching
from flowfuse.data.samples import IMAGES, Sample
from flowfuse.data.synthetic.presets import log_uniform
from flowfuse.data.warm_start import add_warm_start
from flowfuse.geometry.grid import inside, pixel_grid
from flowfuse.inputs import Modality

# Of flicker. Lamps on mains of 50 or 60 Hz have 100 or 120 periods a second, frames 10 to 50.
FLICKER_PERIODS = (2.0, 12.0)  # between two frames
FLICKER_PEAK = (0.8, 4.0)  # of the log intensity, in contrast thresholds; log-uniform
FLICKER_EVERYWHERE = (
    0.4  # where the lamps have this share of the light, or more, they are all of it
)
FLICKER_STEPS = 16  # in a slice
FLICKER_THRESHOLD = 0.1  # log intensity: what a threshold is where the frames show it
# Of a less sensitive sensor, in thresholds of the one that was there.
INSENSITIVE_THRESHOLD = (1.0, 4.0)  # of one polarity; log-uniform
INSENSITIVE_RATIO = (1.0, 2.5)  # that of the other polarity over it; log-uniform
# While a pixel recovers from an event it misses others: most events in a bin, and probabilities.
INSENSITIVE_LIMITS = (1.0, 2.0, np.inf)
INSENSITIVE_SHARES = (0.3, 0.2, 0.5)
GAMMA = 2.2


@dataclass(frozen=True)
class AugmentConfig:
    """How training samples are varied.

    Args:
        flip: probability of each mirror image (left-right, up-down).
        transpose: probability of swapping rows and columns.
        event_gain: the polarity sums are scaled by a factor in [1 - this, 1 + this].
        event_noise: noise events per pixel over the whole input, at most.
        event_flicker: probability that lamps flicker: events of all pixels in turn, without motion.
        frame_gain: both frames are scaled by one factor in [1 - this, 1 + this].
        frame_gain_difference: and each by its own factor in [1 - this, 1 + this].
        frame_gamma: both frames are raised to a power between 1 / (1 + this) and 1 + this.
        frame_noise: standard deviation of the frame noise, at most (frames are in [0, 1]).
        drop_frames: probability that the frames are missing.
        drop_events: probability that the events are missing (never both).
        drop_history: probability that the events before t0 are missing.
        drop_exposure: probability that the exposure times are unknown.
        corrupt_events: probability that the events are wrong where both modalities are there, see
            :mod:`flowfuse.data.corruption`.
        corrupt_frames: the same of the frames (never both).
        drop_second_frame: probability that frame 1 is missing where both modalities are there.
        warm_start: probability that the network starts from a flow like that of the interval
            before: the ground truth, perturbed (:mod:`flowfuse.data.warm_start`).
        insensitive_sensor: probability that the events are those of a less sensitive sensor.
    """

    flip: float = 0.5
    transpose: float = 0.5
    event_gain: float = 0.2
    event_noise: float = 0.02
    event_flicker: float = 0.1
    frame_gain: float = 0.2
    frame_gain_difference: float = 0.05
    frame_gamma: float = 0.25
    frame_noise: float = 0.02
    drop_frames: float = 0.1
    drop_events: float = 0.1
    drop_history: float = 0.1
    drop_exposure: float = 0.1
    corrupt_events: float = 0.0
    corrupt_frames: float = 0.0
    drop_second_frame: float = 0.0
    warm_start: float = 0.0
    insensitive_sensor: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{field.name} must be in [0, 1], got {value}")
        if self.drop_frames + self.drop_events > 1.0:
            raise ValueError(
                "drop_frames + drop_events must be at most 1, got "
                f"{self.drop_frames} + {self.drop_events}"
            )
        if self.corrupt_events + self.corrupt_frames > 1.0:
            raise ValueError(
                "corrupt_events + corrupt_frames must be at most 1, got "
                f"{self.corrupt_events} + {self.corrupt_frames}"
            )


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """Cut a window out of every image of a sample.

    A pixel whose true position at tau lies outside the window counts as occluded there, as one that
    leaves the camera's view does; its flow stays known.

    Args:
        sample: the sample, images of H x W pixels.
        top, left: first row and column of the window.
        height, width: size of the window in px.

    Returns:
        The sample with images of height x width pixels.

    Raises:
        ValueError: the window is not inside the image.
    """
    rows, columns = sample.frame0.shape[-2:]
    if not (0 <= top <= rows - height and 0 <= left <= columns - width):
        raise ValueError(
            f"crop: a window of {height} x {width} at ({top}, {left}) is not inside an image of "
            f"{rows} x {columns}"
        )
    window = (..., slice(top, top + height), slice(left, left + width))
    result = sample.map(lambda image: image[window], IMAGES)
    flow = result.flow  # [T, 2, H, W]
    if flow is None:
        return result
    seen = inside(pixel_grid(height, width) + flow, height, width)[:, 0]
    return result._replace(occluded=result.occluded | ~seen)


def flip_columns(sample: Sample) -> Sample:
    """Mirror left and right: columns are reversed and u changes its sign."""
    return _flip(sample, axis=-1, component=0)


def flip_rows(sample: Sample) -> Sample:
    """Mirror up and down: rows are reversed and v changes its sign."""
    return _flip(sample, axis=-2, component=1)


def transpose(sample: Sample) -> Sample:
    """Swap rows and columns, and with them u and v."""
    result = sample.map(lambda image: image.transpose(-1, -2), IMAGES)
    return result if result.flow is None else result._replace(flow=result.flow.flip(1))


def vary_events(sample: Sample, rng: np.random.Generator, config: AugmentConfig) -> Sample:
    """Scale the events' contrast threshold and add noise events."""
    gain = _factor(rng, config.event_gain)
    rate = rng.uniform(0.0, config.event_noise)
    slices = sample.slices
    noise = torch.zeros(slices.shape)
    count = rng.poisson(rate * slices[0, 0].numel())
    cells = torch.from_numpy(rng.integers(0, noise.numel(), count))
    signs = torch.from_numpy(rng.choice(np.array([-1.0, 1.0], np.float32), count))
    noise.view(-1).index_add_(0, cells, signs)
    return sample._replace(
        slices=slices * gain + noise,
        # Slices E_1 .. E_K are what lies between the frames.
        event_sum=sample.event_sum * gain + noise[1:].sum((0, 1))[None],
    )


def lower_sensitivity(sample: Sample, rng: np.random.Generator) -> Sample:
    """Turn the events into those that a less sensitive sensor would have seen.

    The polarities of a pixel add up to its signal, in thresholds. A sensor with larger thresholds
    fires whenever the signal has changed by one of these since its last event; ON and OFF events
    have thresholds of their own.
    """
    slices = sample.slices
    first, ratio = log_uniform(rng, INSENSITIVE_THRESHOLD), log_uniform(rng, INSENSITIVE_RATIO)
    on, off = (first, first * ratio) if rng.random() < 0.5 else (first * ratio, first)
    limit = float(rng.choice(INSENSITIVE_LIMITS, p=INSENSITIVE_SHARES))
    phase, shift = torch.from_numpy(rng.random((2, *slices.shape[-2:]), dtype=np.float32))
    signal = slices.flatten(0, 1).cumsum(0)
    # The sensor has been running, say on the same signal: it begins where that has ended.
    before = signal - signal[-1]
    last = before[0] + off - phase * (on + off)
    counts = []
    for level in torch.cat((before, signal)):
        change = level - last
        threshold = torch.where(change > 0, on, off)
        count = torch.trunc(change / threshold)
        last = last + count * threshold
        counts.append(count.clamp(-limit, limit))
    fired = torch.stack(counts[len(before) :]).view_as(slices)
    # When in its bin an event came is not known: a part of it goes to the bin before or after.
    shift = shift - 0.5
    changed = fired * (1 - shift.abs())
    changed[:, 1:] += fired[:, :-1] * shift.clamp(min=0)
    changed[:, :-1] -= fired[:, 1:] * shift.clamp(max=0)
    changed[:, -1] += fired[:, -1] * shift.clamp(min=0)
    changed[:, 0] -= fired[:, 0] * shift.clamp(max=0)
    between, was_between = (x[1:].sum((0, 1)) for x in (changed, slices))
    exposed = (sample.event_sum - was_between) * (2 / (on + off))  # what exposures add to it
    return sample._replace(slices=changed, event_sum=between + exposed)


def add_flicker(sample: Sample, rng: np.random.Generator) -> Sample:
    """Add the events of lamps that flicker while everything else goes on, and light the frames so.

    The log intensities of light and scene add up, and so do their events, but for what each
    contributes to a pixel's next one. A pixel fires whenever the lamps' log intensity, here a sine,
    is a threshold away from that of its last event. What share of its light is theirs differs
    smoothly from place to place.
    """
    slices = sample.slices
    count, bins, height, width = slices.shape
    periods = rng.uniform(*FLICKER_PERIODS)
    peak = log_uniform(rng, FLICKER_PEAK)
    phase = rng.uniform(0, 2 * np.pi)
    share = torch.from_numpy(rng.uniform(0, 1, (1, 1, 3, 4)).astype(np.float32))
    share = F.interpolate(share, (height, width), mode="bilinear", align_corners=True)[0, 0]
    strength = peak * (share / FLICKER_EVERYWHERE).clamp(max=1)  # thresholds
    last = torch.from_numpy(rng.random((height, width), dtype=np.float32)) * 2 - 1

    def sine(tau: float) -> float:
        return float(np.sin(2 * np.pi * periods * tau + phase))

    step = 1 / (count - 1) / FLICKER_STEPS
    exposure = sample.exposure.tolist()
    before, after = (int(np.ceil(length / 2 / step)) for length in exposure)
    first = -max(FLICKER_STEPS, before)  # of slice E_0, or of exposure 0
    # The lamps have flickered for long: a pixel's last event was one of the half period at hand.
    rises = np.cos(2 * np.pi * periods * first * step + phase) > 0
    for extreme in (1, -1) if rises else (-1, 1):
        last += torch.trunc(extreme * strength - last)
    last += torch.trunc(strength * sine(first * step) - last)
    added, total = torch.zeros(slices.shape), torch.zeros(1, height, width)
    for i in range(first, (count - 1) * FLICKER_STEPS + after):
        fired = torch.trunc(strength * sine((i + 1) * step) - last)
        last += fired
        total += fired * seen_by_frames((i + 0.5) * step, *exposure)
        k, within = divmod(i + FLICKER_STEPS, FLICKER_STEPS)
        if 0 <= k < count:  # the two nearest bins, as voxelize does
            early, late = divmod((within + 0.5) / FLICKER_STEPS * (bins - 1), 1)
            added[k, int(early)] += (1 - late) * fired
            if bins > 1:
                added[k, int(early) + 1] += late * fired

    def lit(frame: Tensor, tau: float, length: float) -> Tensor:
        change = strength * (FLICKER_THRESHOLD * sine(tau) * float(np.sinc(periods * length)))
        return (frame * (change / GAMMA).exp()).clamp(max=1)

    return sample._replace(
        slices=slices + added,
        event_sum=sample.event_sum + total,
        frame0=lit(sample.frame0, 0, exposure[0]),
        frame1=lit(sample.frame1, 1, exposure[1]),
    )


def seen_by_frames(tau: float, exposure0: float, exposure1: float) -> float:
    """Weight of an event in the difference of two frames, see ``flowfuse.inputs.sum_events``.

    Args:
        tau: its time, where frame 0 is at 0 and frame 1 at 1.
        exposure0, exposure1: durations, in intervals between the frames.
    """
    before, until = (
        np.clip((tau - middle) / max(exposure, 1e-9) + 0.5, 0, 1)
        for middle, exposure in ((0, exposure0), (1, exposure1))
    )
    return float(before - until)


def vary_frames(sample: Sample, rng: np.random.Generator, config: AugmentConfig) -> Sample:
    """Change gain and gamma of both frames, each one's own gain a little, and add noise."""
    gamma = _power(rng, config.frame_gamma)
    gain = _factor(rng, config.frame_gain)
    noise = rng.uniform(0.0, config.frame_noise)

    def vary(frame: Tensor) -> Tensor:
        frame = frame.pow(gamma) * (gain * _factor(rng, config.frame_gain_difference))
        grain = torch.from_numpy(rng.standard_normal(frame.shape, dtype=np.float32))
        return (frame + noise * grain).clamp(0.0, 1.0)

    return sample.map(vary, ("frame0", "frame1"))


def drop_frames(sample: Sample) -> Sample:
    """Take the frames away, and with them what is known of their exposure."""
    return drop_exposure(sample)._replace(
        frame0=torch.zeros_like(sample.frame0),
        frame1=torch.zeros_like(sample.frame1),
        modality_mask=_without(sample, Modality.FRAMES, Modality.SECOND_FRAME),
    )


def drop_second_frame(sample: Sample) -> Sample:
    """Take frame 1 away, and with it what is known of the exposures: few know only the first."""
    return drop_exposure(sample)._replace(
        frame1=torch.zeros_like(sample.frame1),
        modality_mask=_without(sample, Modality.SECOND_FRAME),
    )


def drop_events(sample: Sample) -> Sample:
    """Take the events away, those before t0 too."""
    return sample._replace(
        slices=torch.zeros_like(sample.slices),
        event_sum=torch.zeros_like(sample.event_sum),
        modality_mask=_without(sample, Modality.EVENTS, Modality.HISTORY),
    )


def drop_history(sample: Sample) -> Sample:
    """Take the events before t0 away: slice E_0 is empty."""
    slices = sample.slices.clone()
    slices[0] = 0.0
    return sample._replace(slices=slices, modality_mask=_without(sample, Modality.HISTORY))


def drop_exposure(sample: Sample) -> Sample:
    """Forget the exposures: events between the frame times then all count with weight 1."""
    return sample._replace(
        exposure=torch.zeros_like(sample.exposure),
        # Binning is linear, so the bins of E_1 .. E_K sum to the plain sum over [t0, t1).
        event_sum=sample.slices[1:].sum((0, 1))[None],
    )


def augment(
    sample: Sample,
    rng: np.random.Generator,
    config: AugmentConfig,
    size: tuple[int, int],
) -> Sample:
    """Draw one variation of a sample.

    Args:
        sample: the sample, images of at least `size`.
        rng: where every draw comes from.
        config: probabilities and strengths.
        size: (height, width) of the result in px.

    Returns:
        The varied sample; its tensors are contiguous.

    Raises:
        ValueError: the images are smaller than `size`.
    """
    rows, columns = sample.frame0.shape[-2:]
    # Drawn whether it is used or not, so that later draws do not depend on the image's size.
    swapped = rng.random() < config.transpose
    swapped = swapped and size[1] <= rows and size[0] <= columns
    height, width = size[::-1] if swapped else size
    if height > rows or width > columns:
        raise ValueError(
            f"augment: images of {rows} x {columns} are smaller than the crop of "
            f"{height} x {width}: make the scenes larger or the crop smaller"
        )
    top = int(rng.integers(0, rows - height + 1))
    left = int(rng.integers(0, columns - width + 1))
    result = crop(sample, top, left, height, width)
    if swapped:
        result = transpose(result)
    for mirror in (flip_columns, flip_rows):
        if rng.random() < config.flip:
            result = mirror(result)
    if config.insensitive_sensor > 0 and rng.random() < config.insensitive_sensor:
        result = lower_sensitivity(result, rng)
    result = vary_frames(vary_events(result, rng, config), rng, config)
    if rng.random() < config.event_flicker:
        result = add_flicker(result, rng)
    modality, history, exposure = rng.random(3)
    # Without corruption nothing is drawn, and nothing added.
    if config.corrupt_events + config.corrupt_frames > 0:
        if modality < config.drop_frames + config.drop_events:
            result = with_matching(result)
        else:
            result = corrupt(
                result, rng, events=config.corrupt_events, frames=config.corrupt_frames
            )
    if history < config.drop_history:
        result = drop_history(result)
    if exposure < config.drop_exposure:
        result = drop_exposure(result)
    if modality < config.drop_frames:
        result = drop_frames(result)
    elif modality < config.drop_frames + config.drop_events:
        result = drop_events(result)
    elif config.drop_second_frame > 0 and rng.random() < config.drop_second_frame:
        result = drop_second_frame(result)
    if config.warm_start > 0:
        result = add_warm_start(result, rng, config.warm_start)
    return result.contiguous()


def crop_centre(sample: Sample, size: tuple[int, int]) -> Sample:
    """Cut out the middle without any variation: for validation.

    Args:
        sample: the sample, images of at least `size`.
        size: (height, width) of the result in px.

    Returns:
        The sample; its tensors are contiguous.

    Raises:
        ValueError: the images are smaller than `size`.
    """
    rows, columns = sample.frame0.shape[-2:]
    top, left = (rows - size[0]) // 2, (columns - size[1]) // 2
    return crop(sample, top, left, *size).contiguous()


def _flip(sample: Sample, axis: int, component: int) -> Sample:
    result = sample.map(lambda image: image.flip(axis), IMAGES)
    if result.flow is None:
        return result
    sign = torch.ones(2, 1, 1)
    sign[component] = -1.0
    return result._replace(flow=result.flow * sign)


def _without(sample: Sample, *modalities: Modality) -> Tensor:
    """Return the modality mask without some modalities."""
    mask = sample.modality_mask.clone()
    mask[list(modalities)] = 0.0
    return mask


def _factor(rng: np.random.Generator, amount: float) -> float:
    return float(rng.uniform(1.0 - amount, 1.0 + amount))


def _power(rng: np.random.Generator, amount: float) -> float:
    """A power in [1 / (1 + amount), 1 + amount], as often below 1 as above."""
    return float((1.0 + amount) ** rng.uniform(-1.0, 1.0))
