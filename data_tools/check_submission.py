"""Check a submission to the optical flow benchmark of DSEC before it is sent.

    python data_tools/check_submission.py out.zip test_forward_optical_flow_timestamps

The submission, whoever made it, is a zip or a directory with SEQ/%06d.png; the schedules are the
SEQ.csv of the benchmark. Names, number, size and encoding of all predictions are checked.
"""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from jsonargparse import Namespace

from flowfuse.cli.console import CommandParser, leave, run_command
from flowfuse.cli.infer_submission import TEST_SEQUENCES
from flowfuse.config import parse_size
from flowfuse.data.datasets.dsec.files import read_schedule

SHOWN = 20  # faults that are printed
ZERO = 2**15  # code of 0 px; a step is 1/128 px
LARGEST = 2**16 - 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 1 where something is wrong, which is printed."""
    arguments = build_parser().parse_args(argv)
    return run_command("check_submission", lambda: check(arguments))


def check(arguments: Namespace) -> int:
    """Print what is wrong with the submission, or that it is right; returns 1 or 0."""
    wanted, faults = list_predictions(arguments.schedules)
    with open_submission(arguments.submission) as (names, read):
        faults += [f"{name}: missing" for name in sorted(wanted - names)]
        faults += [f"{name}: not asked for" for name in sorted(names - wanted)]
        clipped, largest = 0, 0.0
        for name in sorted(wanted & names):
            problem, image = check_prediction(read(name), arguments.size)
            if problem:
                faults.append(f"{name}: {problem}")
            else:
                clipped += int(((image == 0) | (image == LARGEST)).any(axis=2).sum())
                largest = max(largest, float(np.abs(image.astype(np.int32) - ZERO).max()))
    if faults:
        for fault in faults[:SHOWN]:
            print(fault, file=sys.stderr)
        count = f"{len(faults)} fault" + "s" * (len(faults) > 1)
        more = f", {SHOWN} of them shown" if len(faults) > SHOWN else ""
        print(f"check_submission: {arguments.submission}: {count}{more}", file=sys.stderr)
        return 1
    sequences = len({name.partition("/")[0] for name in wanted})
    print(
        f"{arguments.submission}: right: {len(wanted)} predictions of {sequences} sequences, "
        f"components up to {largest / 128:.1f} px, {clipped} pixels at the limit of the encoding"
    )
    return 0


def build_parser() -> CommandParser:
    """Build the command line."""
    parser = CommandParser(__doc__.splitlines()[0])
    parser.add_argument("submission", type=Path, help="zip, or directory with what is in the zip")
    parser.add_argument("schedules", type=Path, help="directory of SEQ.csv")
    parser.add_argument(
        "--size", type=parse_size, default="640x480", metavar="WxH", help="of predictions, px"
    )
    return parser


def list_predictions(schedules: Path) -> tuple[set[str], list[str]]:
    """List the entries that the schedules ask for, and what is wrong with the schedules."""
    files = sorted(schedules.glob("*.csv")) if schedules.is_dir() else []
    if not files:
        raise ValueError(f"{schedules}: no schedules SEQ.csv there")
    rows = {path.stem: read_schedule(path) for path in files}
    faults = []
    for name in sorted({*TEST_SEQUENCES, *rows}):
        expected, found = TEST_SEQUENCES.get(name, 0), len(rows.get(name, ()))
        if expected != found:
            faults.append(f"{name}: {expected} predictions are asked for, {found} in the schedules")
    return {f"{name}/{index:06d}.png" for name, r in rows.items() for index in r[:, 2]}, faults


@contextmanager
def open_submission(path: Path) -> Iterator[tuple[set[str], Callable[[str], bytes]]]:
    """Give the names of the files of a submission, and a function that reads one."""
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file())
        yield (
            {file.relative_to(path).as_posix() for file in files},
            lambda n: (path / n).read_bytes(),
        )
        return
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or directory")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{path}: {len(twice)} names are there twice, e.g. {twice[0]}")
            yield set(names), archive.read
    # RuntimeError: the zip is encrypted, or compressed in a way that Python does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(f"{path}: not a zip that can be read ({error})") from error


def check_prediction(data: bytes, size: tuple[int, int]) -> tuple[str, np.ndarray | None]:
    """Check one file.

    Args:
        data: its bytes.
        size: (width, height) px.

    Returns:
        What is wrong, or "" and the codes of the flow, [H, W, 2] uint16 (v, u).
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "not a PNG", None
    if b"IEND" not in data[-12:]:
        return "truncated, the end of the PNG is missing", None
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        return "not a PNG that can be decoded", None
    channels = 1 if image.ndim == 2 else image.shape[2]
    if image.dtype != np.uint16 or channels != 3:
        bits = 8 * image.dtype.itemsize
        return f"has {channels} channels of {bits} bits, 3 of 16 bits expected", None
    if image.shape[1::-1] != size:
        found = f"{image.shape[1]} x {image.shape[0]} px"
        return f"is {found}, {size[0]} x {size[1]} px expected", None
    # OpenCV gives B, G, R.
    if image[..., 0].max() > 1:
        return (
            f"the third channel must be 0 (at most 1), found {image[..., 0].max()}: "
            "R must hold u and G must hold v",
            None,
        )
    flow = image[..., 1:]
    empty = int((flow == 0).all(axis=2).sum())
    if empty:
        return f"{empty} pixels of code (0, 0), -256 px: NaN that was cast to integers?", None
    if (flow == ZERO).all():
        return "the flow is zero everywhere", None
    return "", flow


if __name__ == "__main__":
    leave(main())
