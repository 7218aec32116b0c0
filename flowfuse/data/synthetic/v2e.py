"""Another event sensor, by the model of v2e, so that results do not rest on one model alone.

Re-created from the description in Hu, Liu and Delbruck, v2e: From Video Frames to Realistic DVS
Events, CVPR Workshops 2021. It takes the same instants as
:class:`flowfuse.data.synthetic.simulator.EventSensor`. The differences:

* Intensity counts in units of 1/255 of diffuse white. Its logarithm is linear below 20 of them.
* Both thresholds have one absolute spread from pixel to pixel, a normal distribution.
* The low-pass is a step of Euler's method; its bandwidth is linear in the intensity.
* Nothing is interpolated: the events of a pixel between two instants are spread evenly over the
  time between these, whatever the signal did.
* Noise: at most one event per pixel and instant, its rate falling linearly with the intensity;
  leak steps that vary from pixel to pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flowfuse.events import Events

WHITE = 255.0  # units of intensity that diffuse white has
LINEAR_BELOW = 20.0  # of these units; its logarithm over it is the slope there
LEAST_LIGHT = (
    20.0  # added to the intensity in the bandwidth, so that darkness is not infinitely slow
)
DARK_TO_BRIGHT = 0.25  # noise of diffuse white over that of darkness
LEAST_THRESHOLD = 0.01
LEAK_SPREAD = 0.1  # relative, of the leak from pixel to pixel


@dataclass(frozen=True)
class V2eConfig:
    """Properties of a sensor by v2e's model.

    Attributes:
        threshold_on, threshold_off: contrast thresholds, in units of log intensity, > 0.
        threshold_spread: standard deviation of both from pixel to pixel, in the same units.
        cutoff_hz: bandwidth of the photoreceptor at diffuse white; None = unlimited.
        shot_noise_hz: noise events per pixel and second in darkness, of both polarities together.
        leak_hz: ON events per pixel and second on a still scene.
        refractory_us: a pixel is blind for so long after an event (noise is exempt).
    """

    threshold_on: float = 0.2
    threshold_off: float = 0.2
    threshold_spread: float = 0.03
    cutoff_hz: float | None = 300.0
    shot_noise_hz: float = 1.0
    leak_hz: float = 0.1
    refractory_us: float = 0.0

    def __post_init__(self) -> None:
        for name in ("threshold_on", "threshold_off"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"V2eConfig: {name} must be positive, got {value}")
        for name in ("threshold_spread", "shot_noise_hz", "leak_hz", "refractory_us"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"V2eConfig: {name} must not be negative, got {value}")
        if self.cutoff_hz is not None and not self.cutoff_hz > 0:
            raise ValueError(f"V2eConfig: cutoff_hz must be positive or None, got {self.cutoff_hz}")

    @property
    def log_offset(self) -> float:
        """What log(intensity + offset) needs to be as steep as this sensor's curve in darkness."""
        return LINEAR_BELOW / math.log(LINEAR_BELOW) / WHITE


