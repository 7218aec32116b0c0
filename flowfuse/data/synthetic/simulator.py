"""The event sensor: linear intensity over time in, events out.

Model of a pixel (after ESIM and v2e): L = log(intensity + offset); a photoreceptor that is slower
in the dark (first-order low-pass) follows L; an ON event is fired whenever it has risen by the
pixel's ON threshold above the level memorised at the last event, an OFF event when it has fallen by
the OFF threshold. Between two given instants the signal is taken to be linear, so that event times
are interpolated. Added: leak (the memorised level sinks), shot noise (stronger in the dark), hot
pixels, a refractory time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowfuse.data.synthetic.v2e import V2eConfig, V2eSensor, relative_bandwidth
from flowfuse.events import Events


@dataclass(frozen=True)
class SensorConfig:
    """Properties of an event sensor. The defaults are a good sensor in daylight.

    Attributes:
        threshold_on, threshold_off: contrast thresholds, in units of log intensity, > 0.
        threshold_spread: relative standard deviation of both thresholds from pixel to pixel.
        log_offset: added to the intensity before the logarithm (dark current), > 0.
        reference_intensity: the intensity at which the two rates below hold.
        cutoff_hz: bandwidth of the photoreceptor, proportional to the intensity within a factor of
            20 to both sides; None = unlimited.
        shot_noise_hz: noise events per pixel and second; up to four times as many in the dark.
        leak_hz: ON events per pixel and second on a still scene.
        hot_pixel_fraction: share of pixels that fire all the time.
        hot_pixel_hz: median rate of those.
        refractory_us: a pixel is blind for so long after an event (noise events are exempt).
        random_reference: memorised levels start anywhere between the two thresholds, as in a sensor
            that has been running; False: at the first intensity.
    """

    threshold_on: float = 0.2
    threshold_off: float = 0.2
    threshold_spread: float = 0.03
    log_offset: float = 1e-3
    reference_intensity: float = 0.2
    cutoff_hz: float | None = 300.0
    shot_noise_hz: float = 0.05
    leak_hz: float = 0.05
    hot_pixel_fraction: float = 1e-4
    hot_pixel_hz: float = 200.0
    refractory_us: float = 0.0
    random_reference: bool = True

    def __post_init__(self) -> None:
        for name in ("threshold_on", "threshold_off", "log_offset", "reference_intensity"):
            _require(getattr(self, name) > 0, f"{name} must be positive", getattr(self, name))
        for name in (
            "threshold_spread",
            "shot_noise_hz",
            "leak_hz",
            "hot_pixel_hz",
            "refractory_us",
        ):
            _require(getattr(self, name) >= 0, f"{name} must not be negative", getattr(self, name))
        _require(
            self.cutoff_hz is None or self.cutoff_hz > 0,
            "cutoff_hz must be positive or None",
            self.cutoff_hz,
        )
        fraction = self.hot_pixel_fraction
        _require(0 <= fraction <= 1, "hot_pixel_fraction must be within [0, 1]", fraction)

    @classmethod
    def noiseless(cls, threshold: float = 0.2, **changes: float | bool | None) -> SensorConfig:
        """An ideal sensor: one threshold, unlimited bandwidth, no noise, no leak, never blind."""
        values: dict[str, Any] = {
            "threshold_on": threshold,
            "threshold_off": threshold,
            "threshold_spread": 0.0,
            "cutoff_hz": None,
            "shot_noise_hz": 0.0,
            "leak_hz": 0.0,
            "hot_pixel_fraction": 0.0,
        }
        return cls(**(values | changes))


class EventSensor:
    """An event sensor at work: feed it intensities in the order of time, it gives the events.

    How the instants are divided among calls changes nothing: the same events come out.

    Args:
        height, width: size of the sensor.
        config: its properties.
        seed: of the pixels' properties and of the noise; the same seed gives the same events.
        device: where the intensities live.
    """

    def __init__(
        self,
        height: int,
        width: int,
        config: SensorConfig,
        seed: int | np.random.SeedSequence,
        device: torch.device | str = "cpu",
    ) -> None:
        self.height, self.width, self.config = height, width, config
        self._rng = np.random.Generator(np.random.PCG64(seed))
        count = height * width
        spread = np.exp(config.threshold_spread * self._rng.standard_normal((2, count)))
        # A threshold near zero would fire without end: three deviations are the most.
        limit = np.exp(3 * config.threshold_spread)
        spread = np.clip(spread, 1 / limit, limit)
        self._on = _tensor(config.threshold_on * spread[0], device)
        self._off = _tensor(config.threshold_off * spread[1], device)
        self._leak = config.leak_hz * 1e-6 * self._on  # log units per us
        self._phase = _tensor(self._rng.random(count), device)
        hot = int(self._rng.binomial(count, config.hot_pixel_fraction))
        self._hot_pixels = self._rng.choice(count, hot, replace=False)
        self._hot_rates = config.hot_pixel_hz * np.exp(self._rng.normal(0, 1, hot)) * 1e-6
        self._hot_on = self._rng.random(hot) < 0.8
        self._blind_until = torch.full((count,), -torch.inf, dtype=torch.float64, device=device)
        self._started_at: int | None = None
        self._time = 0

    def observe(self, intensity: Tensor, times: np.ndarray) -> Events:
        """Take the next instants.

        Args:
            intensity: [T, H, W] float, linear, >= 0.
            times: [T] int64 us, strictly increasing, after those seen before.

        Returns:
            The events in (last instant of the previous call, last instant of this call].
        """
        log = torch.log(intensity.reshape(len(times), -1) + self.config.log_offset)
        first = 0
        if self._started_at is None:
            self._start(log[0], int(times[0]))
            first = 1
        steps = np.diff(np.concatenate(((self._time,), times[first:])))
        gains = self._follow_gains(intensity.reshape(len(times), -1)[first:], steps)
        found: list[tuple[Tensor, ...]] = []
        noise: list[tuple[np.ndarray, ...]] = []
        for i, step in enumerate(steps.tolist()):
            found.append(self._advance(log[first + i], None if gains is None else gains[i], step))
            noise.append(self._draw_noise(log[first + i], step))
            self._time += step
        return self._collect(found, noise)

    def _start(self, log: Tensor, time: int) -> None:
        self._started_at = self._time = time
        self._signal = self._followed = log.clone()
        self._level = log.clone()
        if self.config.random_reference:
            self._level += self._off - self._phase * (self._on + self._off)

    def _follow_gains(self, intensity: Tensor, steps: np.ndarray) -> Tensor | None:
        """How much of the distance to the input the photoreceptor covers in each step, [T, P]."""
        if self.config.cutoff_hz is None or not len(steps):
            return None
        relative = (intensity / self.config.reference_intensity).clamp(1 / 20, 20.0)
        rate = _tensor(-2e-6 * np.pi * self.config.cutoff_hz * steps, intensity.device)[:, None]
        return -torch.expm1(relative.mul_(rate))

    def _advance(self, log: Tensor, gain: Tensor | None, step: int) -> tuple[Tensor, ...]:
        """One step: pixel, count, first time, spacing (us), polarity of the bursts fired in it."""
        self._followed = log if gain is None else torch.lerp(self._followed, log, gain)
        signal = self._followed
        if self.config.leak_hz:
            # A sinking memory is the same as a rising signal.
            assert self._started_at is not None  # observe() sets it
            elapsed = self._time + step - self._started_at
            signal = torch.add(signal, self._leak, alpha=elapsed)
        change = signal - self._level
        pixels = ((change >= self._on) | (change <= -self._off)).nonzero()[:, 0]
        change, level = change[pixels], self._level[pixels]
        rising = change > 0
        threshold = torch.where(rising, self._on[pixels], self._off[pixels])
        signed = torch.where(rising, threshold, -threshold)
        count = torch.floor(change.abs() / threshold)
        self._level[pixels] = level + count * signed
        # The signal crosses level + k signed, k = 1 .. count, on its straight way through the step.
        before = self._signal[pixels]
        slope = (signal[pixels] - before).double() / step
        slope = torch.where(slope == 0, signed.double(), slope)
        first = ((level + signed - before).double() / slope).clamp(0, step)
        spacing = (signed.double() / slope).clamp(0, step)
        self._signal = signal
        first, count = first + self._time, count.long()
        if self.config.refractory_us:
            first, spacing, count = self._skip_blind(pixels, first, spacing, count)
        return pixels, count, first, spacing, rising

    def _skip_blind(
        self, pixels: Tensor, first: Tensor, spacing: Tensor, count: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keep of each burst (equally spaced) the events that fall in no refractory time."""
        refractory = self.config.refractory_us
        gap = spacing.clamp_min(1e-6)
        skipped = torch.ceil((self._blind_until[pixels] - first) / gap).clamp_min(0)
        stride = torch.ceil(refractory / gap).clamp_min(1)
        kept = torch.floor((count - 1 - skipped) / stride).add(1).clamp_min(0)
        first = first + skipped * gap
        last = first + (kept - 1) * stride * gap
        blind = torch.where(kept > 0, last + refractory, self._blind_until[pixels])
        self._blind_until[pixels] = blind
        return first, stride * gap, kept.long()

    def _draw_noise(self, log: Tensor, step: int) -> tuple[np.ndarray, ...]:
        """Shot noise and hot pixels of one step: pixel, time (us), polarity."""
        rng, config, pixel_count = self._rng, self.config, self.height * self.width
        if not config.shot_noise_hz and not self._hot_pixels.size:
            return np.empty(0, np.int64), np.empty(0), np.empty(0, bool)
        number = rng.poisson(4 * config.shot_noise_hz * 1e-6 * step * pixel_count)
        pixels = rng.integers(pixel_count, size=number)
        # Thinning: the full (fourfold) rate in darkness, a quarter of it from the reference up.
        brightness = torch.exp(log[torch.from_numpy(pixels).to(log.device)]).cpu().numpy()
        share = np.clip(1 - 0.75 * brightness / config.reference_intensity, 0.25, 1)
        pixels = pixels[rng.random(number) < share]
        bursts = rng.poisson(self._hot_rates * step)
        all_pixels = np.concatenate((pixels, np.repeat(self._hot_pixels, bursts)))
        rising = np.concatenate((rng.random(pixels.size) < 0.5, np.repeat(self._hot_on, bursts)))
        return all_pixels, self._time + step * rng.random(all_pixels.size), rising

    def _collect(
        self, found: list[tuple[Tensor, ...]], noise: list[tuple[np.ndarray, ...]]
    ) -> Events:
        if not found:
            return Events.empty(self.height, self.width)
        pixel, count, first, spacing, rising = (
            torch.cat(parts) for parts in zip(*found, strict=True)
        )
        burst = torch.repeat_interleave(count)
        number = torch.arange(burst.numel(), device=burst.device) - (count.cumsum(0) - count)[burst]
        time = first[burst] + spacing[burst] * number
        noise_pixel, noise_time, noise_rising = (
            np.concatenate(parts) for parts in zip(*noise, strict=True)
        )
        pixels = np.concatenate((pixel[burst].cpu().numpy(), noise_pixel))
        times = np.floor(np.concatenate((time.cpu().numpy(), noise_time))).astype(np.int64)
        polarity = np.concatenate((rising[burst].cpu().numpy(), noise_rising))
        order = _stable_time_order(times)
        pixels, times = pixels[order], times[order]
        y, x = np.divmod(pixels, self.width)
        return Events(
            x.astype(np.uint16),
            y.astype(np.uint16),
            times,
            polarity[order].astype(np.uint8),
            height=self.height,
            width=self.width,
        )


