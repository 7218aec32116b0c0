"""Download of DSEC what optical flow needs: left events, left images, ground truth, calibration.

    python data_tools/download_dsec.py DSEC --list                    # files and sizes, no download
    python data_tools/download_dsec.py DSEC --sequences thun_00_a
    python data_tools/download_dsec.py DSEC --split test              # but not the schedules

An interrupted download goes on where it stopped when the same command is given again. Archives are
checked against the size that the server states, unpacked to DSEC/<sequence>/ in the layout that
flowfuse reads, and removed. Which predictions the benchmark wants of the test sequences, their
schedules, is told by files that are not downloaded: the tool checks that they are there.
"""

from __future__ import annotations

import http.client
import shutil
import sys
import time
import urllib.error
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jsonargparse import Namespace
from tqdm import tqdm

from flowfuse.cli.console import CommandParser, leave, run_command
from flowfuse.cli.infer_submission import TEST_SEQUENCES
from flowfuse.data.datasets.dsec.dataset import FLOW_SEQUENCES
from flowfuse.data.datasets.dsec.files import DsecFiles, find_schedule, read_schedule
from flowfuse.io.progress import progress

SITE = "https://dsec.ifi.uzh.ch"  # says where everything is; not a place to download from
ADDRESS = "https://download.ifi.uzh.ch/rpg/DSEC"
# What the names of a part's files end with, and where in the sequence's directory they go.
PARTS = {
    "events": {"events_left.zip": "events/left"},
    "images": {
        "images_rectified_left.zip": "images/left/rectified",
        "image_timestamps.txt": "images/timestamps.txt",
        "image_exposure_timestamps_left.txt": "images/left/exposure_timestamps.txt",
    },
    "flow": {
        "optical_flow_forward_event.zip": "flow/forward",
        "optical_flow_forward_timestamps.txt": "flow/forward_timestamps.txt",
    },
    "calibration": {"calibration.zip": "calibration"},
}
_BLOCK = 1 << 20
_RETRIES = 8
_TIMEOUT = 60  # s without any byte
# The server's refusals; asking again does not change them, but for those that ask for patience.
_FINAL = {*range(400, 500)} - {408, 425, 429}


class Item(NamedTuple):
    """A file to download: where from, and the file or (of an archive) directory it becomes."""

    url: str
    target: Path

    @property
    def name(self) -> str:
        """The file's name on the server."""
        return PurePosixPath(self.url).name

    @property
    def is_archive(self) -> bool:
        """Whether it is unpacked."""
        return self.name.endswith(".zip")

    @property
    def marker(self) -> Path:
        """Exists once an archive is unpacked."""
        return self.target / f".{self.name}.unpacked"

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.marker.exists() if self.is_archive else self.target.exists()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(
        "download_dsec",
        lambda: download_all(arguments),
        interrupted="the same command goes on from here",
    )


def download_all(arguments: Namespace) -> None:
    """Download what is asked for and not there yet."""
    items = plan(arguments)
    if arguments.list:
        list_items(items)
    else:
        for item in items:
            if item.is_done:
                print(f"{item.target}: there already")
            else:
                fetch(item, arguments.root, arguments.keep_archives)
    if arguments.split == "test":
        check_schedules(arguments.root, arguments.sequences or tuple(TEST_SEQUENCES))


def build_parser() -> CommandParser:
    """Build the command line."""
    parser = CommandParser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("root", type=Path, help="directory of the data set")
    add("--split", choices=("train", "test"), default="train", help="of the benchmark")
    add("--sequences", nargs="+", metavar="NAME", help="only these; None: all of the split")
    add(
        "--parts",
        nargs="+",
        choices=tuple(PARTS),
        default=list(PARTS),
        help="what to download; the test split has no flow",
    )
    add("--list", action="store_true", help="say files and sizes, and download nothing")
    add("--keep-archives", action="store_true", help="do not remove archives once unpacked")
    add("--address", default=ADDRESS, help="of the server")
    return parser


def plan(arguments: Namespace) -> list[Item]:
    """List the files asked for."""
    known = FLOW_SEQUENCES if arguments.split == "train" else tuple(TEST_SEQUENCES)
    sequences = arguments.sequences or known
    unknown = [name for name in sequences if name not in known]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: not in the {arguments.split} split, which has "
            f"{', '.join(known)} (training sequences without ground truth are left out)"
        )
    if arguments.split == "test" and arguments.parts == ["flow"]:
        raise ValueError("--parts flow: the sequences of the test split have no ground truth")
    parts = [part for part in arguments.parts if arguments.split == "train" or part != "flow"]
    return [
        Item(
            f"{arguments.address}/{arguments.split}/{sequence}/{sequence}_{ending}",
            arguments.root / sequence / place,
        )
        for sequence in sequences
        for part in parts
        for ending, place in PARTS[part].items()
    ]


