"""Measure checkpoints on generated test sets, on images with ground truth, and on recordings.

    python benchmarks/accuracy.py --cache scenes --prepare --workers 8
    python benchmarks/accuracy.py --cache scenes -o benchmarks/results/today
    python benchmarks/accuracy.py --checkpoint small --checkpoint plain=runs/x/model.safetensors
    python benchmarks/accuracy.py --sets --recordings ../data/real_flow
    python benchmarks/accuracy.py --sets --images ../data/alley_1 --recording ../data/slider_depth

Rows: every checkpoint with both modalities, with each of them alone, and with frame 0 and events;
OpenCV's DIS (medium) and Farneback on the frames; zero flow. Ratios are to the first row and to
DIS, and of the fused error to that of the better single modality: 1 means that fusing costs
nothing. --without adds rows of the first checkpoint with one part switched off. The generated
scenes are always the same: their seed, and the families of textures and motions that they are drawn
from, belong to this script, and no training uses them. Sweeps pool all generated sets. Real
recordings of events alone are measured with and without history. -o OUT writes OUT.json, OUT.md and
pictures in OUT/: of every set the case that is best, median and worst in the first row's EPE over
that of zero flow.
"""

from __future__ import annotations

import json
import re
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace
from measuring import OneLineParser, commit, machine, result_file, versions, write
from parts import PARTS, switch_off
from tqdm import tqdm

import flowfuse
from flowfuse.cli.console import leave, parse_count, run_command
from flowfuse.data.augment import drop_second_frame
from flowfuse.data.samples import Sample
from flowfuse.data.synthetic.camera import srgb_to_linear
from flowfuse.data.synthetic.dataset import SceneDataset
from flowfuse.data.synthetic.presets import PRESETS, SENSORS, find_preset
from flowfuse.data.synthetic.scenes import Scene
from flowfuse.estimator import Estimator
from flowfuse.evaluation.baselines import DIS, ZERO, baseline_flows
from flowfuse.evaluation.cases import (
    Case,
    ImageSet,
    RealPairs,
    RealRotation,
    real_sets,
    recording_cases,
)
from flowfuse.evaluation.evaluate import ALL, Estimate, Evaluation, GroundTruth, pair_sums
from flowfuse.evaluation.metrics import Sums, event_sharpness, photometric_error
from flowfuse.evaluation.pictures import draw_case, pick
from flowfuse.evaluation.report import COMPARED, COMPARED_WITHOUT_TRUTH, as_markdown, without_nan
from flowfuse.evaluation.statistics import (
    Facts,
    Histograms,
    Tally,
    compare_seeds,
    displacement_sums,
    fusion_ratio,
    summarize,
    sweeps,
)
from flowfuse.evaluation.thresholds import boundary_histogram, certainty_histogram
from flowfuse.geometry.bezier import bezier
from flowfuse.geometry.laplace import expected_error
from flowfuse.model import CONFIGS
from flowfuse.model.checkpoint import read_header, resolve_checkpoint
from flowfuse.training.sampling import TEST_SEED
from flowfuse.training.validation import MODES, gray_frames, polarity_events

SETS = ("slow", "fast", "blur", "dark", "mixed", "driving", "flicker", "thin")
MAX_STEP = 0.5  # px between two instants that are rendered
SHOWN = MODES | {"frame 0": drop_second_frame}  # what each mode leaves of a sample
Slicing = tuple[int, int]  # K slices, bins per slice: what a network wants its events in


@dataclass(frozen=True)
class Network:
    """A checkpoint as rows of the tables.

    Attributes:
        label: what its rows begin with.
        path: of the checkpoint.
        lacks: parts that are switched off; such a network is run with both modalities only.
        device, bf16, iterations: how it runs.
    """

    label: str
    path: Path
    lacks: tuple[str, ...] = ()
    device: str = "cpu"
    bf16: bool = False
    iterations: int | None = None

    @classmethod
    def parse(cls, text: str, **how: object) -> Network:
        """From "small", "runs/x.safetensors" or "label=runs/x.safetensors".

        Raises:
            FileNotFoundError, ValueError: there is no such checkpoint.
        """
        label, path = re.fullmatch(r"(?:([^=/]+)=)?(.*)", text).groups()
        return cls(label or Path(path).stem, resolve_checkpoint(path), **how)

    @cached_property
    def estimator(self) -> Estimator:
        dtype = torch.bfloat16 if self.bf16 else None
        estimator = flowfuse.load(self.path, device=self.device, dtype=dtype)
        switch_off(estimator.model, self.lacks)
        return estimator

    def without(self, part: str) -> Network:
        """The same network, a part of :data:`parts.PARTS` switched off."""
        return replace(self, label=f"{self.label} without {part}", lacks=(part,))

    @cached_property
    def slicing(self) -> Slicing:
        """How it wants events sliced; read without loading the weights."""
        config = read_header(self.path)[0]
        return config.slices, config.bins

    @property
    def modes(self) -> dict[str, str]:
        """Row -> mode: first what it was built for, then, if it has both modalities, with less."""
        config = self.estimator.model.config
        if self.lacks or not (config.frames and config.events):
            return {self.label: "fused"}
        return {
            f"{self.label} fused": "fused",
            f"{self.label} frames only": "frames",
            f"{self.label} events only": "events",
            f"{self.label} frame 0 and events": "frame 0",
        }

    @property
    def row(self) -> str:
        """The row with all its modalities."""
        return next(iter(self.modes))


