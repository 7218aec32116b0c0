"""Generated scenes: frames, events and exact ground truth at any time, from a seed.

A scene is a list of textured planes under homographies (see
:mod:`flowfuse.data.synthetic.layers`); a frame camera and an event sensor watch it. Truth comes
from the homographies alone: a pixel x of the topmost plane l at time t is at H_l(t') H_l(t)^-1 x at
time t'.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flowfuse.data.synthetic.camera import expose
from flowfuse.data.synthetic.layers import Plane, carry_points, is_covered, label_planes, render
from flowfuse.data.synthetic.layout import Layout, compose
from flowfuse.data.synthetic.presets import (
    PRESETS,
    SPLITS,
    SceneConfig,
    Split,
    draw_camera,
    draw_exposures,
    draw_gains,
    draw_readout,
    draw_sensor,
    find_preset,
)
from flowfuse.data.synthetic.rendering import (
    Clock,
    EventView,
    capture,
    draw_flicker,
    draw_view,
    plan_instants,
)
from flowfuse.data.synthetic.sensor_readout import ReadoutConfig, read_out
from flowfuse.data.synthetic.simulator import SensorConfig, like_v2e, make_sensor
from flowfuse.data.synthetic.textures import images_of_split
from flowfuse.data.synthetic.v2e import V2eConfig
from flowfuse.events import Events
from flowfuse.geometry.grid import inside, pixel_grid

__all__ = ["PRESETS", "Scene", "SceneConfig", "generate_scene"]


@dataclass(frozen=True, eq=False)
class Scene:
    """A generated scene with its recording and its ground truth.

    Attributes:
        height, width: image size, px.
        events: from half an interval before the first frame until the end of the last exposure.
        frame_times: [F] int64 us, mid-exposure.
        frames: [F, H, W] uint8, sRGB-encoded.
        exposures: [F] int64, durations in us.
        planes: painter's order.
        sensor: the event sensor that watched.
        view: what it saw otherwise than the frame camera; the ground truth is the frame camera's.
        readout: how its events were read out.
    """

    height: int
    width: int
    events: Events
    frame_times: np.ndarray
    frames: np.ndarray
    exposures: np.ndarray
    planes: list[Plane]
    sensor: SensorConfig | V2eConfig
    view: EventView = field(default_factory=EventView)
    readout: ReadoutConfig = field(default_factory=ReadoutConfig)

    @property
    def t0(self) -> int:
        """Time of frame 0, us."""
        return int(self.frame_times[0])

    @property
    def t1(self) -> int:
        """Time of frame 1, us."""
        return int(self.frame_times[1])

    @property
    def threshold(self) -> float:
        """Nominal contrast threshold of the event sensor, in units of log intensity."""
        return 0.5 * (self.sensor.threshold_on + self.sensor.threshold_off)

    def tau_of(self, time: float) -> float:
        """Time in us as tau: 0 at frame 0, 1 at frame 1."""
        return (time - self.t0) / (self.t1 - self.t0)

    def ground_truth(self, tau: float, *, start: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Motion of every pixel from ``start`` to ``tau``.

        Returns:
            flow: [2, H, W] float32, px, at the pixel's position at ``start``.
            valid: [H, W] bool, False where the surface gets behind the camera (its flow is 0 then);
                True also where it is occluded.
            occluded: [H, W] bool, True where the surface is covered by another or out of the image
                at ``tau``.
        """
        labels = self._labels if start == 0 else self._label_at(start)
        grid = pixel_grid(self.height, self.width, device=labels.device, dtype=torch.float64)
        places, in_front = carry_points(self.planes, labels, grid, start, tau)
        flow = torch.where(in_front, places - grid, 0.0)
        seen = inside(places[None], self.height, self.width)[0, 0] & in_front
        occluded = ~seen | is_covered(self.planes, labels, grid + flow, tau)
        return flow.float().cpu(), in_front.cpu(), occluded.cpu()

    def flow(self, t0: int, t1: int) -> Tensor:
        """Flow from time ``t0`` to ``t1`` (us): [2, H, W] float32, px."""
        return self.ground_truth(self.tau_of(t1), start=self.tau_of(t0))[0]

    def flow_at(self, tau: float) -> Tensor:
        """Displacement from frame 0 to ``tau``: [2, H, W] float32, px."""
        return self.ground_truth(tau)[0]

    def occluded(self, tau: float) -> Tensor:
        """What is covered or out of the image at ``tau``: [H, W] bool, at positions of frame 0."""
        return self.ground_truth(tau)[2]

    def boundary(self) -> Tensor:
        """Boundary maps at frame 0: [2, H, W] float32, 0 or 1.

        B_e, an informative moving edge: the pixel is more likely than not to fire an event because
        of the motion. As memorised levels lie anywhere within a threshold C, an ideal sensor fires
        with probability |grad L . u| / C, so this is |grad L . u| > C / 2, with u the motion in a
        window around t0: 2 px, or a quarter of the interval where that is less. L is sharp.

        B_m, a motion discontinuity: pixels within 1.5 px of a border between two planes across
        which the flow to frame 1 differs by more than 1 px and more than a tenth of the larger.
        """
        return torch.stack((self._moving_edges(), self._motion_borders())).float().cpu()

    @cached_property
    def _labels(self) -> Tensor:
        return self._label_at(0.0)

    def _label_at(self, tau: float) -> Tensor:
        return label_planes(self.planes, tau, self.height, self.width)

    def _moving_edges(self) -> Tensor:
        speed, rate = log_change_rate(self.planes, self._labels, self.sensor.log_offset)
        window = torch.minimum(torch.full_like(speed, 0.25), 2 / speed.clamp_min(1e-6))
        return rate * window > 0.5 * self.threshold

    def _motion_borders(self) -> Tensor:
        flow = self.ground_truth(1.0)[0].to(self._labels.device)
        border = torch.zeros_like(self._labels, dtype=torch.bool)
        for axis in (0, 1):
            size = self._labels.shape[axis] - 1
            first, second = (flow.narrow(axis + 1, i, size) for i in (0, 1))
            larger = torch.maximum(torch.hypot(*first), torch.hypot(*second))
            differ = torch.hypot(*(first - second)) > torch.clamp(0.1 * larger, min=1.0)
            a, b = (self._labels.narrow(axis, i, size) for i in (0, 1))
            parted = differ & (a != b)
            border.narrow(axis, 0, size).logical_or_(parted)
            border.narrow(axis, 1, size).logical_or_(parted)
        # The pixels on both sides are half a pixel from the border, their neighbours within 1.5.
        return F.max_pool2d(border[None].float(), 3, stride=1, padding=1)[0] > 0


