"""The frame camera: exposure in linear light, noise, clipping, sRGB gamma, 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator


@dataclass(frozen=True)
class CameraConfig:
    """Noise of a frame camera, in units of its full scale.

    Attributes:
        read_noise: standard deviation that is always there.
        full_well: electrons at full scale; shot noise has the variance signal / full_well.
        black: level that is taken off: what is darker is lost.
    """

    read_noise: float = 0.003
    full_well: float = 8000.0
    black: float = 0.0


def exposure_weights(times: np.ndarray, start: float, end: float) -> np.ndarray:
    """Weights that turn samples of a piecewise linear signal into its mean over an exposure.

    Args:
        times: [T] strictly increasing.
        start, end: the exposure, within [times[0], times[-1]], end > start.

    Returns:
        [T] weights >= 0 that sum to 1.
    """
    left, right = times[:-1], times[1:]
    a, b = np.clip(start, left, right), np.clip(end, left, right)
    span = right - left
    # The integral of the two hat functions of a step over its part [a, b] inside the exposure.
    middle = (a + b) / 2
    weights = np.zeros(len(times))
    weights[:-1] += (b - a) * (right - middle) / span
    weights[1:] += (b - a) * (middle - left) / span
    return weights / (end - start)


def expose(signal: np.ndarray, config: CameraConfig, rng: Generator) -> np.ndarray:
    """Turn mean linear signals into 8-bit frames.

    Args:
        signal: [F, H, W] linear, 1 = full scale.

    Returns:
        [F, H, W] uint8, sRGB-encoded.
    """
    variance = config.read_noise**2 + np.maximum(signal, 0) / config.full_well
    noise = rng.standard_normal(signal.shape, dtype=np.float32)
    noisy = np.clip(signal - config.black + np.sqrt(variance) * noise, 0, 1)
    return np.rint(255 * linear_to_srgb(noisy)).astype(np.uint8)


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Encode linear values in [0, 1] with the sRGB curve, to [0, 1]."""
    return np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055
    )


def srgb_to_linear(image: np.ndarray) -> np.ndarray:
    """Decode sRGB values to linear intensity.

    Args:
        image: uint8, uint16, or floating point in [0, 1].

    Returns:
        float32 in [0, 1], the same shape.
    """
    encoded = np.asarray(image, np.float32)
    if image.dtype.kind == "u":
        encoded = encoded / np.float32(np.iinfo(image.dtype).max)
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return linear.astype(np.float32)
