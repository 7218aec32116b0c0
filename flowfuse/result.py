"""What the estimator gives: trajectories of all pixels, and everything that follows from them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowfuse.events import Events
from flowfuse.geometry.bezier import bernstein, bezier, bezier_velocity
from flowfuse.geometry.grid import inside, sample
from flowfuse.geometry.laplace import expected_error
from flowfuse.io.atomic import atomic_path
from flowfuse.io.paths import as_path

# numpy arrays, or torch tensors where the input was torch: a caller knows which.
Array = Any

# Fixed-point steps that trace a trajectory back to its start. Each shrinks the error by the spatial
# gradient of the displacement (about 0.1 inside objects), so six reach 1e-6 of the motion there.
TRACE_STEPS = 6

# The arrays of a result file, each with its axes; "n" is the number of control points.
_STORED = {
    "control_points": ("n", 2, "H", "W"),
    "uncertainty_parameters": (2, "H", "W"),
    "boundary_logits": (2, "H", "W"),
}


class Result:
    """Trajectories of all pixels of t0, and what follows from them.

    tau = (t - t0) / (t1 - t0) in [0, 1]. Arrays are numpy or torch, as the input was.

    Attributes:
        t0, t1: time interval in microseconds.
        height, width: image size in px.
    """

    def __init__(
        self,
        control_points: Tensor,
        uncertainty: Tensor,
        boundary: Tensor,
        *,
        t0: int,
        t1: int,
        modalities: tuple[str, ...] | Callable[[], tuple[str, ...]],
        as_torch: bool,
    ) -> None:
        self.t0, self.t1 = t0, t1
        self._modalities = modalities  # or what tells them, which may wait for a GPU
        self.height, self.width = control_points.shape[-2:]
        self._points = control_points  # [1, n, 2, H, W]
        self._uncertainty = uncertainty  # [1, 2, H, W]
        self._boundary = boundary  # [1, 2, H, W]
        self._as_torch = as_torch

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the flow was estimated from: "frames", "events", or both; "frame0" and "events"
        where there was one frame alone. What was given to a network that does not use it is not
        named."""
        if callable(self._modalities):
            self._modalities = self._modalities()
        return self._modalities

    def __repr__(self) -> str:
        source = " and ".join(self.modalities)
        return f"Result({self.width} x {self.height} px, {self.t0} to {self.t1} us, from {source})"

    @property
    def flow(self) -> Array:
        """Displacement from t0 to t1: [2, H, W] float32, px; u right, v down."""
        return self._give(self._points[0, -1])

    @property
    def control_points(self) -> Array:
        """Bezier control points P_1 .. P_n: [n, 2, H, W] float32, px from the place at t0."""
        return self._give(self._points[0])

    @property
    def boundary(self) -> Array:
        """Probabilities in [0, 1], [2, H, W]: B_e (informative moving edge), B_m (motion
        discontinuity)."""
        return self._give(torch.sigmoid(self._boundary[0]))

    @property
    def uncertainty(self) -> Array:
        """Expected absolute error of a flow component: [H, W] float32, px.

        The network describes its error by a mixture of two Laplace distributions, of scale 1/4 px
        and of a wider one; this is the mean absolute deviation under it.
        """
        return self._give(expected_error(self._uncertainty[0]))

    def at(self, tau: float | Array) -> Array:
        """Displacement from t0 to tau.

        Args:
            tau: a number, or [T], in [0, 1].

        Returns:
            [2, H, W], or [T, 2, H, W]; float32, px.
        """
        return self._give(self._evaluate(bezier, tau))

    def velocity(self, tau: float | Array) -> Array:
        """Velocity of every pixel of t0 at the time tau.

        Args:
            tau: a number, or [T], in [0, 1].

        Returns:
            [2, H, W], or [T, 2, H, W]; float32, px per second.
        """
        seconds = (self.t1 - self.t0) * 1e-6
        return self._give(self._evaluate(bezier_velocity, tau) / seconds)

    def track(self, points: Array, tau: float | Array) -> Array:
        """Follow points of t0.

        Args:
            points: [N, 2], (x, y) at t0 in px; sub-pixel places are interpolated.
            tau: a number, or [T], in [0, 1].

        Returns:
            Positions at tau, [N, 2] or [T, N, 2] float32, px. A point that is not on the image at
            t0 has no trajectory: NaN.
        """
        points = self._points_of("track", points)
        times = self._times(tau)
        coords = points.T[None, :, None]  # [1, 2, 1, N]
        controls = self._controls_at(coords)  # [n, 2, N]
        moved = torch.einsum("tn,ncp->tpc", self._weights(times.flatten()), controls) + points
        on_image = inside(coords, self.height, self.width)[0, 0, 0]
        moved = torch.where(on_image[:, None], moved, torch.nan)
        return self._give(moved if times.dim() else moved[0])

    def at_events(self, events: Events | tuple | Mapping[str, Any]) -> Array:
        """Flow from t0 to t1 of the trajectory that passes through each event.

        An event at (x, t) belongs to the pixel x0 of t0 with x0 + displacement(x0, t) = x. It is
        found by fixed-point steps from x0 = x. Where several trajectories cross (an object in front
        of another) the one reached first is taken; origins outside the image take the flow of its
        border.

        Args:
            events: N events in [t0, t1], at pixels of this result.

        Returns:
            [N, 2] float32, (u, v) in px from t0 to t1; NaN for events that are not on the image.

        Raises:
            ValueError: events of another time or of a sensor of another size.
        """
        origin, _, on_image = self._trace_events("at_events", events)
        flow = self._controls_at(origin)[-1].T
        return self._give(torch.where(on_image[:, None], flow, torch.nan))

    def velocity_at_events(self, events: Events | tuple | Mapping[str, Any]) -> Array:
        """Velocity, at the time of each event, of the trajectory that passes through it.

        Args:
            events: as of :meth:`at_events`.

        Returns:
            [N, 2] float32, (u, v) in px per second; NaN for events that are not on the image.

        Raises:
            ValueError: as :meth:`at_events`.
        """
        origin, tau, on_image = self._trace_events("velocity_at_events", events)
        controls = self._controls_at(origin).movedim(-1, 0)[..., None, None]  # [N, n, 2, 1, 1]
        rate = bezier_velocity(controls, tau)[..., 0, 0] / ((self.t1 - self.t0) * 1e-6)
        return self._give(torch.where(on_image[:, None], rate, torch.nan))

    def origins(self, points: Array, tau: float) -> Array:
        """Where at t0 that was which is at given places at the time tau.

        Args:
            points: [N, 2], (x, y) in px at tau.
            tau: in [0, 1].

        Returns:
            [N, 2] float32, px; found as :meth:`at_events` finds the origins of events. NaN for
            places that are not on the image.
        """
        points = self._points_of("origins", points)
        time = self._times(tau)
        if time.dim():
            raise ValueError(f"origins: tau must be one number, got shape {list(time.shape)}")
        place = points.T[None, :, None]
        origin = self._trace(place, self._weights(time.expand(len(points))))
        on_image = inside(place, self.height, self.width)[0, 0, 0]
        return self._give(torch.where(on_image[:, None], origin[0, :, 0].T, torch.nan))

    def _trace_events(self, caller: str, events: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Where the trajectories through events begin, [1, 2, 1, N]; tau [N]; whether the events
        are on the image, [N]."""
        found = as_events(events)
        if found is None:
            raise ValueError(f"{caller}: events must be Events or arrays, got None")
        if len(found) and (found.t[0] < self.t0 or found.t[-1] > self.t1):
            raise ValueError(
                f"{caller}: events must lie in [{self.t0}, {self.t1}] us, got {found.t[0]} to "
                f"{found.t[-1]} us; take events.slice_time(t0, t1)"
            )
        if found.height is not None and (found.height, found.width) != (self.height, self.width):
            raise ValueError(
                f"{caller}: events must be of {self.width} x {self.height} px as the flow, got "
                f"those of a sensor of {found.width} x {found.height} px"
            )
        device = self._points.device
        tau = torch.from_numpy((found.t - self.t0) / (self.t1 - self.t0)).float().to(device)
        positions = np.stack((found.x, found.y)).astype(np.float32)
        place = torch.from_numpy(positions)[None, :, None].to(device)  # [1, 2, 1, N]
        on_image = inside(place, self.height, self.width)[0, 0, 0]
        return self._trace(place, self._weights(tau)), tau, on_image

    def _trace(self, place: Tensor, weights: Tensor) -> Tensor:
        """Trace places [1, 2, 1, N] px at times of weights [N, n] back to t0, by fixed-point
        steps."""
        origin = place
        for _ in range(TRACE_STEPS):
            moved = torch.einsum("pn,ncp->cp", weights, self._controls_at(origin))
            origin = place - moved[None, :, None]
        return origin

    def _points_of(self, caller: str, points: Any) -> Tensor:
        points = self._numbers(f"{caller}: points", points, "numbers of shape [N, 2]")
        if points.dim() != 2 or points.shape[1] != 2:
            raise ValueError(f"{caller}: points must have shape [N, 2], got {list(points.shape)}")
        return points

    def save(self, path: str | os.PathLike) -> None:
        """Write everything to a file that :func:`load_result` reads back, to the bit; atomically.

        Args:
            path: ends in .npz. It gets ``control_points`` [n, 2, H, W], ``uncertainty_parameters``
                [2, H, W] and ``boundary_logits`` [2, H, W], all float32; ``t0`` and ``t1``, int64
                microseconds; and ``modalities``, words.

        Raises:
            ValueError: the path does not end in .npz.
            OSError: the file cannot be written.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"{path}: a result is written as .npz")
        tensors = (self._points, self._uncertainty, self._boundary)
        arrays = {
            name: tensor[0].cpu().numpy() for name, tensor in zip(_STORED, tensors, strict=True)
        }
        with atomic_path(path) as temporary:
            # Not compressed: the digits of float32 would hardly shrink.
            np.savez(
                temporary,
                allow_pickle=False,
                **arrays,
                t0=np.int64(self.t0),
                t1=np.int64(self.t1),
                modalities=np.array(self.modalities, dtype=str),
            )

    def _controls_at(self, coords: Tensor) -> Tensor:
        """Control points at [1, 2, 1, N] px: [n, 2, N]."""
        values = sample(self._points.flatten(1, 2), coords, padding="border")
        return values[0, :, 0].unflatten(0, (-1, 2))

    def _weights(self, tau: Tensor) -> Tensor:
        return bernstein(self._points.shape[1], tau)

    def _times(self, tau: float | Array) -> Tensor:
        times = self._numbers("tau", tau, "a number or [T]")
        if times.dim() > 1:
            raise ValueError(f"tau must be a number or [T], got shape {list(times.shape)}")
        if not ((times >= 0) & (times <= 1)).all():
            raise ValueError(f"tau must lie in [0, 1], got {tau}")
        return times

    def _numbers(self, name: str, value: Any, expected: str) -> Tensor:
        try:
            return torch.as_tensor(value, dtype=torch.float32, device=self._points.device)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise ValueError(f"{name} must be {expected}, got {value!r}") from None

    def _evaluate(self, curve: Any, tau: float | Array) -> Tensor:
        times = self._times(tau)
        values = curve(self._points, times.reshape(1, -1))[0]  # [T, 2, H, W]
        return values if times.dim() else values[0]

    def _give(self, value: Tensor) -> Array:
        # A copy: writing into what a user got must not change the result.
        return value.clone() if self._as_torch else value.to("cpu", copy=True).numpy()


