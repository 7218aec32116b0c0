"""Presets of generated scenes, and what is drawn from them for one scene."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import numpy as np
from numpy.random import Generator

from flowfuse.data.synthetic.camera import CameraConfig
from flowfuse.data.synthetic.sensor_readout import ReadoutConfig
from flowfuse.data.synthetic.simulator import SensorConfig

Range = tuple[float, float]
# What a scene is for. The two have no family of textures and no family of motion in common, so that
# a test set tells more than how well the generator was learned by heart.
Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
# Which model of an event sensor watches: simulator.py's, or v2e.py's.
SensorModel = Literal["default", "v2e"]
SENSORS: tuple[SensorModel, ...] = get_args(SensorModel)


@dataclass(frozen=True)
class SceneConfig:
    """What scenes of one kind have in common. Ranges are drawn from per scene, (least, largest).

    Attributes:
        displacement: path length of motion in one frame interval, px, log-uniform.
        displacement_cap: longer paths are not drawn, px; None: 0.3 of the image width, in 15 % of
            cases 0.5, so that small images keep something in view.
        interval_ms: time between frames.
        exposure: exposure time as a fraction of the interval.
        objects: number of objects.
        thin_share: probability that an object is thin or branching, a part of them jointed.
        swarm_share: probability of a crowd of small fast objects.
        still_share: probability that the camera stands still, or nearly so.
        world_share: probability of a 3-D world seen by a moving camera, else layers.
        driving: a 3-D world is seen from a car: forward with yaw, almost nothing else; some of the
            boxes drive as well, and no objects hang in front.
        contrast: event threshold, log-uniform with the weight in the middle.
        cutoff_hz: photoreceptor bandwidth at the reference intensity, log-uniform.
        shot_noise_hz, leak_hz, refractory_us: see
            :class:`~flowfuse.data.synthetic.simulator.SensorConfig`.
        read_noise, full_well: see :class:`~flowfuse.data.synthetic.camera.CameraConfig`,
            log-uniform.
        black: the same, uniform.
        exposure_percentile, exposure_level: the frame camera's gain puts this percentile of frame 0
            at this level of its full scale.
        flicker_share: probability of lamps that flicker at 100 or 120 Hz.
        misaligned_share, test_misaligned_share: probability that the event camera's view differs
            from the frame camera's, in scenes for training and for tests.
        view_shift, view_delay_ms: where it does, it is shifted by so many px in any direction and
            late or early by so much; mostly by less than half of the range.
        view_blur: the standard deviation of the event camera's point-spread then, px.
        readout_share: probability that events are read out with the imperfections below.
        jitter_us: see :class:`~flowfuse.data.synthetic.sensor_readout.ReadoutConfig`, uniform.
        rate_cap_hz, batch_us: the same, log-uniform.
        uneven: between two frames the velocity changes by at least half of the larger one, or
            exposures differ at least twofold.
        extremes: a part of the image is clipped in the frames, another part has no events but those
            of object outlines and noise.
        sensor: which model of an event sensor watches, one of SENSORS. Everything else in a scene
            is the same with either.
        event_budget: thresholds are raised until a pixel fires about so often at the most, as an
            operator (or a sensor's rate control) would.
    """

    displacement: Range
    displacement_cap: float | None = None
    interval_ms: Range = (20.0, 100.0)
    exposure: Range = (0.03, 0.3)
    objects: tuple[int, int] = (2, 6)
    thin_share: float = 0.0
    swarm_share: float = 0.0
    still_share: float = 0.0
    world_share: float = 0.4
    driving: bool = False
    contrast: Range = (0.05, 0.8)
    cutoff_hz: Range = (150.0, 3000.0)
    shot_noise_hz: Range = (0.02, 0.5)
    leak_hz: Range = (0.0, 0.2)
    refractory_us: Range = (0.0, 500.0)
    read_noise: Range = (0.001, 0.01)
    full_well: Range = (2000.0, 20000.0)
    black: Range = (0.0, 0.003)
    exposure_percentile: Range = (88.0, 99.5)
    exposure_level: Range = (0.3, 0.95)
    flicker_share: float = 0.03
    misaligned_share: float = 0.2
    test_misaligned_share: float = 0.0
    view_shift: Range = (0.0, 3.0)
    view_delay_ms: Range = (0.0, 3.0)
    view_blur: Range = (0.0, 0.8)
    readout_share: float = 0.3
    jitter_us: Range = (0.0, 100.0)
    rate_cap_hz: Range = (50.0, 500.0)
    batch_us: Range = (10.0, 500.0)
    uneven: bool = False
    extremes: bool = False
    sensor: SensorModel = "default"
    event_budget: float = 12.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, tuple) and not 0 <= value[0] <= value[1]:
                raise ValueError(f"SceneConfig: {name} must be (least, largest) >= 0, got {value}")
            if name.endswith("_share") and not 0 <= value <= 1:
                raise ValueError(f"SceneConfig: {name} must be within [0, 1], got {value}")
        if self.displacement_cap is not None and not self.displacement_cap > 0:
            raise ValueError(
                "SceneConfig: displacement_cap must be positive or None,"
                f" got {self.displacement_cap}"
            )
        if self.sensor not in SENSORS:
            raise ValueError(
                f"SceneConfig: sensor must be one of {', '.join(SENSORS)}, got {self.sensor!r}"
            )
        if not 0 < self.exposure[0] <= self.exposure[1] <= 0.95:
            raise ValueError(
                f"SceneConfig: exposure must lie within (0, 0.95] intervals, got {self.exposure}"
            )


PRESETS: dict[str, SceneConfig] = {
    "slow": SceneConfig((0.5, 8.0)),
    "fast": SceneConfig((8.0, 60.0), exposure=(0.03, 0.6)),
    # Images of 192 x 256 px and more: a path of 120 px leaves a smaller one.
    "extreme": SceneConfig((20.0, 120.0), displacement_cap=120.0, exposure=(0.03, 0.5)),
    "driving": SceneConfig(
        (1.0, 45.0),
        interval_ms=(50.0, 100.0),
        exposure=(0.05, 0.4),
        objects=(3, 8),
        world_share=1.0,
        driving=True,
    ),
    "blur": SceneConfig((8.0, 50.0), exposure=(0.5, 0.95), uneven=True),
    "dark": SceneConfig(
        (2.0, 40.0),
        exposure=(0.4, 0.95),
        cutoff_hz=(15.0, 120.0),
        shot_noise_hz=(0.5, 5.0),
        read_noise=(0.008, 0.03),
        full_well=(150.0, 1500.0),
        exposure_percentile=(90.0, 99.0),
        exposure_level=(0.08, 0.5),
        flicker_share=0.15,
    ),
    "mixed": SceneConfig(
        (4.0, 50.0),
        exposure=(0.05, 0.8),
        contrast=(0.12, 0.6),
        black=(0.02, 0.04),
        exposure_percentile=(55.0, 60.0),
        exposure_level=(0.3, 0.6),
        extremes=True,
    ),
    # Sensitive sensors under lamps: events of every pixel, which tell of no motion.
    "flicker": SceneConfig(
        (2.0, 40.0), exposure=(0.05, 0.5), contrast=(0.03, 0.15), flicker_share=1.0
    ),
    # What flow with soft borders loses: thin, pierced and small things; also before a still ground.
    "thin": SceneConfig(
        (4.0, 50.0),
        exposure=(0.03, 0.4),
        objects=(3, 6),
        world_share=0.2,
        thin_share=0.8,
        swarm_share=0.35,
        still_share=0.5,
    ),
}


def find_preset(preset: str | SceneConfig) -> SceneConfig:
    """Look a preset up by name; a configuration passes through.

    Args:
        preset: e.g. "fast", or "fast@v2e": the same scenes, watched by another sensor.

    Raises:
        ValueError: naming the presets and sensors there are.
    """
    if isinstance(preset, SceneConfig):
        return preset
    name, at, sensor = preset.partition("@")
    if name not in PRESETS:
        raise ValueError(f"no scene preset {name!r}, expected one of {', '.join(PRESETS)}")
    if not at:
        return PRESETS[name]
    if sensor not in SENSORS:
        raise ValueError(
            f"scene preset {preset!r}: no sensor {sensor!r}, expected one of {', '.join(SENSORS)}"
        )
    return replace(PRESETS[name], sensor=cast(SensorModel, sensor))


def draw_sensor(rng: Generator, config: SceneConfig) -> SensorConfig:
    """Draw the event sensor of one scene."""
    low, high = np.log(config.contrast)
    threshold = float(np.exp(low + (high - low) * rng.random(2).mean()))  # weight in the middle
    asymmetry = float(np.exp(rng.uniform(np.log(0.7), np.log(1.4)) / 2))
    return SensorConfig(
        threshold_on=threshold * asymmetry,
        threshold_off=threshold / asymmetry,
        threshold_spread=float(rng.uniform(0.01, 0.06)),
        log_offset=float(np.exp(rng.uniform(np.log(5e-4), np.log(5e-3)))),
        cutoff_hz=log_uniform(rng, config.cutoff_hz),
        shot_noise_hz=log_uniform(rng, config.shot_noise_hz),
        leak_hz=float(rng.uniform(*config.leak_hz)),
        hot_pixel_fraction=float(rng.choice((0.0, 1e-4, 5e-4))),
        hot_pixel_hz=float(rng.uniform(50, 500)),
        refractory_us=float(rng.uniform(*config.refractory_us)),
    )


def draw_readout(rng: Generator, config: SceneConfig) -> ReadoutConfig:
    """Draw how the events of one scene are read out; most readouts are perfect."""
    drawn = ReadoutConfig(
        jitter_us=round(rng.uniform(*config.jitter_us)),
        rate_cap_hz=log_uniform(rng, config.rate_cap_hz),
        batch_us=max(round(log_uniform(rng, config.batch_us)), 1),
    )
    return drawn if rng.random() < config.readout_share else ReadoutConfig()


def draw_exposures(
    rng: Generator, config: SceneConfig, interval: int, frames: int, *, uneven: bool
) -> np.ndarray:
    """Draw exposure times, [F] int64 us: equal, or twofold and more apart from frame to frame."""
    low, high = config.exposure
    if not uneven:
        return np.full(frames, max(round(interval * rng.uniform(low, high)), 1), dtype=np.int64)
    long = rng.uniform(max(low, 0.6), high)
    short = long / rng.uniform(2.05, 5.0)
    fractions = np.where((np.arange(frames) + rng.integers(2)) % 2 == 0, long, short)
    return np.maximum(np.rint(interval * fractions), 1).astype(np.int64)


def draw_camera(rng: Generator, config: SceneConfig) -> CameraConfig:
    """Draw the noise of the frame camera."""
    return CameraConfig(
        read_noise=log_uniform(rng, config.read_noise),
        full_well=log_uniform(rng, config.full_well),
        black=float(rng.uniform(*config.black)),
    )


def draw_gains(
    rng: Generator, config: SceneConfig, signals: np.ndarray, exposures: np.ndarray
) -> np.ndarray:
    """Draw the gain of every frame, [F]: linear signal per mean radiance, 1 = full scale.

    Args:
        signals: [F, H, W] mean radiance over each exposure.
        exposures: [F] us.
    """
    percentile = np.percentile(signals[0], rng.uniform(*config.exposure_percentile))
    gain = rng.uniform(*config.exposure_level) / max(float(percentile), 1e-6)
    # Longer exposures are brighter by as much as the camera's gain does not make up for.
    uncompensated = rng.choice((0.0, rng.uniform(0, 0.6)))
    gains = gain * (exposures / exposures[0]) ** uncompensated
    if rng.random() < 0.4:  # auto exposure at work
        gains = gains * np.exp(rng.normal(0, 0.12, len(exposures)))
    return gains


def log_uniform(rng: Generator, bounds: Range) -> float:
    return float(np.exp(rng.uniform(*np.log(bounds))))