def estimate_all(networks: Sequence[Network], case: Case) -> dict[str, Estimate]:
    """Run every row that a case has something to show to, each once."""
    found = {
        row: case.estimate(network.estimator, mode, network.iterations)
        for network in networks
        for row, mode in network.modes.items()
        if case.frames is not None or mode == "events"
    }
    if case.frames is None:
        flows = {ZERO: np.zeros((2, case.events.height, case.events.width), np.float32)}
    else:
        flows = baseline_flows(*case.gray)
    line = case.tau[:, None, None, None]  # they know no path
    return found | {name: Estimate(line * flow) for name, flow in flows.items()}


def measure_estimate(
    estimate: Estimate, known: GroundTruth, counted: np.ndarray, outlier_fraction: float
) -> Sums:
    """All measures, and the error by bins of true displacement."""
    sums = pair_sums(estimate, known, counted, outlier_fraction)
    length = np.hypot(*known.displacements[-1].astype(np.float64))[counted]
    return sums | displacement_sums(end_point_error(estimate, known), length)


def end_point_error(estimate: Estimate, known: GroundTruth) -> np.ndarray:
    """At t1, of the valid pixels: [N] px."""
    error = estimate.displacements[-1] - known.displacements[-1]
    return np.hypot(*error.astype(np.float64))[known.valid[-1]]


def histograms(estimate: Estimate, case: Case) -> Histograms:
    """What measures need whose thresholds are those of a set; empty for flow alone."""
    found = {}
    if estimate.uncertainty is not None:
        error = end_point_error(estimate, case.known)
        expected = estimate.uncertainty[case.known.valid[-1]]
        found["certain_set"] = certainty_histogram(error, expected)
        found["certain_set_limit"] = certainty_histogram(error, error)
    if estimate.boundary is not None and case.boundary is not None:
        for i, name in enumerate(("event", "motion")):
            found[name] = boundary_histogram(estimate.boundary[i], case.boundary[i] > 0.5)
    return found


def sums_without_truth(estimate: Estimate, case: Case) -> Sums:
    """Measures that need no ground truth, of a pair with its events; each counts once per pair."""
    flow = estimate.displacements[-1]
    u, v = flow.astype(np.float64)
    measures: Mapping[str, float] = {
        "photometric": photometric_error(*case.frames, flow),
        "sharpness": event_sharpness(case.events, flow, case.t0, case.t1),
        "mean_u": u.mean(),
        "mean_v": v.mean(),
        "mean_abs_v": np.abs(v).mean(),
        "one_sign": 100 * max((u > 0).mean(), (u < 0).mean()),
    }
    # Without events in the window there is no sharpness.
    return {name: (float(m), 1) for name, m in measures.items() if np.isfinite(m)}


@dataclass(frozen=True, eq=False)
class SceneCase(Case):
    """A pair of a generated scene, which keeps the scene as samples and not as events.

    Attributes:
        samples: for every slicing.
    """

    samples: Mapping[Slicing, Sample]

    def estimate(self, estimator: Estimator, mode: str, iterations: int | None = None) -> Estimate:
        config = estimator.model.config
        sample = SHOWN[mode](self.samples[config.slices, config.bins])
        batch = Sample.collate([sample]).to(estimator.device)
        mixed = estimator.dtype != torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(estimator.device.type, torch.bfloat16, enabled=mixed),
        ):
            output = estimator.model(batch.inputs, iterations=iterations)
        with torch.inference_mode():
            points = output.control_points.float()
            return Estimate(
                bezier(points, batch.tau)[0].cpu().numpy(),
                expected_error(output.uncertainty.float())[0].cpu().numpy(),
                torch.sigmoid(output.boundary.float())[0].cpu().numpy()
                if config.boundary
                else None,
            )


