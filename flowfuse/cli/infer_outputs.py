"""The output directory of ``flowfuse-infer``: names, settings, what is done, writing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flowfuse import __version__
from flowfuse.cli.infer_extras import EXTRAS, Estimates
from flowfuse.cli.infer_figures import PICTURES, colour_range, write_figures
from flowfuse.cli.infer_motion import EVENT_FLOW, TRACKS
from flowfuse.cli.infer_options import InferenceConfig
from flowfuse.data.recording import Recording
from flowfuse.events import Events
from flowfuse.io.atomic import atomic_path, remove_abandoned
from flowfuse.io.flow import read_flow, tau_directory, write_flow
from flowfuse.io.lock import directory_lock
from flowfuse.io.progress import progress
from flowfuse.result import Result
from flowfuse.runner import Interval, is_measured
from flowfuse.viewer.page import write_page
from flowfuse.viewer.payload import encode_pair
from flowfuse.visualization import (
    EVENT_COLOURS,
    add_legend,
    add_title,
    colour_flow,
    render_events,
    title_height,
    upscale,
    write_image,
    write_video,
)

LEAST_SHOWN = 1 / 60  # s of the video that a picture is shown, in the median: screens show no more
SLOW_DOWNS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000)
LONGEST_SHOWN = 1.0  # s; where nothing was estimated for longer, the video goes on sooner
VIDEO_WIDTH = 640  # px; smaller recordings are enlarged
# Events of this fraction of the interval are drawn over the frame: they lie on the edges of t0.
EVENT_SHARE = 0.2


def run_settings(
    config: InferenceConfig, sources: Sequence[Path], recording: Recording, checkpoint: str
) -> dict[str, Any]:
    """Everything that the flow of a run depends on; runs that agree in it share a directory."""
    digest = hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()
    reading = {name: str(getattr(config.reading, name)) for name in config.reading.stated()}
    return {
        "flowfuse": __version__,
        "recording": [[str(path.resolve()), *_fingerprint(path)] for path in sources],
        "frame_files": _fingerprint_frames(recording.frame_files),
        "checkpoint_sha256": digest,
        "iterations": config.iterations,
        "precision": config.precision,
        "modalities": list(config.modalities),
        "every_us": config.every,
        # The grid of fixed-rate intervals starts there; frame pairs are numbered by their frames.
        "start_s": config.start if config.every else None,
        "times": list(config.times),
        "format": config.format,
        "png_encoding": config.png_encoding if config.format == "png" else None,
        **({"reading": reading} if reading else {}),
    }


def _without_paths(key: str, value: Any) -> Any:
    """A setting without what changes when a recording is moved: its size and dates tell it."""
    if key != "recording" or not isinstance(value, list):
        return value
    return [entry[1:] if isinstance(entry, (list, tuple)) else entry for entry in value]


def _fingerprint(path: Path) -> tuple[int, int]:
    """Size (bytes) and newest modification (ns) of a file, or of the files right in a directory."""
    if not path.exists():  # a statement in place of a file, such as triggers:rising
        return 0, 0
    files = [p for p in path.iterdir() if p.is_file()] if path.is_dir() else [path]
    states = [file.stat() for file in files]
    return sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)


def _fingerprint_frames(files: Sequence[Path]) -> list:
    """Their number, and a hash of their sizes (bytes) and modifications (ns)."""
    states = [file.stat() for file in files]
    text = " ".join(f"{state.st_size} {state.st_mtime_ns}" for state in states)
    return [len(files), hashlib.sha256(text.encode()).hexdigest()[:16]]


class OutputDirectory:
    """Names, writes and finds the files of a run. Every file is complete or absent.

    Args:
        root: the directory.
        suffix: of the flow files, without the dot.
        encoding: of 16-bit PNG, "kitti" or "dsec".
        times: the tau of the continuous flow.
        extras: names of EXTRAS.
    """

    def __init__(
        self,
        root: Path,
        suffix: str,
        encoding: str,
        times: Sequence[float],
        extras: Sequence[str] = (),
    ) -> None:
        self.root, self.suffix, self.encoding, self.times = root, suffix, encoding, tuple(times)
        self.extras = tuple(extras)
        self.settings = root / "run.json"
        self.metrics = root / "metrics.json"
        self.intervals = root / "windows.csv"
        self.video = root / "flow.mp4"
        self.page = root / "index.html"
        self.pictures = root / "pictures"
        self.tracks = root / TRACKS

    def flow(self, index: int, tau: float | None = None) -> Path:
        """The flow file of an interval; with ``tau``, that of the continuous flow."""
        directory = self.root / "flow"
        if tau is not None:
            directory = tau_directory(self.root / "flow_at", tau)
        return directory / f"{index:06d}.{self.suffix}"

    def extra(self, index: int, name: str) -> Path:
        """The file of an interval that one of the EXTRAS writes."""
        kind = EXTRAS[name]
        return self.root / kind.folder / f"{index:06d}.{kind.suffix or self.suffix}"

    @property
    def needs_backward(self) -> bool:
        """Whether anything that is asked for needs the backward flow."""
        return any(EXTRAS[name].backward for name in self.extras)

    def picture(self, index: int, kind: str) -> Path:
        """One of the PICTURES of an interval."""
        return self.pictures / f"{index:06d}_{kind}.png"

    def payload(self, index: int) -> Path:
        """What the page shows of an interval."""
        return self.root / "viewer" / f"{index:06d}.json"

    def is_done(self, index: int, pictures: bool, viewed: bool = False) -> bool:
        """Whether all files of an interval are there: its pictures, its part of the page."""
        files = [self.flow(index), *(self.flow(index, tau) for tau in self.times)]
        files += [self.extra(index, name) for name in self.extras]
        if pictures:
            files += [self.picture(index, kind) for kind in PICTURES]
        if viewed:
            files.append(self.payload(index))
        return all(path.is_file() for path in files)

    def written(self) -> list[int]:
        """The intervals whose flow is there, with ``times`` too."""
        names = (path.stem for path in (self.root / "flow").glob(f"[0-9]*.{self.suffix}"))
        return sorted(int(n) for n in names if n.isdigit() and self.is_done(int(n), False))

    def write_intervals(self, intervals: Sequence[Interval]) -> None:
        """Write windows.csv: the times of every interval, and its flow file where it has one."""
        lines = ["index,t0_us,t1_us,file"]
        for interval in intervals:
            path = self.flow(interval.index)
            name = path.relative_to(self.root).as_posix() if path.is_file() else ""
            lines.append(f"{interval.index},{interval.t0},{interval.t1},{name}")
        with atomic_path(self.intervals) as temporary:
            temporary.write_text("\n".join(lines) + "\n")

    def read(self, index: int, tau: float | None = None) -> np.ndarray:
        """Read back the flow of an interval, [2, H, W] px."""
        return read_flow(self.flow(index, tau), self.encoding)[0]

    def write(
        self,
        recording: Recording,
        interval: Interval,
        result: Result,
        backward: np.ndarray | None,
        *,
        pictures: bool,
        viewed: bool = False,
    ) -> None:
        """Write the files of an interval.

        Args:
            backward: its backward flow [2, H, W] px, where ``needs_backward``.
            pictures: draw it.
            viewed: make its part of the page.

        Raises:
            OSError: one cannot be written.
        """
        for name in self.extras:
            estimates = Estimates(result, backward, self.encoding)
            EXTRAS[name].write(self.extra(interval.index, name), estimates)
        for tau in self.times:
            write_flow(self.flow(interval.index, tau), result.at(tau), encoding=self.encoding)
        write_flow(self.flow(interval.index), result.flow, encoding=self.encoding)
        if viewed:
            self._write_payload(recording, interval, result)
        if not pictures:
            return
        frame0, events = _beginning(recording, interval)
        ground_truths = {}
        if is_measured(recording, interval):
            for tau in (*recording.ground_truth_times, 1.0):
                ground_truth = recording.ground_truth_at(interval.index, tau)
                if ground_truth is not None:
                    ground_truths[tau] = ground_truth
        title = f"{interval.index:06d}: {interval.t0 * 1e-6:.6f} to {interval.t1 * 1e-6:.6f} s"
        times = self.times or tuple(tau for tau in ground_truths if tau < 1)
        drawn = write_figures(title, result, frame0, events, ground_truths, times)
        for kind, image in drawn.items():
            write_image(self.picture(interval.index, kind), image)

    def _write_payload(self, recording: Recording, interval: Interval, result: Result) -> None:
        flows, frame, ground_truth = [result.flow], None, None
        if interval.frames:
            frame = recording.frame(interval.frames[0])
        if is_measured(recording, interval):
            ground_truth = recording.ground_truth_at(interval.index, 1.0)
        if ground_truth is not None:
            flows.append(ground_truth[0])
        events = recording.events(interval.t0, interval.t1)
        content = encode_pair(
            result, frame, events, ground_truth,
            index=interval.index, colour_range=colour_range(*flows),
        )  # fmt: skip
        path = self.payload(interval.index)
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(content)

    def write_page(
        self, title: str, intervals: Sequence[Interval], metrics: Mapping[int, dict[str, Any]]
    ) -> int:
        """Write index.html of the intervals that have a payload; returns its size in bytes.

        Args:
            metrics: index -> entry of metrics.json.
        """
        files = [self.payload(interval.index) for interval in intervals]
        return write_page(self.page, title, [file for file in files if file.is_file()], metrics)

    def write_video(
        self, recording: Recording, intervals: Sequence[Interval], max_magnitude: float
    ) -> None:
        """Write flow.mp4 from the flow files: frame with events, and colour flow with its legend.

        It runs in real time, or slowed down by a factor that is drawn beside the time.

        Args:
            recording: of the frames and events.
            intervals: those whose flow was written.
            max_magnitude: px at the rim of the colour wheel, the same in all of the video.

        Raises:
            OSError: it cannot be written.
        """

        times, slow_down = playback([interval.t0 for interval in intervals])
        speed = "real time" if slow_down == 1 else f"slowed down {slow_down} x"

        def title(interval: Interval) -> str:
            return f"{interval.t0 * 1e-6:.4f} s, {speed}. Events ({EVENT_COLOURS}), flow"

        def pictures() -> Iterator[np.ndarray]:
            height = None
            for interval in progress(intervals, unit=" pictures", desc="video: "):
                frame0, events = _beginning(recording, interval)
                flow = colour_flow(self.read(interval.index), max_magnitude=max_magnitude)
                sides = np.concatenate((render_events(frame0, events), flow), axis=1)
                picture = add_legend(upscale(sides, VIDEO_WIDTH), max_magnitude)
                # One height for all, with room for the longest time.
                height = height or title_height(picture.shape[1], title(intervals[-1]) + "  ")
                yield add_title(picture, title(interval), height)

        write_video(self.video, pictures(), times)

    def lines(self) -> list[str]:
        """Say where things are."""
        lines = [f"flow: {self.root / 'flow'} (.{self.suffix})"]
        if self.times:
            names = ", ".join(str(tau) for tau in self.times)
            lines.append(f"flow at tau = {names}: {self.root / 'flow_at'}")
        lines += [f"{name}: {self.extra(0, name).parent}" for name in self.extras]
        files = {
            "time intervals": self.intervals,
            "metrics": self.metrics,
            "video": self.video,
            "page": self.page,
        }
        for name, path in files.items():
            if path.is_file():
                lines.append(f"{name}: {path}")
        drawn = sorted(self.pictures.glob("*.png"))
        if drawn:
            lines += ["pictures:", *(f"  {path}" for path in drawn)]
        return lines

    @contextmanager
    def claimed(self, sources: Sequence[Path]) -> Iterator[None]:
        """Make the directory, and keep other commands out of it.

        Args:
            sources: files of the recording.

        Raises:
            ValueError: it is one of them, or another command writes there.
            OSError: it cannot be written.
        """
        if any(self.root.resolve() == source.resolve() for source in sources):
            raise ValueError(f"{self.root}: the output directory must not be the recording itself")
        self.root.mkdir(parents=True, exist_ok=True)
        with directory_lock(self.root):
            yield

    def prepare(self, settings: dict[str, Any], *, overwrite: bool) -> None:
        """Begin a run in the directory, or take up the one in it.

        Raises:
            ValueError: it holds something else, or results of a run with other settings.
            OSError: it cannot be written.
        """
        if self.settings.is_file():
            found = self._read_settings()
            if overwrite:
                self._clear()
            elif self._has_results():
                self._check_settings(found, settings)
        elif any(not path.name.startswith(".") for path in self.root.iterdir()):
            raise ValueError(self._foreign())
        with atomic_path(self.settings) as path:
            path.write_text(json.dumps(settings, indent=2) + "\n")
        remove_abandoned(self.root)
        made = [
            self.flow(0),
            self.picture(0, "flow"),
            *(self.flow(0, t) for t in self.times),
        ]
        for path in (*made, *(self.extra(0, name) for name in self.extras)):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(path.parent)

    def _foreign(self) -> str:
        return f"{self.root}: not empty, and not written by flowfuse-infer; give a new directory"

    def _read_settings(self) -> dict[str, Any]:
        """Read run.json; one that is not of flowfuse is not touched, nor what lies beside it."""
        try:
            found = json.loads(self.settings.read_text())
        except ValueError as error:
            raise ValueError(f"{self._foreign()} ({self.settings.name}: {error})") from None
        if not isinstance(found, dict) or "flowfuse" not in found:
            raise ValueError(f"{self._foreign()} ({self.settings.name} has no key 'flowfuse')")
        return found

    def _check_settings(self, found: dict[str, Any], settings: dict[str, Any]) -> None:
        changed = [
            f"{key} {found.get(key)} there, {value} now"
            for key, value in settings.items()
            if _without_paths(key, found.get(key)) != _without_paths(key, value)
        ]
        if changed:
            raise ValueError(
                f"{self.root} holds a run with other settings ({'; '.join(changed)}); "
                "give another directory, or --overwrite"
            )

    def _has_results(self) -> bool:
        """Whether a run has come to anything; an error in its input may have ended it before."""
        files = [path for directory in self._directories() for path in directory.rglob("*")]
        files += [self.metrics, self.intervals, self.video, self.page, self.tracks]
        return any(path.is_file() and not path.name.startswith(".") for path in files)

    def _clear(self) -> None:
        """Remove what a run writes; run.json stays, so that a kill leaves a known directory."""
        for directory in self._directories():
            if directory.is_dir():
                shutil.rmtree(directory)
        for path in (self.metrics, self.intervals, self.video, self.page, self.tracks):
            path.unlink(missing_ok=True)

    def _directories(self) -> tuple[Path, ...]:
        extras = (self.root / kind.folder for kind in EXTRAS.values())
        folders = (self.root / name for name in ("flow", "flow_at", "viewer", EVENT_FLOW))
        return *folders, self.pictures, *extras


def playback(starts: Sequence[int]) -> tuple[list[float], int]:
    """When a video shows what begins at some times, and how much slower than it happened.

    Args:
        starts: increasing, microseconds.

    Returns:
        Seconds of the video, from 0, and the factor by which they are longer: one of SLOW_DOWNS, so
        that a picture is shown for LEAST_SHOWN in the median, and for LONGEST_SHOWN at most.
    """
    steps = np.diff(np.asarray(starts, np.int64)) * 1e-6
    median = float(np.median(steps)) if len(steps) else LEAST_SHOWN
    # A camera of nominally 60 Hz may be a little faster.
    fitting = (factor for factor in SLOW_DOWNS if factor * median >= 0.9 * LEAST_SHOWN)
    factor = next(fitting, SLOW_DOWNS[-1])
    shown = np.minimum(steps * factor, max(LONGEST_SHOWN, median * factor))
    return [0.0, *np.cumsum(np.maximum(shown, 1e-3)).tolist()], factor


def _beginning(recording: Recording, interval: Interval) -> tuple[np.ndarray | None, Events]:
    """The frame at t0 and the events right after it."""
    end = interval.t0 + round(EVENT_SHARE * (interval.t1 - interval.t0))
    frame0 = recording.frame(interval.frames[0]) if interval.frames else None
    return frame0, recording.events(interval.t0, max(end, interval.t0 + 1))
