"""Measure how fast windows of events are read from large files, against a plain slicer.

    python benchmarks/reading.py FOLDER --json today.json --markdown today.md
    python benchmarks/reading.py FOLDER --quick

FOLDER keeps the files from run to run: one of --events events and one of a hundredth of them, in
the layout of DSEC, as flowfuse writes it. Positions and polarities are random, which is the hardest
to compress; times come at 10^7 events per second.

Windows are read one after the other ("successive": each file is read once, from the start) and at
random places. The plain slicer is what public loaders of DSEC do: the file is open, ms_to_idx is in
memory, t is read between two of its entries and searched, x, y and p are read where the window is.
It checks nothing; ours checks that events are sorted and on the sensor. "whole columns" reads the
file from end to end with h5py: no slicer that decodes by HDF5 is faster. The readers take turns,
each with a file opened anew, after a round that is not timed; what the system keeps of the file in
memory helps all of them alike. One thread reads; in the rows of the DataLoader its workers do,
which were started before.
"""

from __future__ import annotations

import statistics
import sys
import time
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from measuring import (
    OneLineParser,
    Row,
    add_result_arguments,
    fill,
    heading,
    limits_text,
    measure_limits,
    new_report,
    number,
    reason,
    table,
    tell_failures,
)
from torch.utils.data import DataLoader, Dataset

from flowfuse.data.formats.event_writer import write_event_parts
from flowfuse.data.formats.hdf5 import register_codecs
from flowfuse.data.registry import open_event_file
from flowfuse.evaluation.report import head, line
from flowfuse.events import Events

HEIGHT, WIDTH = 480, 640
RATE = 10  # events per microsecond
START = 54_000_000_000  # us, of the first event
PART = 1 << 20
WINDOWS_MS = (25, 100)
WORKERS = (0, 1, 2)
QUICK_EVENTS, FULL_EVENTS = 2 * 10**6, 10**8
RANDOM_SHARE = 0.5  # of the events of the file, that are read in random windows
OURS, PLAIN, WHOLE = "flowfuse", "plain slicer", "whole columns"
Interval = tuple[int, int]