class SceneSet:
    """A fixed set of generated scenes, the same ones for every slicing.

    Args:
        preset: of the scenes, "fast" or, with another sensor, "fast@v2e".
        count: how many.
        size: height and width, px.
        slicings: in which samples are wanted.
        cache: folder that keeps the samples between runs, or None.
    """

    def __init__(
        self,
        preset: str,
        count: int,
        size: tuple[int, int],
        slicings: Collection[Slicing],
        cache: Path | None,
    ) -> None:
        self.name, self.count = preset, count
        sensor = find_preset(preset).sensor
        seen = "that of most training scenes" if sensor == SENSORS[0] else f"{sensor}'s model"
        self.what = (
            f"Generated test scenes of {size[1]} x {size[0]} px: {count}. Event sensor: {seen}."
        )
        self._datasets: dict[Slicing, _SharedScenes] = {}
        for slicing in sorted(set(slicings)):
            dataset = _SharedScenes(
                preset, TEST_SEED, count, *size, *slicing, cache, max_step=MAX_STEP, split="test"
            )
            dataset.source = next(iter(self._datasets.values()), None)
            self._datasets[slicing] = dataset

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> SceneCase:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        samples = {key: dataset[index] for key, dataset in self._datasets.items()}
        sample = next(iter(samples.values()))  # what they differ in is how events are binned
        frames = tuple(gray_frames(sample))
        light = float(np.mean([srgb_to_linear(frame).mean() for frame in frames]))
        return SceneCase(
            facts=Facts(f"{self.name} {index}", float(sample.exposure.mean()), light),
            frames=frames,
            events=polarity_events(sample),
            tau=sample.tau.numpy(),
            known=GroundTruth(
                sample.flow.numpy(),
                sample.valid.numpy(),
                sample.tau.numpy(),
                motion_boundary=sample.boundary[1].numpy(),
                occluded=sample.occluded[-1].numpy(),
            ),
            boundary=sample.boundary.numpy(),
            samples=samples,
        )


class _SharedScenes(SceneDataset):
    """Scenes that are generated once, though they are kept as samples of several slicings.

    Attributes:
        source: the data set that has the scenes, or None: this one.
    """

    source: _SharedScenes | None = None
    _latest: tuple[int, Scene] | None = None

    def scene(self, index: int) -> Scene:
        if self.source is not None:
            return self.source.scene(index)
        if self._latest is None or self._latest[0] != index:
            self._latest = (index, super().scene(index))
        return self._latest[1]


def prepare(sets: Sequence[SceneSet], workers: int) -> None:
    """Generate all scenes into the cache of the sets, in ``workers`` processes of one thread."""
    jobs = [(scenes, index) for scenes in sets for index in range(len(scenes))]
    if workers == 1:
        for job in tqdm(jobs, desc="scenes"):
            _generate(job)
        return
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for _ in tqdm(pool.map(_generate, jobs), desc="scenes", total=len(jobs)):
            pass


def _generate(job: tuple[SceneSet, int]) -> None:
    scenes, index = job
    scenes[index]


CaseSet = SceneSet | ImageSet | RealPairs | RealRotation


def measure_set(networks: Sequence[Network], cases: CaseSet) -> Tally:
    """Run all rows on all cases of a set, one case in memory at a time."""
    tally, evaluation = Tally(), Evaluation(measure=measure_estimate)
    for index in tqdm(range(len(cases)), desc=cases.name):
        case = cases[index]
        estimates = estimate_all(networks, case)
        evaluation.add(estimates, case.known)
        tally.add(
            case.facts,
            evaluation.latest[ALL],
            {row: histograms(found, case) for row, found in estimates.items()},
        )
    return tally


def measure_recording(networks: Sequence[Network], path: Path) -> dict:
    """Measure photometric error and event sharpness on a recording without ground truth."""
    tally = Tally()
    for case in tqdm(recording_cases(path), desc=path.name):
        estimates = estimate_all(networks, case)
        tally.add(
            case.facts, {row: sums_without_truth(found, case) for row, found in estimates.items()}
        )
    references = {networks[0].row: networks[0].row, ZERO: ZERO}
    return {
        "name": path.name,
        "what": f"Frame pairs without ground truth: {len(tally)}; means over them.",
        "rows": summarize(tally, references, COMPARED_WITHOUT_TRUTH.values()),
    }


