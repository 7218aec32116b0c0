"""Arrays of .npz archives as memory maps."""

from __future__ import annotations

import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

_BLOCK_BYTES = 1 << 20  # unpacked at once
# What numpy.load raises on a damaged .npy or .npz; the last two where the file is something else.
NUMPY_FAULTS = (
    KeyError, ValueError, OSError, EOFError, RuntimeError, SyntaxError, tokenize.TokenError,
    zipfile.BadZipFile, zlib.error, MemoryError, AttributeError, TypeError,
)  # fmt: skip


@contextmanager
def open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive, and name it in the errors of all that is done with it meanwhile.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or what is done with it raises a ValueError.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path}: not a readable .npz, is it truncated? ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except OSError as error:
        if error.filename is not None:
            raise
        # Damaged offsets lead before the file, where no seek goes.
        raise OSError(f"{path}: cannot be read, is it damaged? ({error.strerror})") from error


def map_member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an .npz archive as a read-only memory map.

    A stored member is mapped where it is; a compressed one is first unpacked into an unnamed
    temporary file as large as the array.

    Args:
        path: the archive.
        archive: the same, open.
        name: of the array, without ``.npy``.

    Raises:
        KeyError, ValueError, zipfile.BadZipFile, zlib.error, EOFError: no such array, or damaged.
    """
    info = archive.getinfo(f"{name}.npy")
    file: Any
    if info.compress_type == zipfile.ZIP_STORED:
        file = open(path, "rb")
        file.seek(info.header_offset)
        local = file.read(30)  # the local header ends with the lengths of name and extra field
        start = info.header_offset + 30 + int.from_bytes(local[26:28], "little")
        start += int.from_bytes(local[28:30], "little")
    else:
        file = tempfile.TemporaryFile()
        start = 0
        with archive.open(info) as packed:
            while block := packed.read(_BLOCK_BYTES):
                file.write(block)
    with file:
        file.seek(start)
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} has .npy version {version}, expected (1, 0) or (2, 0)")
        read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        try:
            shape, fortran_order, dtype = read_header(file)
        except (SyntaxError, tokenize.TokenError) as error:  # numpy parses it as Python
            raise ValueError(f"the header of {name} cannot be read ({error})") from error
        if dtype.hasobject:
            raise ValueError(f"{name} must be numbers of shape [N], got Python objects")
        size = int(np.prod(shape)) * dtype.itemsize
        if file.tell() - start + size > info.file_size:
            raise ValueError(f"{name} is truncated, {size} bytes expected for {shape} {dtype}")
        if size == 0:
            return np.empty(shape, dtype)  # nothing cannot be mapped
        order: Literal["C", "F"] = "F" if fortran_order else "C"
        return np.memmap(file, dtype, "r", offset=file.tell(), shape=shape, order=order)