class V2eSensor:
    """A sensor by v2e's model at work: feed it intensities in the order of time.

    How the instants are divided among calls changes nothing. The arguments are those of
    :class:`flowfuse.data.synthetic.simulator.EventSensor`.
    """

    def __init__(
        self,
        height: int,
        width: int,
        config: V2eConfig,
        seed: int | np.random.SeedSequence,
        device: torch.device | str = "cpu",
    ) -> None:
        self.height, self.width, self.config = height, width, config
        self._rng = np.random.Generator(np.random.PCG64(seed))
        count = height * width

        def thresholds(nominal: float) -> Tensor:
            drawn = nominal + config.threshold_spread * self._rng.standard_normal(count)
            return _tensor(np.maximum(drawn, LEAST_THRESHOLD), device)

        self._on, self._off = thresholds(config.threshold_on), thresholds(config.threshold_off)
        uneven = np.maximum(1 + LEAK_SPREAD * self._rng.standard_normal(count), 0)
        self._leak = config.leak_hz * 1e-6 * self._on * _tensor(uneven, device)  # per us
        self._phase = _tensor(self._rng.random(count), device)
        self._blind_until = torch.full((count,), -torch.inf, dtype=torch.float64, device=device)
        self._time: int | None = None

    def observe(self, intensity: Tensor, times: np.ndarray) -> Events:
        """Take the next instants.

        Args:
            intensity: [T, H, W] float, linear, >= 0, 1 = diffuse white.
            times: [T] int64 us, strictly increasing, after those seen before.

        Returns:
            The events in (last instant of the previous call, last instant of this call], sorted.
        """
        found = [Events.empty(self.height, self.width)]
        for picture, time in zip(intensity.reshape(len(times), -1), times.tolist(), strict=True):
            log = lin_log(picture)
            if self._time is None:
                self._followed = log
                # Memorised levels lie anywhere within the thresholds, as after a long time.
                self._level = log + self._off - self._phase * (self._on + self._off)
            else:
                found.append(self._step(picture, log, self._time, time))
            self._time = time
        return Events.concatenate(found)

    def _step(self, picture: Tensor, log: Tensor, before: int, now: int) -> Events:
        """The events between two instants."""
        config, step = self.config, now - before
        if config.cutoff_hz is None:
            self._followed = log
        else:
            rate = 2e-6 * math.pi * config.cutoff_hz * step
            share = (rate * relative_bandwidth(picture)).clamp_max(1.0)
            self._followed = torch.lerp(self._followed, log, share)
        self._level = self._level - self._leak * step
        change = self._followed - self._level
        rises = torch.floor(change.clamp_min(0) / self._on).long()
        falls = torch.floor(change.neg().clamp_min(0) / self._off).long()
        self._level = self._level + rises * self._on - falls * self._off
        count = rises + falls
        pixel = count.nonzero()[:, 0]
        count, rising = count[pixel], rises[pixel] > 0
        spacing = step / count.double()
        first = before + spacing
        if config.refractory_us:
            first, spacing, count = self._skip_blind(pixel, first, spacing, count)
        burst = torch.repeat_interleave(count)
        number = torch.arange(burst.numel(), device=burst.device) - (count.cumsum(0) - count)[burst]
        time = first[burst] + spacing[burst] * number
        pixel, rising = pixel[burst], rising[burst]
        if config.shot_noise_hz:
            noise, on = self._draw_noise(picture, step)
            pixel, rising = torch.cat((pixel, noise)), torch.cat((rising, on))
            time = torch.cat((time, torch.full(noise.shape, float(now)).to(time)))
        return self._sorted(pixel, time, rising)

    def _skip_blind(
        self, pixel: Tensor, first: Tensor, spacing: Tensor, count: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keep of each burst (equally spaced) the events that fall in no refractory time."""
        refractory = self.config.refractory_us
        skipped = torch.ceil((self._blind_until[pixel] - first) / spacing).clamp_min(0)
        stride = torch.ceil(refractory / spacing).clamp_min(1)
        kept = torch.floor((count - 1 - skipped) / stride).add(1).clamp_min(0)
        first, spacing = first + skipped * spacing, stride * spacing
        blind = first + (kept - 1) * spacing + refractory
        self._blind_until[pixel] = torch.where(kept > 0, blind, self._blind_until[pixel])
        return first, spacing, kept.long()

    def _draw_noise(self, picture: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Shot noise of one step: pixel and whether it is ON; at most one event per pixel."""
        draws = torch.from_numpy(self._rng.random(picture.numel(), dtype=np.float32))
        draws = draws.to(picture.device)
        fall = (1 - DARK_TO_BRIGHT) * picture.clamp(0, 1)
        share = self.config.shot_noise_hz * 1e-6 * step / 2 * (1 - fall)
        on, off = draws < share, draws > 1 - share
        pixel = (on | off).nonzero()[:, 0]
        return pixel, on[pixel]

    def _sorted(self, pixel: Tensor, time: Tensor, rising: Tensor) -> Events:
        times = np.floor(time.cpu().numpy()).astype(np.int64)
        order = np.argsort(times, kind="stable")
        y, x = np.divmod(pixel.cpu().numpy()[order], self.width)
        return Events(
            x.astype(np.uint16),
            y.astype(np.uint16),
            times[order],
            rising.cpu().numpy()[order].astype(np.uint8),
            height=self.height,
            width=self.width,
        )


def lin_log(intensity: Tensor) -> Tensor:
    """The logarithm of an intensity in units of 1/255, linear below 20 of them."""
    units = WHITE * intensity
    slope = math.log(LINEAR_BELOW) / LINEAR_BELOW
    return torch.where(units < LINEAR_BELOW, slope * units, units.clamp_min(LINEAR_BELOW).log())


def relative_bandwidth(intensity: Tensor) -> Tensor:
    """Bandwidth over that at diffuse white."""
    return (WHITE * intensity + LEAST_LIGHT) / (WHITE + LEAST_LIGHT)


def _tensor(values: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32)).to(device)