def draw_picks(
    networks: Sequence[Network], cases: CaseSet, tally: Tally, output: Path | None
) -> dict[str, str]:
    """Draw the best, median and worst case: name -> path relative to the report's folder.

    The rows run on these cases again: keeping the flow of all cases would take gigabytes.
    """
    if output is None or networks[0].row not in tally.rows:
        return {}
    epe, zero = (tally.sums(row, "epe")[:, 0] for row in (networks[0].row, ZERO))
    found = {}
    for name, index in pick(epe, zero).items():
        path = output / f"{cases.name.replace('/', '-')}-{name}.png"
        case = cases[index]
        estimates = estimate_all(networks, case)
        draw_case(path, case.frames, case.events_between, case.known, case.boundary, estimates)
        found[f"{name} ({case.facts.name})"] = f"{output.name}/{path.name}"
    return found


def write_report(report: dict, markdown: str, output: Path | None) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    if output is not None:
        text = json.dumps(without_nan(report), indent=1, allow_nan=False)
        write(output.with_name(f"{output.name}.json"), text + "\n")
        write(output.with_name(f"{output.name}.md"), markdown)


def describe_run(networks: Sequence[Network]) -> dict:
    """What was measured, when, where and how, as it stands in a report."""
    first = networks[0].estimator
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": machine(first.device.type),
        "versions": versions(),
        "precision": str(first.dtype).removeprefix("torch."),
        "checkpoints": {
            network.label: str(network.path) for network in networks if not network.lacks
        },
    }


def load_networks(options: Namespace) -> list[Network]:
    """The checkpoints asked for.

    Raises:
        ValueError, FileNotFoundError: one is missing or damaged, or two have one label.
    """
    networks = [
        Network.parse(text, device=options.device, bf16=options.bf16, iterations=options.iterations)
        for text in options.checkpoint or ["small"]
    ]
    labels = [network.label for network in networks]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"--checkpoint: two are called {label}; name them: LABEL=PATH")
    return networks + [networks[0].without(part) for part in dict.fromkeys(options.without)]