def like_v2e(sensor: SensorConfig) -> V2eConfig:
    """A sensor by v2e's model, of about the same thresholds, bandwidth and noise.

    The bandwidth is that of ``sensor`` at its reference intensity. The spread of thresholds is the
    paper's 0.03, but at most a quarter of them.
    """
    cutoff = sensor.cutoff_hz
    if cutoff is not None:
        cutoff /= float(relative_bandwidth(torch.tensor(sensor.reference_intensity)))
    return V2eConfig(
        threshold_on=sensor.threshold_on,
        threshold_off=sensor.threshold_off,
        threshold_spread=min(0.03, sensor.threshold_on / 4, sensor.threshold_off / 4),
        cutoff_hz=cutoff,
        shot_noise_hz=4 * sensor.shot_noise_hz,  # that one holds in the light
        leak_hz=sensor.leak_hz,
        refractory_us=sensor.refractory_us,
    )


def make_sensor(
    height: int,
    width: int,
    config: SensorConfig | V2eConfig,
    seed: int | np.random.SeedSequence,
    device: torch.device | str = "cpu",
) -> EventSensor | V2eSensor:
    """Make the sensor that a configuration is of."""
    if isinstance(config, V2eConfig):
        return V2eSensor(height, width, config, seed, device)
    return EventSensor(height, width, config, seed, device)