def load_result(path: str | os.PathLike) -> Result:
    """Read a result that :meth:`Result.save` or ``flowfuse-infer --write control-points`` wrote.

    Args:
        path: the .npz file.

    Returns:
        The result, which gives numpy arrays; all its numbers are those of the one written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file, what was found and what was expected.
    """
    path = as_path("load_result: path", path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such result file")
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable .npz file ({error})") from error
    missing = {*_STORED, "t0", "t1", "modalities"} - set(content)
    if missing:
        raise ValueError(
            f"{path}: not a result of flowfuse: expected the arrays {', '.join(sorted(missing))}, "
            f"found {', '.join(sorted(content)) or 'none'}"
        )
    sides: dict[str, int] = {}
    for name, axes in _STORED.items():
        array = content[name]
        if array.dtype == np.float32 and array.ndim == len(axes):
            for axis, length in zip(axes, array.shape, strict=True):
                if isinstance(axis, str):
                    sides.setdefault(axis, length)
        expected = [sides.get(axis, axis) if isinstance(axis, str) else axis for axis in axes]
        if array.dtype != np.float32 or list(array.shape) != expected or 0 in array.shape:
            raise ValueError(
                f"{path}: {name} must be float32 of shape {expected}, "
                f"got {array.dtype} of {list(array.shape)}"
            )
    return Result(
        *(torch.from_numpy(content[name])[None] for name in _STORED),
        t0=int(content["t0"]),
        t1=int(content["t1"]),
        modalities=tuple(map(str, np.atleast_1d(content["modalities"]))),
        as_torch=False,
    )


def as_events(events: Any) -> Events | None:
    """Take Events, a tuple (x, y, t, p), a mapping with these keys, or None, as Events or None.

    Raises:
        ValueError: for anything else, and for arrays that are no events.
    """
    if events is None or isinstance(events, Events):
        return events
    if isinstance(events, Mapping):
        if set(events) != set("xytp"):
            found = ", ".join(sorted(map(str, events)))
            raise ValueError(f"events must have the keys x, y, t, p; got {found}")
        return Events(**events)
    if isinstance(events, (tuple, list)):
        if len(events) != 4:
            raise ValueError(f"events must be a tuple (x, y, t, p), got {len(events)} arrays")
        return Events(*events)
    raise ValueError(
        "events must be Events, a tuple (x, y, t, p), a mapping or None; "
        f"got {type(events).__name__}"
    )