class PlainSlicer:
    """Windows by ms_to_idx and a binary search, with h5py alone."""

    def __init__(self, path: Path) -> None:
        register_codecs()
        file = h5py.File(path, "r")
        self.columns = {name: file[f"events/{name}"] for name in "xytp"}
        self.table = file["ms_to_idx"][()].astype(np.int64)
        self.offset = int(file["t_offset"][()])

    def window(self, t0: int, t1: int) -> tuple[np.ndarray, ...]:
        """t (int64 us), x, y, p of [t0, t1)."""
        t0, t1 = t0 - self.offset, t1 - self.offset
        low, end = int(self.table[max(t0 // 1000, 0)]), -(-t1 // 1000)
        high = int(self.table[end]) if end < len(self.table) else len(self.columns["t"])
        t = self.columns["t"][low:high]
        first, last = np.searchsorted(t, (t0, t1))
        window = slice(low + first, low + last)
        x, y, p = (self.columns[name][window] for name in "xyp")
        return t[first:last].astype(np.int64) + self.offset, x, y, p


def read_ours(path: Path, windows: Sequence[Interval]) -> int:
    file = open_event_file(path)
    return sum(len(file.window(t0, t1, HEIGHT, WIDTH)) for t0, t1 in windows)


def read_plain(path: Path, windows: Sequence[Interval]) -> int:
    slicer = PlainSlicer(path)
    return sum(len(slicer.window(t0, t1)[0]) for t0, t1 in windows)


def read_whole(path: Path) -> int:
    """All columns, in parts of 100 ms."""
    register_codecs()
    with h5py.File(path, "r") as file:
        columns = [file[f"events/{name}"] for name in "xytp"]
        count = len(columns[0])
        for first in range(0, count, RATE * 100_000):
            for column in columns:
                column[first : first + RATE * 100_000]
        return count


class WindowCounts(Dataset):
    """The number of events of each window: what it costs to hand samples over is not reading."""

    def __init__(self, path: Path, windows: Sequence[Interval]) -> None:
        self.file, self.windows = open_event_file(path), windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> int:
        return len(self.file.window(*self.windows[index], HEIGHT, WIDTH))


def loaded(path: Path, windows: Sequence[Interval], workers: int) -> Callable[[], int]:
    """What reads windows by a DataLoader, whose workers live on from call to call."""
    loader = DataLoader(
        WindowCounts(path, windows),
        batch_size=4,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda: sum(int(batch.sum()) for batch in loader)


def make_file(folder: Path, count: int) -> Path:
    """Write a file of events, unless the folder has it."""
    path = folder / f"events_{count}.h5"
    if not path.exists():
        print(f"writing {path}", file=sys.stderr)
        write_event_parts(path, random_parts(count), (HEIGHT, WIDTH), "dsec")
    return path


def random_parts(count: int) -> Iterator[Events]:
    generator = np.random.default_rng(7)
    for first in range(0, count, PART):
        n = min(PART, count - first)
        begin, end = START + first // RATE, START + (first + n) // RATE
        t = np.sort(generator.integers(begin, max(end, begin + 1), n))
        x, y, p = (generator.integers(0, limit, n) for limit in (WIDTH, HEIGHT, 2))
        x, y = x.astype(np.uint16), y.astype(np.uint16)
        yield Events(x, y, t, p, height=HEIGHT, width=WIDTH)


def make_windows(count: int, milliseconds: int, order: str) -> list[Interval]:
    """Windows of a file of `count` events, "successive" or at "random" places."""
    length, duration = 1000 * milliseconds, count // RATE
    if duration < length:
        raise ValueError(f"{count} events last {duration} us, less than a window of {length} us")
    starts = np.arange(0, duration - length + 1, length)
    if order == "random":
        wanted = max(4, round(RANDOM_SHARE * len(starts)))
        starts = np.random.default_rng(9).integers(0, duration - length + 1, wanted)
    return [(START + int(start), START + int(start) + length) for start in starts]


@dataclass(frozen=True)
class Case:
    """What is read, and by whom.

    Attributes:
        name: what is read, as printed.
        events: of the file.
        readers: name -> what reads and returns the number of events (for "opening": 1). Ours is
            compared with the others.
    """

    name: str
    events: int
    readers: Mapping[str, Callable[[], int]]


def all_cases(large: Path, events: int, small: Path, few: int) -> list[Case]:
    cases = []
    for path, count in ((small, few), (large, events)):
        openers = {OURS: open_event_file, PLAIN: PlainSlicer}
        readers = {name: partial(opened, opener, path) for name, opener in openers.items()}
        cases.append(Case("opening", count, readers))
    for order in ("successive", "random"):
        for milliseconds in WINDOWS_MS:
            windows = make_windows(events, milliseconds, order)
            readers = {
                PLAIN: partial(read_plain, large, windows),
                OURS: partial(read_ours, large, windows),
            }
            if order == "successive":
                readers[WHOLE] = partial(read_whole, large)
            cases.append(Case(f"{order} windows of {milliseconds} ms", events, readers))
    windows = make_windows(events, WINDOWS_MS[-1], "random")
    readers = {
        f"DataLoader, {workers} workers": loaded(large, windows, workers) for workers in WORKERS
    }
    cases.append(Case(f"random windows of {WINDOWS_MS[-1]} ms", events, readers))
    return cases


def opened(opener: Callable[[Path], object], path: Path) -> int:
    opener(path)
    return 1


def measure(case: Case, rounds: int) -> list[Row]:
    """The rows of a case: one for each reader, the medians of some rounds, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in case.readers}
    read: dict[str, int] = {}
    errors: dict[str, str] = {}
    for turn in range(rounds + 1):
        for name, reader in case.readers.items():
            if name in errors:
                continue
            try:
                start = time.perf_counter()
                read[name] = reader()
                if turn > 0:
                    seconds[name].append(time.perf_counter() - start)
            except Exception as error:  # any failure is one row's, never the run's
                errors[name] = reason(error)
    if len({count for name, count in read.items() if name != WHOLE}) > 1:
        errors = dict.fromkeys(case.readers, f"the readers found different events: {read}") | errors
    medians = {name: statistics.median(found) for name, found in seconds.items() if found}
    return [row_of(case, name, read, medians, errors.get(name)) for name in case.readers]


def row_of(
    case: Case, name: str, read: dict[str, int], medians: dict[str, float], error: str | None
) -> Row:
    good = error is None
    rates = {other: read[other] / medians[other] for other in medians}
    alone = f"DataLoader, {WORKERS[0]} workers"
    return {
        "what": case.name,
        "reader": name,
        "file_events": case.events,
        "read": read[name] if good and case.name != "opening" else None,
        "time_ms": 1e3 * medians[name] if good else None,
        "events_per_second": rates[name] if good and case.name != "opening" else None,
        "ratio_to_plain": rates[name] / rates[PLAIN] if good and PLAIN in rates else None,
        "ratio_to_whole": rates[name] / rates[WHOLE] if good and WHOLE in rates else None,
        "ratio_to_no_workers": rates[name] / rates[alone] if good and alone in rates else None,
        "error": error,
    }


COLUMNS = (
    "what", "reader", "events in the file", "ms", "10^6 events/s", "x plain", "of whole columns",
    "x no workers", "note",
)  # fmt: skip


def measured_rows(cases: Iterable[Case], rounds: int) -> Iterator[Row]:
    """The rows of all cases, printed as they come."""
    print(*head(COLUMNS), sep="\n", flush=True)
    for case in cases:
        for row in measure(case, rounds):
            print(line(cells(row)), flush=True)
            yield row


def cells(row: Row) -> list[str]:
    """The texts of one row of the table."""
    return [
        str(row["what"]),
        str(row["reader"]),
        f"{row['file_events']:.0e}",
        number(row["time_ms"], ".4g"),
        number(row["events_per_second"], ".1f", 1e-6),
        number(row["ratio_to_plain"], ".2f"),
        number(row["ratio_to_whole"], ".0%"),
        number(row["ratio_to_no_workers"], ".2f"),
        f"failed: {row['error']}" if row["error"] else "",
    ]


def as_markdown(report: Mapping) -> str:
    """A report, as run() makes it or as its JSON holds it, as text with one table."""
    lines = [
        f"A file of {report['file_bytes'] / report['events']:.2f} bytes per event. Times are "
        "medians, of opening a file and reading all the windows; x plain above 1 is faster than "
        "the plain slicer.",
        "",
        *table(COLUMNS, [cells(row) for row in report["rows"]]),
    ]
    return "\n".join([*heading(report), *lines]) + "\n"


def event_count(text: str) -> int:
    """A number of events, such as 1e8, that holds a window of each length."""
    least = RATE * 1000 * max(WINDOWS_MS)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (value >= least and value == int(value)):
        raise ArgumentTypeError(f"expected a whole number of at least {least}, got {text}")
    return int(value)


def existing_folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise ArgumentTypeError(f"{path} is not an existing directory")
    return path


def build_parser() -> OneLineParser:
    parser = OneLineParser(__doc__, prog="reading", formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=existing_folder, help="keeps the files that are read")
    parser.add_argument(
        "--events", type=event_count, metavar="N",
        help=f"of the large file; {FULL_EVENTS:.0e}, with --quick {QUICK_EVENTS:.0e}",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a small file, few repeats: a trial")
    add_result_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    events = options.events or (QUICK_EVENTS if options.quick else FULL_EVENTS)
    few = events // 100
    large, small = (make_file(options.folder, count) for count in (events, few))
    limits = measure_limits("cpu", options.quick)
    print(limits_text(asdict(limits)), flush=True)
    report = new_report("cpu", options.quick, limits)
    report |= {"events": events, "file_bytes": large.stat().st_size}
    cases = all_cases(large, events, small, few)
    fill(report, "rows", measured_rows(cases, 2 if options.quick else 5), options, as_markdown)
    return tell_failures("reading", report["rows"], ("what", "reader"))


if __name__ == "__main__":
    sys.exit(main())
