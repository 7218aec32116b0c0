"""Pictures of flow, events, boundaries and errors. Every picture is uint8 RGB [H, W, 3]."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import IO

import av
import cv2
import numpy as np

from flowfuse.events import Events
from flowfuse.io.atomic import atomic_path
from flowfuse.io.images import as_8_bits

BRIGHTER = (220, 30, 40)  # events of positive polarity: red
DARKER = (20, 90, 235)  # events of negative polarity: blue
EVENT_BOUNDARY = (0, 200, 255)  # B_e: cyan
MOTION_BOUNDARY = (255, 60, 0)  # B_m: orange red
EVENT_COLOURS = "red: brighter, blue: darker"
_VIDEO_CLOCK = 90_000  # ticks per second, as MPEG has them
_INK = (25, 25, 25)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def colour_wheel() -> np.ndarray:
    """The 55 colours of the Middlebury flow wheel, [55, 3] float in [0, 255].

    Source: Baker et al., A Database and Evaluation Methodology for Optical Flow, IJCV 2011.
    """
    # (number of colours, channel held at 255, channel that changes, whether it rises)
    segments = (
        (15, 0, 1, True),
        (6, 1, 0, False),
        (4, 1, 2, True),
        (11, 2, 1, False),
        (13, 2, 0, True),
        (6, 0, 2, False),
    )
    rows = []
    for count, held, changing, rises in segments:
        part = np.zeros((count, 3))
        ramp = np.floor(255 * np.arange(count) / count)
        part[:, held] = 255
        part[:, changing] = ramp if rises else 255 - ramp
        rows.append(part)
    return np.concatenate(rows)


def colour_flow(
    flow: np.ndarray, valid: np.ndarray | None = None, max_magnitude: float | None = None
) -> np.ndarray:
    """Colour flow by the Middlebury wheel: hue = direction, saturation = magnitude.

    Args:
        flow: [2, H, W], px.
        valid: [H, W] bool; invalid pixels, and those not finite, are black.
        max_magnitude: px, the magnitude of full saturation, which larger ones have too. None = the
            largest one here (1 where nothing moves). Give the same value to pictures that are to be
            compared.

    Returns:
        uint8 RGB [H, W, 3]; zero flow is white.
    """
    flow = np.asarray(flow, np.float64)
    if flow.ndim != 3 or flow.shape[0] != 2:
        raise ValueError(f"flow must have shape [2, H, W], got {list(flow.shape)}")
    known = np.isfinite(flow).all(axis=0)
    if valid is not None:
        known &= np.asarray(valid, bool)
    if max_magnitude is None:
        max_magnitude = largest_magnitude(flow, known)
    if not max_magnitude > 0:
        raise ValueError(f"max_magnitude must be positive, got {max_magnitude}")
    u, v = np.where(known, flow, 0) / max_magnitude
    saturation = np.minimum(np.hypot(u, v), 1)[..., None]
    wheel = colour_wheel()
    # The published code stretches the wheel over 54 of its 55 steps and so has a seam at exactly
    # horizontal motion; here it closes, at the cost of a hue that differs by at most one step.
    position = (np.arctan2(-v, -u) / np.pi + 1) / 2 * len(wheel)
    low = np.floor(position).astype(int)
    part = (position - low)[..., None]
    hue = ((1 - part) * wheel[low % len(wheel)] + part * wheel[(low + 1) % len(wheel)]) / 255
    colour = 1 - saturation * (1 - hue)
    return np.where(known[..., None], np.floor(255 * colour), 0).astype(np.uint8)


def largest_magnitude(flow: np.ndarray, valid: np.ndarray | None = None) -> float:
    """The largest magnitude of valid, finite flow [2, H, W], px; 1 where nothing moves."""
    magnitude = np.hypot(*np.asarray(flow, np.float64))
    known = np.isfinite(magnitude) if valid is None else np.isfinite(magnitude) & valid
    largest = float(magnitude[known].max()) if known.any() else 0.0
    return largest if largest > 0 else 1.0


def legend(max_magnitude: float, size: int = 120) -> np.ndarray:
    """The colour wheel of :func:`colour_flow`: the colour at a place is that of motion towards it.

    Below stands the magnitude at the rim; larger ones have the colours of the rim, too.

    Args:
        max_magnitude: px at the rim.
        size: px, width of the picture.

    Returns:
        uint8 RGB [size + two lines of text, size, 3] on white.
    """
    scale = 4  # drawn larger and reduced, for a smooth rim
    axis = (np.arange(size * scale) + 0.5) / (size * scale) * 2 - 1
    u, v = np.meshgrid(axis * 1.06, axis * 1.06)  # a margin of 3 % on each side
    disc = colour_flow(np.stack((u, v)), max_magnitude=1.0)
    disc[np.hypot(u, v) > 1] = 255
    disc = cv2.resize(disc, (size, size), interpolation=cv2.INTER_AREA)
    lines = f"rim: {max_magnitude:.3g} px", "or more"
    height = _text_height(size, lines, share=8)  # of a wheel, which is narrow
    below = np.full((round(height * 2.9), size, 3), 255, np.uint8)
    for number, text in enumerate(lines):
        place = (size // 2, round(height * (1.15 + 1.3 * number)))
        _put_text(below, text, place, height, _INK, centred=True)
    return np.concatenate((disc, below))


def add_legend(image: np.ndarray, max_magnitude: float) -> np.ndarray:
    """Put the wheel of :func:`legend` to the right of a picture, on white."""
    size = int(np.clip(min(image.shape[:2]) * 0.3, 72, 200))
    wheel = legend(max_magnitude, size)
    height = max(image.shape[0], wheel.shape[0] + 8)
    canvas = np.full((height, image.shape[1] + size + 16, 3), 255, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    canvas[height - wheel.shape[0] - 4 : height - 4, -size - 8 : -8] = wheel
    return canvas


def as_rgb(image: np.ndarray) -> np.ndarray:
    """An image as uint8 RGB [H, W, 3].

    Args:
        image: [H, W], [H, W, 1] or [H, W, 3]; uint8, uint16, or floating in [0, 1].
    """
    image = as_8_bits(np.asarray(image))
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,)):
        raise ValueError(
            f"an image must have shape [H, W], [H, W, 1] or [H, W, 3], got {list(image.shape)}"
        )
    if image.dtype.kind == "f":
        image = np.rint(np.clip(np.nan_to_num(image), 0, 1) * 255)
    image = image.astype(np.uint8).reshape(*image.shape[:2], -1)
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def render_events(frame: np.ndarray | None, events: Events) -> np.ndarray:
    """Draw events over a frame: red = brighter, blue = darker, by the majority at each pixel.

    Args:
        frame: as in :func:`as_rgb`, shown gray and with less contrast, so that the events are
            readable on any frame; None = white, for the size that ``events`` states.
        events: more events at a pixel colour it more strongly.
    """
    if frame is None:
        if events.height is None or events.width is None:
            raise ValueError("render_events needs a frame, or events that state the sensor size")
        paper = np.full((events.height, events.width, 3), 255.0)
    else:
        gray = cv2.cvtColor(as_rgb(frame), cv2.COLOR_RGB2GRAY)
        paper = np.repeat(90 + 0.6 * gray[..., None], 3, axis=2)  # never black nor white
    height, width = paper.shape[:2]
    x, y = (np.rint(values).astype(int) for values in (events.x, events.y))
    hit = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    counts = np.zeros((2, height, width))
    np.add.at(counts, (events.p[hit].astype(int), y[hit], x[hit]), 1)
    total = counts.sum(axis=0)
    # One event shows at once; the strength of many saturates at the 95th percentile.
    ceiling = max(1.0, float(np.percentile(total[total > 0], 95))) if total.any() else 1.0
    strength = np.where(total > 0, 0.55 + 0.45 * np.minimum(total / ceiling, 1), 0)[..., None]
    colour = np.where((counts[1] >= counts[0])[..., None], BRIGHTER, DARKER)
    return np.rint((1 - strength) * paper + strength * colour).astype(np.uint8)


def render_boundary(frame: np.ndarray, boundary: np.ndarray) -> np.ndarray:
    """Draw the boundary maps over a frame: B_e cyan, B_m orange red, as strong as they are likely.

    Args:
        frame: as in :func:`as_rgb`, shown gray.
        boundary: [2, H, W] probabilities in [0, 1]: B_e, B_m.
    """
    boundary = np.clip(np.asarray(boundary, np.float64), 0, 1)
    gray = cv2.cvtColor(as_rgb(frame), cv2.COLOR_RGB2GRAY)
    if boundary.shape != (2, *gray.shape):
        raise ValueError(
            f"boundary must have shape {[2, *gray.shape]} as the frame, got {list(boundary.shape)}"
        )
    picture = np.repeat(30 + 0.6 * gray[..., None], 3, axis=2)
    for probability, colour in zip(boundary, (EVENT_BOUNDARY, MOTION_BOUNDARY), strict=True):
        alpha = 0.75 * probability[..., None]
        picture = (1 - alpha) * picture + alpha * np.array(colour)
    return np.rint(picture).astype(np.uint8)


def render_heat(
    values: np.ndarray, valid: np.ndarray | None = None, max_value: float | None = None
) -> np.ndarray:
    """Draw errors or uncertainties as a heat map, black = 0, pale yellow = the maximum or more.

    Args:
        values: [H, W], >= 0.
        valid: [H, W] bool; invalid and not finite pixels are gray.
        max_value: None = :func:`heat_maximum`.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2:
        raise ValueError(f"values must have shape [H, W], got {list(values.shape)}")
    known = np.isfinite(values) if valid is None else np.isfinite(values) & np.asarray(valid, bool)
    if max_value is None:
        max_value = heat_maximum(values, valid)
    heat = _heat(np.where(known, values, 0) / max_value)
    heat[~known] = 128
    return heat


