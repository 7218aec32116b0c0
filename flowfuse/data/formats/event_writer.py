"""Writing events of any number, part by part, in the formats of this folder that are written."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from flowfuse.data.formats.hdf5_output import Hdf5Output
from flowfuse.events import Events
from flowfuse.io.atomic import atomic_path

# Formats and the suffixes of their files.
EVENT_FORMATS = {"h5": ".h5", "dsec": ".h5", "npz": ".npz", "txt": ".txt", "csv": ".csv"}
_CHUNK = 1 << 16  # events
_GZIP: dict[str, Any] = {"compression": "gzip", "shuffle": True}  # what any program reads
_TEXT_HEAD = "t x y p"


def write_event_parts(
    path: str | os.PathLike,
    parts: Iterable[Events],
    size: tuple[int, int],
    kind: str | None = None,
) -> int:
    """Write events, complete or not at all; they come back to the microsecond and the bit.

    Args:
        path: the suffix tells the format, unless ``kind`` does.
        parts: in the order of time.
        size: (height, width) of the sensor.
        kind: a key of EVENT_FORMATS: "h5" (flat, gzip), "dsec" (the types and the codec of DSEC,
            ``ms_to_idx`` and ``t_offset``: the fastest to read of the compressed ones), "npz" (not
            compressed), "txt" or "csv" (``t x y p``, t in seconds). None: by the suffix.

    Returns:
        The number of events.

    Raises:
        ValueError: an unknown format, parts out of order, coordinates that become fractional, or,
            for "dsec", times that span 2^32 us or pixels of 2^16.
        OSError: the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".") if kind is None else kind
    if kind not in EVENT_FORMATS or path.suffix.lower() != EVENT_FORMATS[kind]:
        expected = ", ".join(f"{name} ({suffix})" for name, suffix in EVENT_FORMATS.items())
        raise ValueError(f"{path}: events are written as {expected}; got {kind!r}")
    write: dict[str, Callable] = {"h5": _write_hdf5, "dsec": _write_dsec, "npz": _write_npz}
    with atomic_path(path) as temporary:
        return write.get(kind, _write_text)(temporary, _checked(path, parts, kind), size)


def write_events(path: str | os.PathLike, events: Events) -> None:
    """Write events as .h5, atomically: gzip-compressed chunks that any HDF5 program reads.

    Layout: the group ``events`` with x, y, t (microseconds), p; attributes ``height`` and ``width``
    at the root when they are known.
    """
    path = Path(path)
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise ValueError(f"{path}: events are written as .h5, got {path.suffix!r}")
    packing = {"compression": "gzip", "shuffle": True, "chunks": (min(len(events), 1 << 15),)}
    with atomic_path(path) as temporary, Hdf5Output(temporary) as file:
        if events.height is not None and events.width is not None:
            file.attrs["height"], file.attrs["width"] = events.height, events.width
        for name in "xytp":
            file.put(f"events/{name}", getattr(events, name), **packing)


def _checked(path: Path, parts: Iterable[Events], form: str) -> Iterator[Events]:
    """The parts that have events, after looking at their order, coordinates and size."""
    first, last, kind = None, -1, None
    for part in parts:
        if not len(part):
            continue
        if part.t[0] < last:
            raise ValueError(
                f"{path}: events must follow each other in time, got a part from {part.t[0]} us "
                f"after one up to {last} us"
            )
        if kind is not None and part.x.dtype.kind != kind:
            raise ValueError(f"{path}: coordinates are whole in one part and fractional in another")
        first = int(part.t[0]) if first is None else first
        last, kind = int(part.t[-1]), part.x.dtype.kind
        if form == "dsec":
            _check_bits(path, "times from the first on", last - first, 32)
            _check_bits(path, "pixels", max(part.x.max(), part.y.max()), 16)
        yield part


def _check_bits(path: Path, what: str, largest: float, bits: int) -> None:
    if largest >= 2**bits:
        raise ValueError(
            f"{path}: {what} have {bits} bits in the layout of DSEC, got {largest}; write the "
            'flat layout, "h5"'
        )


