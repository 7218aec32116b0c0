"""Events and frames in files of every layout that tests share."""

from __future__ import annotations

import cv2
import h5py
import numpy as np

from flowfuse.data.formats.event_writer import write_events
from flowfuse.events import Events

HEIGHT, WIDTH, OFFSET = 12, 16, 1_000_000
GOOD = {"x": [1, 2], "y": [1, 1], "t": [5, 6], "p": [0, 1]}


def make_events():
    """3000 events, of which many share a time."""
    rng = np.random.default_rng(0)
    count = 3000
    t = OFFSET + np.sort(rng.integers(0, 40_000, count))  # many events share a time
    x, y = rng.integers(0, WIDTH, count), rng.integers(0, HEIGHT, count)
    return Events(
        x.astype(np.uint16),
        y.astype(np.uint16),
        t,
        rng.integers(0, 2, count),
        height=HEIGHT,
        width=WIDTH,
    )


def windows_that_are_slices(file, events):
    """Read intervals of an event file and check that each is a slice of `make_events()`.

    Returns:
        What was read.
    """
    assert file.time_range == (events.t[0], events.t[-1])
    assert file.coordinate_extent() == (HEIGHT, WIDTH)
    exact = int(events.t[700])  # an interval that starts and ends on events
    windows = []
    for t0, t1 in [
        (0, 2 * OFFSET),
        (OFFSET + 5000, OFFSET + 15000),
        (exact, exact + 1),
        (exact, exact),
        (exact, exact - 9),
        (0, OFFSET),
        (2 * OFFSET, 3 * OFFSET),
        (exact, int(events.t[900])),
        (OFFSET + 39_500, OFFSET + 60_000),
    ]:
        window, expected = file.window(t0, t1, HEIGHT, WIDTH), events.slice_time(t0, t1)
        for column in "xytp":
            np.testing.assert_array_equal(getattr(window, column), getattr(expected, column))
        windows.append(window)
    return windows


def write_dsec(path, events, offset):
    """The layout and the codec of DSEC."""
    import hdf5plugin

    t = events.t - offset
    codec = {"chunks": (256,), **hdf5plugin.Blosc(cname="zstd")}
    with h5py.File(path, "w") as file:
        for name, values, kind in [
            ("x", events.x, "u2"),
            ("y", events.y, "u2"),
            ("t", t, "u4"),
            ("p", events.p, "u1"),
        ]:
            file.create_dataset(f"events/{name}", data=values.astype(kind), **codec)
        file["ms_to_idx"] = np.searchsorted(t, np.arange(t[-1] // 1000 + 1) * 1000).astype("u8")
        file["t_offset"] = offset


def write_format(path, events):
    columns = {"x": events.x, "y": events.y, "t": events.t, "p": events.p}
    if path.name == "flat.h5":
        write_events(path, events)
    elif path.name == "dsec.h5":
        write_dsec(path, events, OFFSET)
    elif path.suffix == ".h5":
        seconds = path.name == "seconds.h5"
        with h5py.File(path, "w") as file:
            for name, values in columns.items():
                file[name] = values / 1e6 if seconds and name == "t" else values
    elif path.suffix == ".npz":
        save = np.savez if path.name == "stored.npz" else np.savez_compressed
        save(path, **{**columns, "t": events.t if path.name == "stored.npz" else events.t / 1e6})
    else:
        mark = "," if path.suffix == ".csv" else " "
        lines = ["timestamp,x,y,polarity" if mark == "," else "# a comment"]
        lines += [
            f"{t / 1e6:.6f}{mark}{x}{mark}{y}{mark}{p}"
            for x, y, t, p in zip(events.x, events.y, events.t, events.p, strict=True)
        ]
        path.write_text("\n".join(lines) + "\n")
    return path


def save_h5(path, **columns):
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = values


def frames(count=3, channels=()):
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (count, HEIGHT, WIDTH, *channels)).astype(np.uint8)


def save_images(directory, images, pattern="{}.png"):
    directory.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        cv2.imwrite(str(directory / pattern.format(index)), image)