def heat_maximum(values: np.ndarray, valid: np.ndarray | None = None) -> float:
    """The 99th percentile of valid, finite values: single outliers do not darken a heat map."""
    values = np.asarray(values, np.float64)
    known = np.isfinite(values) if valid is None else np.isfinite(values) & np.asarray(valid, bool)
    largest = float(np.percentile(values[known], 99)) if known.any() else 0.0
    return largest if largest > 0 else 1.0


def upscale(image: np.ndarray, width: int = 480) -> np.ndarray:
    """Enlarge a small picture by a whole factor to at least ``width`` px; pixels stay squares."""
    factor = math.ceil(width / image.shape[1])
    return image if factor <= 1 else image.repeat(factor, axis=0).repeat(factor, axis=1)


def add_title(image: np.ndarray, title: str, height: int | None = None) -> np.ndarray:
    """Write a title above a picture, dark on white.

    Args:
        image: as in :func:`as_rgb`.
        title: the text.
        height: of the text, px; None = as the width of the picture allows.
    """
    height = title_height(image.shape[1], title) if height is None else height
    strip = np.full((round(height * 1.7), image.shape[1], 3), 255, np.uint8)
    _put_text(strip, title, (height // 2, round(height * 1.25)), height, _INK)
    return np.concatenate((strip, as_rgb(image)))


def title_height(width: int, title: str) -> int:
    """The height of a title (px) that fits above a picture of this width (px)."""
    return _text_height(width, [title])


def contact_sheet(
    images: Sequence[np.ndarray], labels: Sequence[str] | None = None, columns: int | None = None
) -> np.ndarray:
    """Arrange pictures in a grid on white, row by row, each with its label above.

    Args:
        images: as in :func:`as_rgb`, of any sizes; small ones are enlarged.
        labels: one per picture, or None.
        columns: None = a grid about as wide as high.
    """
    if not len(images):
        raise ValueError("contact_sheet: no images were given")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"contact_sheet: {len(labels)} labels for {len(images)} images")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else min(columns, len(images))
    if columns < 1:
        raise ValueError(f"contact_sheet: columns must be positive, got {columns}")
    widest = max(image.shape[1] for image in images)
    factor = max(1, math.ceil(320 / widest))  # one factor for all: sizes stay comparable
    tiles = [upscale(as_rgb(image), factor * image.shape[1]) for image in images]
    height = max(tile.shape[0] for tile in tiles)
    width = max(tile.shape[1] for tile in tiles)
    text = 0 if labels is None else _text_height(width, labels)
    gap, top = 8, round(1.7 * text)
    rows = math.ceil(len(tiles) / columns)
    cell = (height + top + gap, width + gap)
    sheet = np.full((rows * cell[0] + gap, columns * cell[1] + gap, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        y, x = gap + index // columns * cell[0], gap + index % columns * cell[1]
        sheet[y + top : y + top + tile.shape[0], x : x + tile.shape[1]] = tile
        if labels is not None:
            _put_text(sheet, labels[index], (x + 2, y + round(1.2 * text)), text, _INK)
    return sheet


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write a picture (as in :func:`as_rgb`), atomically; the suffix tells the format."""
    path = Path(path)
    try:
        written, data = cv2.imencode(path.suffix, as_rgb(image)[:, :, ::-1])
    except cv2.error as error:
        raise ValueError(f"{path}: OpenCV writes no images of kind {path.suffix!r}") from error
    if not written:
        raise OSError(f"{path}: OpenCV could not encode the image")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def write_video(
    path: str | os.PathLike, images: Iterable[np.ndarray], times: Sequence[float]
) -> None:
    """Write pictures of one size as an .mp4 of H.264, which browsers and players show, atomically.

    Args:
        path: ends in .mp4.
        images: as in :func:`as_rgb`; only one is held at a time.
        times: seconds of the video, increasing, at which each picture begins; the last one lasts as
            long as the one before it.

    Raises:
        ValueError: without images, when their sizes differ, or when the times are not increasing,
            or not as many.
        OSError: when it cannot be encoded, or not written (a full disk).
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"{path}: videos are written as .mp4")
    ticks = [round((time - times[0]) * _VIDEO_CLOCK) for time in times]
    if any(later <= earlier for earlier, later in pairwise(ticks)):
        raise ValueError(f"{path}: the times of a video must increase by 1/{_VIDEO_CLOCK} s")
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        try:
            _encode(path, file, images, ticks)
        except av.FFmpegError as error:
            raise OSError(
                f"{path}: the video cannot be encoded as H.264 ({error}); the wheels of PyAV (av) "
                "on PyPI can"
            ) from error


def _encode(path: Path, file: IO[bytes], images: Iterable[np.ndarray], ticks: list[int]) -> None:
    """Write pictures into an open file; the place in time of each is in 1/_VIDEO_CLOCK s."""
    size: tuple[int, int] | None = None
    count = 0
    with av.open(file, "w", format="mp4") as container:
        last = ticks[-1] - ticks[-2] if len(ticks) > 1 else _VIDEO_CLOCK
        # The rate is what the last picture lasts; the others have their times.
        rate, options = Fraction(_VIDEO_CLOCK, last), {"crf": "18", "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, _VIDEO_CLOCK)
        for count, image in enumerate(images, 1):
            if count > len(ticks):
                raise ValueError(f"{path}: {len(ticks)} times for more pictures")
            picture = as_rgb(image)
            size = size or picture.shape[1::-1]
            if picture.shape[1::-1] != size:
                raise ValueError(
                    f"{path}: pictures of {size[0]} x {size[1]} and of "
                    f"{picture.shape[1]} x {picture.shape[0]} px in one video"
                )
            # The codec needs even sides; a border of white completes them.
            odd = ((0, size[1] % 2), (0, size[0] % 2), (0, 0))
            picture = np.pad(picture, odd, constant_values=255)
            if count == 1:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = ticks[count - 1], stream.time_base
            container.mux(stream.encode(frame))
        if not count or count != len(ticks):
            found = f"{count} pictures for {len(ticks)} times" if count else "no images"
            raise ValueError(f"{path}: {found} for the video")
        container.mux(stream.encode())


def _heat(values: np.ndarray) -> np.ndarray:
    codes = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
    return cv2.applyColorMap(codes, cv2.COLORMAP_INFERNO)[:, :, ::-1].copy()


def _text_height(width: int, texts: Sequence[str], share: int = 24) -> int:
    """Text height, px: that share of the width within [11, 26], less where texts are too long."""
    wanted = int(np.clip(width / share, 11, 26))
    longest = max(cv2.getTextSize(text, _FONT, 1.0, 1)[0][0] for text in texts)  # px at 30 px
    return max(8, min(wanted, int(30 * 0.94 * width / max(longest, 1))))


def _put_text(
    image: np.ndarray,
    text: str,
    position: tuple[int, int],
    height: int,
    colour: tuple[int, int, int],
    centred: bool = False,
) -> None:
    """Write anti-aliased text into an image; position = left (or centre) end of the base line."""
    scale = height / 30  # Hershey letters with ascenders and descenders are 30 px high at scale 1
    thickness = 1 if height < 22 else 2
    x, y = position
    if centred:
        x -= cv2.getTextSize(text, _FONT, scale, thickness)[0][0] // 2
    cv2.putText(image, text, (x, y), _FONT, scale, colour, thickness, cv2.LINE_AA)