def _columns(part: Events) -> dict[str, np.ndarray]:
    """x, y as int32 or float32, t as int64, p as uint8."""
    kind = np.float32 if part.x.dtype.kind == "f" else np.int32
    return {"x": part.x.astype(kind), "y": part.y.astype(kind), "t": part.t, "p": part.p}


def _write_hdf5(path: Path, parts: Iterable[Events], size: tuple[int, int]) -> int:
    with Hdf5Output(path) as file:
        file.attrs["height"], file.attrs["width"] = size
        count = 0
        for part in parts:
            count = _append(file, _columns(part), _GZIP)
        if not count:
            _append(file, _columns(Events.empty(*size)), _GZIP)
    return count


def _write_dsec(path: Path, parts: Iterable[Events], size: tuple[int, int]) -> int:
    """As DSEC: its types and codec, times from an offset on, the first event of every millisecond.

    Bits are shuffled, not bytes as in DSEC itself: that makes files smaller and faster to read, and
    is the same codec to readers.
    """
    import hdf5plugin  # optional: other formats are read and written without it

    packing = dict(hdf5plugin.Blosc(cname="zstd", clevel=3, shuffle=hdf5plugin.Blosc.BITSHUFFLE))
    with Hdf5Output(path) as file:
        file.attrs["height"], file.attrs["width"] = size
        offset, count, milliseconds = None, 0, 0
        table = file.create_dataset(
            "ms_to_idx", (0,), np.uint64, maxshape=(None,), chunks=(_CHUNK,), **packing
        )
        for part in parts:
            columns = _columns(part)
            offset = int(part.t[0]) if offset is None else offset
            t = part.t - offset
            for name in "xy":
                if columns[name].dtype.kind != "f":
                    columns[name] = columns[name].astype(np.uint16)
            limits = np.arange(milliseconds, int(t[-1]) // 1000 + 1)
            file.extend(table, count + np.searchsorted(t, limits * 1000))
            milliseconds += len(limits)
            count = _append(file, {**columns, "t": t.astype(np.uint32)}, packing)
        if not count:
            _append(file, _columns(Events.empty(*size)), packing)
        file["t_offset"] = offset or 0
    return count


def _append(file: Hdf5Output, columns: dict[str, np.ndarray], packing: dict[str, Any]) -> int:
    """Append to events/x, y, t, p; returns how many there are."""
    for name, values in columns.items():
        key = f"events/{name}"
        if key not in file:
            file.create_dataset(
                key, (0,), values.dtype, maxshape=(None,), chunks=(_CHUNK,), **packing
            )
        file.extend(file[key], values)
    return len(file["events/t"])


def _write_npz(path: Path, parts: Iterable[Events], size: tuple[int, int]) -> int:
    """Columns go to unnamed files first: an array's length stands before its content."""
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for name in "xytp"
        }
        count = 0
        kinds = {name: values.dtype for name, values in _columns(Events.empty(*size)).items()}
        for part in parts:
            columns = _columns(part)
            for name, values in columns.items():
                files[name].write(np.ascontiguousarray(values).data)
            kinds = {name: values.dtype for name, values in columns.items()}
            count += len(part)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, file in files.items():
                file.seek(0)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    header = {
                        "descr": np.lib.format.dtype_to_descr(kinds[name]),
                        "fortran_order": False,
                        "shape": (count,),
                    }
                    np.lib.format.write_array_header_1_0(member, header)
                    shutil.copyfileobj(file, member)
    return count


def _write_text(path: Path, parts: Iterable[Events], size: tuple[int, int]) -> int:
    mark = "," if path.suffix.lower() == ".csv" else " "
    count = 0
    with open(path, "w", encoding="ascii", newline="\n") as file:
        if mark == ",":
            file.write(_TEXT_HEAD.replace(" ", mark) + "\n")
        for part in parts:
            # Nine digits give a float32 back exactly; a whole number is written as one.
            x, y = ((f"{v:.9g}" for v in values.tolist()) for values in (part.x, part.y))
            for t, u, v, p in zip(part.t.tolist(), x, y, part.p.tolist(), strict=True):
                whole, rest = divmod(t, 10**6)
                file.write(f"{whole}.{rest:06d}{mark}{u}{mark}{v}{mark}{p}\n")
            count += len(part)
    return count