def run(options: Namespace) -> None:
    """Measure, print and write what was asked for."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    networks = load_networks(options)
    slicings = {network.slicing for network in networks}
    if options.prepare:
        slicings |= {(config.slices, config.bins) for config in CONFIGS.values()}
    sets: list[CaseSet] = [
        SceneSet(name, options.scenes, tuple(options.size), slicings, options.cache)
        for name in set_names(options.sets, options.sensor)
    ]
    if options.prepare:
        prepare(sets, options.workers)
        return
    sets += [ImageSet(folder) for folder in options.images]
    if options.recordings is not None:
        sets += real_sets(options.recordings)
    for network in networks:
        _ = network.estimator  # what is wrong with a file is told before anything is measured
    report = describe_run(networks) | {
        "sets": [],
        "recordings": [],
        "sweeps": {},
    }
    if options.output is not None:
        options.output.mkdir(exist_ok=True)
    groups = seed_groups(networks, options.group)
    generated = []
    for cases in sets:
        tally = measure_set(networks, cases)
        if isinstance(cases, SceneSet):
            generated.append(tally)
        references = {row: row for row in (networks[0].row, DIS) if row in tally.rows}
        report["sets"].append(
            {
                "name": cases.name,
                "what": cases.what,
                "cases": [facts.name for facts in tally.facts],
                "rows": summarize(tally, references, COMPARED.values()),
                "fusion": {
                    network.label: fusion_ratio(tally, *fused_and_single(network))
                    for network in networks
                    if len(network.modes) > 1
                },
                "seeds": compare_seeds(tally, groups, COMPARED.values()) if groups else {},
                "pictures": draw_picks(networks, cases, tally, options.output),
            }
        )
        # Each time: a run cut short keeps what it has.
        write_report(report, as_markdown(report), options.output)
    report["recordings"] = [measure_recording(networks, path) for path in options.recording]
    if generated:
        report["sweeps"] = sweeps(Tally.pooled(generated))
    text = as_markdown(report)
    write_report(report, text, options.output)
    print(text)


def set_names(presets: Sequence[str], sensors: Sequence[str]) -> list[str]:
    """The generated sets: every preset before every sensor; "fast", "fast@v2e"."""
    return [
        preset if sensor == SENSORS[0] else f"{preset}@{sensor}"
        for sensor in dict.fromkeys(sensors)
        for preset in presets
    ]


def seed_groups(
    networks: Sequence[Network], wanted: Sequence[Sequence[str]]
) -> dict[str, list[str]]:
    """The rows of every --group.

    Raises:
        ValueError: a checkpoint is not there, or the groups are not as large as each other.
    """
    rows = {network.label: network.row for network in networks}
    for name, *labels in wanted:
        for label in labels:
            if label not in rows:
                raise ValueError(f"--group {name}: no --checkpoint is called {label}")
    groups = {name: [rows[label] for label in labels] for name, *labels in wanted}
    if wanted and (len(groups) < 2 or len({len(own) for own in groups.values()}) > 1):
        raise ValueError("--group: two or more are needed, with as many checkpoints in each")
    return groups


def fused_and_single(network: Network) -> tuple[str, list[str]]:
    """The row with both modalities, and those with one each."""
    modes = network.modes
    return network.row, [row for row, mode in modes.items() if mode in ("frames", "events")]


def build_parser() -> OneLineParser:
    """Build the command line."""
    parser = OneLineParser(__doc__, prog="accuracy", formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", action="append", metavar="[LABEL=]CHECKPOINT",
        help="shipped name or path; repeat for several (default: small)",
    )  # fmt: skip
    parser.add_argument(
        "--without", nargs="+", choices=list(PARTS), default=[], metavar="PART",
        help="rows of the first checkpoint with one part switched off each, both modalities: "
        f"{' '.join(PARTS)}",
    )  # fmt: skip
    parser.add_argument(
        "--group", nargs="+", action="append", default=[], metavar=("NAME", "LABEL"),
        help="checkpoints that differ in their seeds, in order; the first group is compared with "
        "each of the others",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=Path, nargs="*", default=[], metavar="DIR",
        help="folders of images with ground truth; events are simulated",
    )  # fmt: skip
    parser.add_argument(
        "--recording", type=Path, nargs="*", default=[], help="recordings without ground truth"
    )
    parser.add_argument(
        "--recordings", type=Path, metavar="DIR", help="folder of real recordings with ground truth"
    )
    parser.add_argument(
        "--sensor", nargs="+", choices=SENSORS, default=[SENSORS[0]],
        help="event sensors that watch the generated sets: default, that of most training scenes, "
        "or v2e's model (default)",
    )  # fmt: skip
    parser.add_argument("--iterations", type=parse_count, help="recurrent updates (the model's)")
    parser.add_argument("--threads", type=parse_count, help="CPU threads (torch's own number)")
    parser.add_argument(
        "--prepare", action="store_true", help="only generate the scenes into --cache"
    )
    parser.add_argument("--workers", type=parse_count, default=1, help="processes of --prepare (1)")
    parser.add_argument(
        "-o", "--output", type=output_name, metavar="OUT", help="write OUT.json, OUT.md and OUT/"
    )
    add_set_arguments(parser, SETS)
    return parser


def add_set_arguments(parser: OneLineParser, sets: Sequence[str]) -> None:
    """Add what every measurement on generated scenes can be told."""
    parser.add_argument(
        "--sets", nargs="*", default=list(sets), choices=list(PRESETS), metavar="SET",
        help=f"presets of generated scenes ({' '.join(sets)})",
    )  # fmt: skip
    parser.add_argument("--scenes", type=parse_count, default=64, help="of each set (64)")
    parser.add_argument("--size", type=int, nargs=2, default=[240, 320], metavar=("H", "W"))
    parser.add_argument("--cache", type=Path, help="folder that keeps the scenes between runs")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or auto (cpu)")
    parser.add_argument("--bf16", action="store_true", help="run the networks in bfloat16")


def output_name(text: str) -> Path:
    """A name beside which results can be written, known before anything is measured."""
    path = Path(text)
    if not path.name:
        raise ArgumentTypeError(f"{path} is a directory, expected a name in it")
    if path.exists() and not path.is_dir():
        raise ArgumentTypeError(f"{path} exists and is no directory for pictures")
    for suffix in (".json", ".md"):
        result_file(f"{path}{suffix}")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 1 on an error, which is printed in one line."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.prepare and options.cache is None:
        parser.error("--prepare keeps scenes in --cache, which is not given")
    given = options.images or options.recording or options.recordings
    if not options.sets and (options.prepare or not given):
        others = "" if options.prepare else ", or --images, --recordings or --recording"
        parser.error(f"--sets names no set, so there is nothing to do: name some{others}")
    return run_command("accuracy", lambda: run(options), output=options.output)


if __name__ == "__main__":
    leave(main())