def generate_scene(  # noqa: PLR0913 - the settings that make a scene
    seed: int,
    preset: str | SceneConfig,
    height: int,
    width: int,
    *,
    frames: int = 2,
    textures: Path | None = None,
    device: torch.device | str = "cpu",
    max_step: float = 1.0,
    split: Split = "train",
) -> Scene:
    """Generate a scene.

    Args:
        seed: >= 0; the same seed and arguments give the same bytes on a device.
        preset: a name in :data:`PRESETS`, or one's own configuration.
        height, width: image size, px, at least 16.
        frames: number of frames, at least 2.
        textures: a folder of images to take textures from, beside the procedural ones.
        device: where to render and simulate.
        max_step: largest motion between two instants that are rendered, px; 0.5 for test sets.
        split: "test" draws textures and motion from families that "train" never uses. Of a texture
            folder, every fifth image in the order of names is for "test", the others for "train".

    Raises:
        ValueError, FileNotFoundError: an argument that makes no sense, named.
    """
    config = find_preset(preset)
    _check_arguments(seed, height, width, frames, max_step, split)
    streams = np.random.SeedSequence(seed).spawn(5)
    composing, choosing, exposing, linking = (
        np.random.Generator(np.random.PCG64(streams[i])) for i in (0, 1, 2, 4)
    )
    sensor = draw_sensor(choosing, config)
    interval = round(1000 * choosing.uniform(*config.interval_ms))
    uneven = config.uneven and choosing.random() < 0.5
    exposures = draw_exposures(choosing, config, interval, frames, uneven=uneven)
    layout = Layout(
        height=height,
        width=width,
        displacement=config.displacement,
        displacement_cap=config.displacement_cap,
        objects=config.objects,
        world_share=config.world_share,
        driving=config.driving,
        braking=config.uneven and not uneven,
        extremes=config.extremes,
        faint=0.7 * min(sensor.threshold_on, sensor.threshold_off),
        middle=(frames - 1) / 2,
        split=split,
        images=images_of_split(Path(textures), split) if textures else (),
        device=device,
        thin_share=config.thin_share,
        swarm_share=config.swarm_share,
        still_share=config.still_share,
    )
    planes = compose(composing, layout)
    view, readout = draw_view(linking, config, split), draw_readout(linking, config)
    clock = Clock((interval + 1) // 2, interval, exposures, view.delay_us)
    sensor = _limit_rate(sensor, config.event_budget, planes, clock, height, width)
    watching = like_v2e(sensor) if config.sensor == "v2e" else sensor
    flicker = draw_flicker(choosing, config.flicker_share)
    instants = plan_instants(planes, height, width, clock, max_step, flicker)
    watcher = make_sensor(height, width, watching, streams[3], device)
    events, signals = capture(planes, instants, clock, flicker, watcher, view)
    events = read_out(events, readout, linking, start=clock.start, end=clock.end)
    gains = draw_gains(exposing, config, signals, exposures)
    camera = draw_camera(exposing, config)
    pictures = expose(signals * gains[:, None, None].astype(np.float32), camera, exposing)
    return Scene(
        height=height,
        width=width,
        events=events,
        frame_times=clock.frame_times,
        frames=pictures,
        exposures=exposures,
        planes=planes,
        sensor=watching,
        view=view,
        readout=readout,
    )


def _check_arguments(
    seed: int, height: int, width: int, frames: int, max_step: float, split: str
) -> None:
    least = {"seed": (seed, 0), "height": (height, 16), "width": (width, 16), "frames": (frames, 2)}
    for name, (value, bound) in least.items():
        if value < bound:
            raise ValueError(f"generate_scene: {name} must be at least {bound}, got {value}")
    if not max_step > 0:
        raise ValueError(f"generate_scene: max_step must be positive, got {max_step}")
    if split not in SPLITS:
        raise ValueError(f"generate_scene: split must be one of {', '.join(SPLITS)}, got {split!r}")


def _limit_rate(
    sensor: SensorConfig, budget: float, planes: list[Plane], clock: Clock, height: int, width: int
) -> SensorConfig:
    """Raise both thresholds until ``budget`` events per pixel are expected at the most."""
    labels = label_planes(planes, 0.0, height, width)
    change = log_change_rate(planes, labels, sensor.log_offset)[1].mean().item()
    span = (clock.end - clock.start) / clock.interval
    mean = 0.5 * (sensor.threshold_on + sensor.threshold_off)
    factor = max(1.0, change * span / budget / mean)
    return replace(
        sensor,
        threshold_on=sensor.threshold_on * factor,
        threshold_off=sensor.threshold_off * factor,
    )


def log_change_rate(
    planes: list[Plane], labels: Tensor, log_offset: float
) -> tuple[Tensor, Tensor]:
    """How fast surfaces move and log intensity changes at frame 0.

    Returns:
        |v| and |grad L . v|, both [H, W], per unit of tau.
    """
    height, width = labels.shape
    log = torch.log(render(planes, np.zeros(1), height, width) + log_offset)[None]
    padded = F.pad(log, (1, 1, 1, 1), mode="replicate")[0, 0]
    gradient_x = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
    gradient_y = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
    grid = pixel_grid(height, width, device=labels.device, dtype=torch.float64)
    step = 1e-3
    velocity = (carry_points(planes, labels, grid, 0.0, step)[0] - grid).float() / step
    return torch.hypot(*velocity), (gradient_x * velocity[0] + gradient_y * velocity[1]).abs()