def check_schedules(root: Path, sequences: Sequence[str]) -> None:
    """Warn where schedules are missing or not those of the benchmark; say where they come from."""
    faults = []
    for name in sequences:
        path, expected = find_schedule(DsecFiles(root, name)), TEST_SEQUENCES[name]
        if path is None:
            faults.append(f"{name}.csv is missing")
            continue
        try:
            found = len(read_schedule(path))
        except ValueError as error:
            faults.append(str(error))
        else:
            if found != expected:
                faults.append(f"{path} has {found} predictions, {expected} expected")
    if faults:
        warnings.warn(
            f"a submission needs the schedules of the test sequences ({'; '.join(faults)}): get "
            f"the time stamps of the test set for forward optical flow from {SITE}, and put "
            f"SEQ.csv into {root / 'test_forward_optical_flow_timestamps'}",
            stacklevel=2,
        )
    else:
        print(f"{root}: the schedules of these test sequences are there")


def list_items(items: Sequence[Item]) -> None:
    """Print every file with its size and state, and the sum of what is missing."""
    missing = 0
    for item in items:
        size = find_size(item.url)
        missing += 0 if item.is_done else size
        state = "there already" if item.is_done else ""
        print(f"{size / 1e6:12.1f} MB  {item.name}  {state}".rstrip())
    print(f"{missing / 1e6:12.1f} MB  to download")


def find_size(url: str) -> int:
    """Ask the server for the size of a file, bytes."""
    return _retry(url, lambda: _ask_size(url))


def _ask_size(url: str) -> int:
    request = urllib.request.Request(url, method="HEAD")
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        length = answer.headers.get("Content-Length", "")
    if not length.isdigit():
        raise ValueError(f"{url}: the server states no size, got Content-Length {length!r}")
    return int(length)


def fetch(item: Item, root: Path, keep_archive: bool) -> None:
    """Download one file, check its size, and put it (or its content) in its place."""
    size = find_size(item.url)
    downloads = root / ".downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    archive = downloads / item.name
    if not archive.exists():
        partial = downloads / f"{item.name}.part"
        check_space(downloads, size - (partial.stat().st_size if partial.exists() else 0), item)
        download(item.url, partial, size)
        partial.rename(archive)
    if item.is_archive:
        unpack(archive, item)
        if not keep_archive:
            archive.unlink()
    else:
        item.target.parent.mkdir(parents=True, exist_ok=True)
        archive.rename(item.target)
    print(f"{item.target}: {item.name}, {size / 1e6:.1f} MB")


def check_space(directory: Path, needed: int, item: Item) -> None:
    """Refuse a download that the disk cannot hold."""
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ValueError(
            f"{item.name}: {needed / 1e9:.1f} GB to download, but {directory} has "
            f"{free / 1e9:.1f} GB free"
        )


def download(url: str, path: Path, size: int) -> None:
    """Download to a file, going on behind what it holds, until it has its full size.

    Raises:
        ValueError: it is larger than the server says; it was removed.
        OSError: the server refuses, or breaks off again and again.
    """
    with progress(total=size, unit="B", unit_scale=True, desc=f"{path.stem}: ") as bar:

        def attempt() -> None:
            start = path.stat().st_size if path.exists() else 0
            if start < size:
                bar.update(start - bar.n)
                _continue(url, path, start, bar)

        def complete() -> None:
            attempt()
            found = path.stat().st_size
            if found < size:
                raise ConnectionError(f"{found} of {size} bytes received")

        _retry(url, complete)
    found = path.stat().st_size
    if found != size:
        path.unlink()
        raise ValueError(
            f"{path}: {found} bytes, but the server states {size} for {url}; it was removed, "
            "download it again"
        )


def _continue(url: str, path: Path, start: int, bar: tqdm) -> None:
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        # A server that knows no ranges sends everything (200), and we start over.
        mode = "ab" if answer.status == 206 else "wb"
        if mode == "wb":
            bar.update(-bar.n)
        with open(path, mode) as file:
            while block := answer.read(_BLOCK):
                file.write(block)
                bar.update(len(block))


def _retry(url: str, action):
    """Call until it succeeds; waits longer after every broken connection."""
    for attempt in range(_RETRIES + 1):
        try:
            return action()
        except urllib.error.HTTPError as error:
            if error.code in _FINAL or attempt == _RETRIES:
                raise OSError(f"{url}: the server answers {error.code} {error.reason}") from error
            reason = error
        except (OSError, http.client.HTTPException) as error:
            if attempt == _RETRIES:
                raise OSError(f"{url}: broken off {_RETRIES + 1} times ({error})") from error
            reason = error
        wait = min(60, 2**attempt)
        print(f"{url}: {reason}; again in {wait} s", file=sys.stderr)
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def unpack(archive: Path, item: Item) -> None:
    """Unpack an archive, without the directories in it, beside its marker, which is set last.

    Nothing comes to its place before all is unpacked: a half looks like a whole to its readers.
    """
    partial = archive.with_name(f"{archive.name}.unpacking")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir()
    try:
        with zipfile.ZipFile(archive) as content:
            for member in content.infolist():
                if member.is_dir():
                    continue
                # The name alone: nothing is written outside of the target.
                with (
                    content.open(member) as source,
                    open(partial / PurePosixPath(member.filename).name, "wb") as target,
                ):
                    shutil.copyfileobj(source, target, _BLOCK)
        item.target.mkdir(parents=True, exist_ok=True)
        for path in partial.iterdir():
            path.replace(item.target / path.name)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        archive.unlink()
        raise ValueError(
            f"{archive}: damaged ({error}); it was removed, download it again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    item.marker.touch()


if __name__ == "__main__":
    leave(main())