def simulate_events(
    frames: np.ndarray | Tensor | Iterable[np.ndarray],
    times: Iterable[int],
    config: SensorConfig | V2eConfig | None = None,
    seed: int = 0,
    *,
    device: torch.device | str = "cpu",
) -> Events:
    """Simulate the events that a sensor would have seen watching a video.

    The log intensity is taken to be linear between two frames, so the motion from frame to frame
    should not exceed about a pixel: record or interpolate at a high frame rate.

    Args:
        frames: [F, H, W] or an iterable of F arrays [H, W], floating point, LINEAR intensity >= 0,
            1 = diffuse white (:func:`flowfuse.data.synthetic.camera.srgb_to_linear` decodes 8-bit
            images).
        times: F times, int us, strictly increasing, >= 0.
        config: the sensor, of either model; default :class:`SensorConfig`.
        seed: of pixel properties and noise.
        device: where to compute.

    Returns:
        Events in [times[0], times[-1]], sorted by time.

    Raises:
        ValueError: frames of integer type, of different sizes, negative or not finite; no frame;
            times that do not match the frames or do not increase.
    """
    parts = list(stream_events(frames, times, config, seed, device=device))
    return Events.concatenate(parts)


def stream_events(
    frames: np.ndarray | Tensor | Iterable[np.ndarray],
    times: Iterable[int],
    config: SensorConfig | V2eConfig | None = None,
    seed: int = 0,
    *,
    device: torch.device | str = "cpu",
    chunk: int = 8,
) -> Iterator[Events]:
    """:func:`simulate_events` piece by piece, in constant memory, for videos of any length.

    Args:
        chunk: frames handled at once; it does not change the events.

    Yields:
        Events of consecutive spans of time.
    """
    sensor: EventSensor | V2eSensor | None = None
    last = -1
    pairs = zip(_checked_frames(frames), times, strict=True)
    while block := _next_block(pairs, chunk):
        stack = torch.stack([frame for frame, _ in block])
        instants = np.array([int(t) for _, t in block], dtype=np.int64)
        _require(instants[0] >= 0, "frame times must not be negative", int(instants[0]))
        steps = np.diff(instants, prepend=last)
        _require(bool((steps > 0).all()), "frame times must increase strictly", instants.tolist())
        last = int(instants[-1])
        if sensor is None:
            height, width = stack.shape[1:]
            sensor = make_sensor(height, width, config or SensorConfig(), seed, device)
        yield sensor.observe(stack.to(device), instants)
    if sensor is None:
        raise ValueError("simulate_events: no frame given, expected at least one")


