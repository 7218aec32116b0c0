"""How far the scene is, seen by the event camera: with it frames are aligned beyond infinity.

Depth is along the optical axis of the event camera, in metres, at the pixels of its undistorted
view. It is stated as one of

* a number, such as 3.5: everything is that far;
* ``plane:NX,NY,NZ,D``: points X with N . X = D metres, in the coordinates of the event camera (x
  right, y down, z forward);
* a ``.npy`` file, [H, W] or one map per frame, [F, H, W], metres;
* a directory of one map per frame, in the order of their names: ``.npy`` in metres, or 16-bit
  images in millimetres.

Where a depth is not positive or not finite, it is unknown and counts as infinite.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flowfuse.data.formats.frames import IMAGE_SUFFIXES, decode_image

_SUFFIXES = (".npy", *IMAGE_SUFFIXES)


class Depth:
    """Depth of the scene.

    Args:
        rays: [H, W, 2]: directions of the pixels of the event view at depth 1.
        text: see the top of this module.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming what was found and what was expected.
    """

    def __init__(self, rays: np.ndarray, text: str) -> None:
        self._shape = rays.shape[:2]
        self._files: list[Path] = []
        self._maps: np.ndarray | None = None
        self._name = text
        number = _number(text)
        if number is not None:
            if not 0 < number < np.inf:
                raise ValueError(f"depth must be more than 0 m, got {text}")
            self._maps = np.full(self._shape, number)
        elif text.startswith("plane:"):
            self._maps = _plane(rays, text)
        elif Path(text).is_dir():
            files = (p for p in Path(text).iterdir() if p.suffix.lower() in _SUFFIXES)
            self._files = sorted(path for path in files if not path.name.startswith("."))
            if not self._files:
                raise ValueError(f"{text}: no depth maps ({', '.join(_SUFFIXES)}) in this folder")
        elif Path(text).is_file():
            self._maps = self._load(Path(text))
        else:
            raise FileNotFoundError(
                f"depth {text!r}: expected metres, plane:NX,NY,NZ,D, or a file or folder of maps"
            )

    @property
    def is_constant(self) -> bool:
        """Whether all frames have one map."""
        return self._maps is not None and self._maps.ndim == 2

    def check_count(self, frames: int) -> None:
        """Refuse another number of maps than of frames."""
        count = len(self._files) if self._maps is None else len(self._maps)
        if not self.is_constant and count != frames:
            raise ValueError(f"{self._name}: {count} depth maps for {frames} frames")

    def at(self, index: int) -> np.ndarray:
        """[H, W] float64, m, of frame ``index``."""
        if self._maps is None:
            return self._load(self._files[index])
        return self._maps if self._maps.ndim == 2 else np.asarray(self._maps[index], np.float64)

    def _load(self, path: Path) -> np.ndarray:
        if path.suffix.lower() == ".npy":
            try:
                depth = np.load(path, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise ValueError(f"{path}: not a readable .npy ({error})") from error
        else:
            image = decode_image(str(path), path.read_bytes())
            if image.dtype != np.uint16:
                raise ValueError(f"{path}: 16 bits in millimetres expected, found {image.dtype}")
            depth = image / 1000
        whole = depth.dtype.kind in "fiu" and depth.shape[-2:] == self._shape
        if not whole or depth.ndim not in ((2,) if self._files else (2, 3)):
            height, width = self._shape
            raise ValueError(
                f"{path}: depth must be numbers of shape [{height}, {width}]"
                f"{'' if self._files else f' or [F, {height}, {width}]'}, got {depth.dtype} of "
                f"{list(depth.shape)}"
            )
        return depth if depth.ndim == 3 else np.asarray(depth, np.float64)


def _number(text: str) -> float | None:
    try:
        return float(text.removesuffix("m"))
    except ValueError:
        return None


def _plane(rays: np.ndarray, text: str) -> np.ndarray:
    try:
        *normal, distance = (float(part) for part in text.removeprefix("plane:").split(","))
        if len(normal) != 3 or not np.isfinite((*normal, distance)).all() or not any(normal):
            raise ValueError
    except ValueError:
        raise ValueError(f"depth {text!r}: expected plane:NX,NY,NZ,D, four numbers") from None
    along = rays @ np.array(normal[:2]) + normal[2]
    with np.errstate(divide="ignore"):
        return distance / along