def _next_block(pairs: Iterator[tuple[Tensor, int]], size: int) -> list[tuple[Tensor, int]]:
    try:
        return list(islice(pairs, size))
    except ValueError as error:
        if "zip()" in str(error):
            raise ValueError("simulate_events: frames and times differ in number") from error
        raise


def _checked_frames(frames: Iterable[np.ndarray]) -> Iterator[Tensor]:
    shape: tuple[int, ...] | None = None
    for i, frame in enumerate(frames):
        tensor = torch.as_tensor(frame)
        _require(tensor.dim() == 2, f"frame {i} must have shape [H, W]", tuple(tensor.shape))
        if not tensor.is_floating_point():
            raise ValueError(
                f"simulate_events: frame {i} is {tensor.dtype}, expected floating-point LINEAR"
                " intensity (8-bit images: flowfuse.data.synthetic.camera.srgb_to_linear)"
            )
        bad = not bool(torch.isfinite(tensor).all()) or bool((tensor < 0).any())
        _require(not bad, f"frame {i} must be finite and not negative", "NaN, inf or < 0")
        shape = shape or tuple(tensor.shape)
        found = tuple(tensor.shape)
        _require(found == shape, f"frame {i} must be {shape} as frame 0", found)
        yield tensor.float()


def _stable_time_order(times: np.ndarray) -> np.ndarray:
    """Stable order of times: a short span fits in 16 bits, which numpy sorts ten times faster."""
    if times.size and int(times.max() - times.min()) < 2**16:
        times = (times - times.min()).astype(np.uint16)
    return np.argsort(times, kind="stable")


def _tensor(values: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32)).to(device)


def _require(condition: bool, expected: str, found: object) -> None:
    if not condition:
        raise ValueError(f"event simulation: {expected}, got {found}")
