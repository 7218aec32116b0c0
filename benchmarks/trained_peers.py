"""Measure networks trained alike: ours beside raft_small (frames) and E-RAFT (events).

    python benchmarks/trained_peers.py --runs RUNS --recipe r.yaml --samples 4000 --train
    python benchmarks/trained_peers.py --runs RUNS --measure --cache scenes -o OUT
    python benchmarks/trained_peers.py --runs RUNS --time --threads 2 -o OUT

--train: all networks see the same samples of generated scenes in the same order, in the same crops
and batches, with the same optimizer (AdamW), learning rate and clipping, from random weights, and
no average of weights is taken. No modality is left out. A recipe of flowfuse-train says all this.
The peers learn by RAFT's sequence loss, ours by its own losses. Trainings go on where they stopped.
A short training tells how fast a network learns, not where it ends.

raft_small is torchvision's; it sees both frames, gray repeated to RGB. E-RAFT (benchmarks/peers.py)
sees what a sample holds of events: as its new voxel grid the 12 bins of the four slices between
the frames, as its old one the 3 bins of the slice before, after nine bins of zeros. The published
one has an old grid of a whole interval.

--measure: EPE on held-out generated scenes (those of benchmarks/accuracy.py) and real recordings,
over the valid pixels of a set, beside the shipped network, DIS and Farneback on the frames. Sets
of events alone say little of our networks trained here, which always had frames. --time:
one estimate of 640 x 480 px from frames and 10^6 events to flow; nothing else may run meanwhile.
-o OUT writes OUT.json, OUT.md and, once both are known, OUT.png: EPE over time. What the file has
already is kept, so both may run apart.
"""

from __future__ import annotations

import json
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accuracy import SETS, CaseSet, SceneCase, SceneSet
from curves import Curve, draw_curves
from jsonargparse import Namespace
from measuring import (
    FULL,
    OneLineParser,
    heading,
    new_report,
    number,
    result_file,
    table,
    time_interleaved,
    write,
)
from networks import moving_sequence
from peer_training import CHECKPOINT, MODEL, PEERS, SPEC, EventRaft, describe_training, train_all
from tqdm import tqdm

import flowfuse
from flowfuse.cli.console import leave, parse_count, run_command
from flowfuse.evaluation.baselines import DIS, FARNEBACK, ZERO, dense_inverse_search, farneback
from flowfuse.evaluation.cases import Case, PairCase, pair_case, real_sets
from flowfuse.inputs import ModelInputs, prepare_inputs
from flowfuse.model import CONFIGS
from flowfuse.visualization import contact_sheet, write_image

OUR_ITERATIONS, PEER_ITERATIONS = (1, 2, 3, 4), (1, 2, 4, 6, 12)
TIMED_SIZE = (480, 640)  # height and width, px
SHIPPED = "shipped small"
GENERATED, REAL, ROTATION = "generated", "real", "rotation"  # kinds of sets; the last has no frames


class Ours:
    """A checkpoint of flowfuse, at several numbers of iterations.

    Args:
        checkpoint: shipped name or path.
        mode: what it is shown, "fused", "frames" or "events".
        iterations: at which it is measured.
    """

    def __init__(
        self, checkpoint: str, mode: str = "fused", iterations: Sequence[int] = OUR_ITERATIONS
    ) -> None:
        self.estimator, self.mode = flowfuse.load(checkpoint, device="cpu"), mode
        self.parameters = sum(values.numel() for values in self.estimator.model.parameters())
        self.iterations = tuple(iterations)

    def estimate(self, case: Case, iterations: int) -> np.ndarray | None:
        """The flow [2, H, W] px; None where the case has nothing for it to see."""
        if case.frames is None and self.mode == "frames":
            return None
        mode = "events" if case.frames is None else self.mode
        return case.estimate(self.estimator, mode, iterations).displacements[-1]

    def estimates(self, case: Case) -> dict[int, np.ndarray]:
        """The flow of every number of iterations."""
        flows = {count: self.estimate(case, count) for count in self.iterations}
        return {count: flow for count, flow in flows.items() if flow is not None}


class Peer:
    """A trained peer; methods as of :class:`Ours`."""

    iterations = PEER_ITERATIONS

    def __init__(self, name: str, checkpoint: Path) -> None:
        self.module = PEERS[name]().eval()
        self.module.load_state_dict(torch.load(checkpoint, weights_only=True)["module"])
        self.parameters = sum(values.numel() for values in self.module.parameters())

    def estimate(self, case: Case, iterations: int) -> np.ndarray | None:
        if not self._sees(case):
            return None
        with torch.inference_mode():
            return self.module.last(inputs_of(case), iterations)[0].numpy()

    def estimates(self, case: Case) -> dict[int, np.ndarray]:
        if not self._sees(case):
            return {}
        with torch.inference_mode():
            flows = self.module(inputs_of(case), max(self.iterations))
        return {count: flows[count - 1][0].numpy() for count in self.iterations}

    def _sees(self, case: Case) -> bool:
        return case.frames is not None or isinstance(self.module, EventRaft)


class Baseline:
    """A method on the frames without iterations; methods as of :class:`Ours`."""

    iterations, parameters = (0,), 0

    def __init__(self, method: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        self.method = method

    def estimate(self, case: Case, iterations: int) -> np.ndarray | None:
        return None if case.frames is None else self.method(*case.gray)

    def estimates(self, case: Case) -> dict[int, np.ndarray]:
        return {} if case.frames is None else {0: self.method(*case.gray)}


def inputs_of(case: Case) -> ModelInputs:
    """What a case shows to a network, as a batch of one."""
    if isinstance(case, SceneCase):
        return case.samples[SPEC.slices, SPEC.bins].inputs.as_batch()
    assert isinstance(case, PairCase), "there are no others"
    frames = case.gray if case.frames is not None else (None, None)
    return prepare_inputs(*frames, case.events, t0=case.t0, t1=case.t1, spec=SPEC).as_batch()


def load_methods(options: Namespace) -> dict[str, Ours | Peer | Baseline]:
    """All that is measured; a network that is not trained is left out."""
    methods: dict[str, Ours | Peer | Baseline] = {
        SHIPPED: Ours("small"),
        f"{SHIPPED}, frames only": Ours("small", "frames", [CONFIGS["small"].iterations]),
        f"{SHIPPED}, events only": Ours("small", "events", [CONFIGS["small"].iterations]),
    }
    for name in options.networks:
        checkpoint = options.runs / name / (CHECKPOINT if name in PEERS else MODEL)
        if checkpoint.exists():
            methods[name] = Peer(name, checkpoint) if name in PEERS else Ours(str(checkpoint))
    return methods | {DIS: Baseline(dense_inverse_search), FARNEBACK: Baseline(farneback)}


def measure_set(methods: Mapping[str, Ours | Peer | Baseline], cases: CaseSet) -> dict:
    """(method, iterations) -> EPE in px over the valid pixels of a set; zero flow beside."""
    sums: dict[tuple[str, int], float] = {}
    pixels = 0
    for index in tqdm(range(len(cases)), desc=cases.name):
        case = cases[index]
        truth, valid = case.known.displacements[-1], np.asarray(case.known.valid[-1], bool)
        pixels += int(valid.sum())
        flows = {(ZERO, 0): np.zeros_like(truth)}
        for name, method in methods.items():
            flows |= {(name, count): flow for count, flow in method.estimates(case).items()}
        for key, flow in flows.items():
            error = np.hypot(*(flow - truth).astype(np.float64))[valid]
            sums[key] = sums.get(key, 0.0) + float(error.sum())
    return {key: total / pixels for key, total in sums.items()}


def measure(options: Namespace, report: dict) -> None:
    """Add the EPE of all sets to a report, which is written after each."""
    methods = load_methods(options)
    slicing = {(SPEC.slices, SPEC.bins)}
    sets: dict[str, list[CaseSet]] = {
        GENERATED: [
            SceneSet(name, options.scenes, tuple(options.size), slicing, options.cache)
            for name in options.sets
        ]
    }
    if options.recordings is not None:
        for cases in real_sets(options.recordings):
            kind = ROTATION if cases[0].frames is None else REAL
            sets.setdefault(kind, []).append(cases)
    report["sets"] = {kind: [cases.name for cases in found] for kind, found in sets.items()}
    report["parameters"] = {name: method.parameters for name, method in methods.items()}
    trained = [name for name in options.networks if name in methods]
    report["trainings"] = {name: describe_training(options.runs / name) for name in trained}
    for row in report["rows"]:
        row["epe"] = {}
    for cases in (cases for found in sets.values() for cases in found):
        for (name, count), epe in measure_set(methods, cases).items():
            find_row(report, name, count)["epe"][cases.name] = epe
        write_report(report, options.output)


def find_row(report: dict, name: str, iterations: int) -> dict[str, Any]:
    """The row of a method at a number of iterations, new if it is not there."""
    for row in report["rows"]:
        if (row["method"], row["iterations"]) == (name, iterations):
            return row
    row = {"method": name, "iterations": iterations, "ms": None, "epe": {}}
    report["rows"].append(row)
    return row


def time_all(options: Namespace, report: dict) -> None:
    """Add the times of one estimate to a report."""
    sequence = moving_sequence(*TIMED_SIZE)
    frames = (sequence.frame0, sequence.frame1)
    case = pair_case("edges", frames, sequence.events, sequence.t0, sequence.t1, None)
    calls, methods = {}, load_methods(options)
    cv2.setNumThreads(torch.get_num_threads())
    for name, method in methods.items():
        for count in method.iterations:
            call = lambda method=method, count=count: [method.estimate(case, count)]  # noqa: E731
            call()  # warm
            calls[name, count] = call
    for (name, count), found in time_interleaved(calls, "cpu", FULL).items():
        find_row(report, name, count)["ms"] = found.median
    now = new_report("cpu", False, None)
    report |= {key: now[key] for key in ("date", "commit", "machine", "versions")}


# Reports


def mean_epe(row: Mapping, sets: Sequence[str]) -> float | None:
    """The geometric mean over sets: each counts alike, whatever its motion; None: some lack."""
    values = [row["epe"].get(name) for name in sets]
    if not values or None in values:
        return None
    return float(np.exp(np.mean(np.log(np.maximum(values, 1e-9)))))


def as_markdown(report: Mapping) -> str:
    """A report as text with two tables."""
    sets, learned = report["sets"], report["trainings"]
    names = [name for found in sets.values() for name in found]
    lines = [
        *heading(report),
        "EPE in px over the valid pixels of a set; mean: geometric, over the sets of a kind. ms: "
        "one estimate at 640 x 480 px from frames and 10^6 events to flow. Rotation sets are "
        "events alone, which our networks trained here have never seen.",
        "",
    ]
    means = [kind for kind in (GENERATED, REAL) if kind in sets]
    titles = ["method", "iterations", "ms", *(f"mean, {kind}" for kind in means), *names]
    rows = [
        [row["method"], str(row["iterations"] or ""), number(row["ms"], ".0f")]
        + [number(mean_epe(row, sets[kind]), ".2f") for kind in means]
        + [number(row["epe"].get(name), ".2f") for name in names]
        for row in report["rows"]
    ]
    lines += table(titles, rows)
    lines += ["", "Trained alike, from random weights:", ""]
    titles = [
        "network", "parameters", "samples", "steps", "iterations", "s per step", "EPE in training",
    ]  # fmt: skip
    rows = [
        [
            name,
            f"{report['parameters'][name]:,}",
            f"{found['samples']:,}",
            f"{found['steps']:,}",
            found["iterations"],
            f"{found['seconds_per_step']:.2f}",
            f"{found['training_epe']:.2f}",
        ]
        for name, found in learned.items()
    ]
    return "\n".join(lines + table(titles, rows)) + "\n"


def write_report(report: Mapping, output: Path) -> None:
    """Write OUT.json and OUT.md, and OUT.png where times and errors are known."""
    write(Path(f"{output}.json"), json.dumps(report, indent=1) + "\n")
    write(Path(f"{output}.md"), as_markdown(report))
    panels = {}
    for kind in (GENERATED, REAL):
        lines = curves(report, report["sets"].get(kind, []))
        if lines:
            panels[f"EPE, px, over ms: {kind} sets (geometric mean)"] = draw_curves(lines)
    if panels:
        write_image(f"{output}.png", contact_sheet(list(panels.values()), list(panels)))


def curves(report: Mapping, sets: Sequence[str]) -> dict[str, Curve]:
    """The points of every method whose time and error are known."""
    found: dict[str, Curve] = {}
    for row in report["rows"]:
        epe = mean_epe(row, sets)
        if epe is not None and row["ms"] is not None:
            found.setdefault(row["method"], []).append((row["ms"], epe, row["iterations"]))
    return found


def load_report(output: Path) -> dict[str, Any]:
    """What OUT.json has, or a report without rows."""
    path = Path(f"{output}.json")
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    return new_report("cpu", False, None) | {"sets": {}, "parameters": {}, "trainings": {}}


def build_parser() -> OneLineParser:
    """Build the command line."""
    parser = OneLineParser(
        __doc__, prog="trained_peers", formatter_class=RawDescriptionHelpFormatter
    )
    known = (*PEERS, *CONFIGS)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the trainings")
    parser.add_argument(
        "--networks", nargs="+", choices=known, default=["raft_small", "eraft", "small"],
        metavar="NAME", help=f"{', '.join(known)} (raft_small eraft small)",
    )  # fmt: skip
    parser.add_argument("--train", action="store_true", help="train them, or go on with it")
    parser.add_argument("--measure", action="store_true", help="measure EPE")
    parser.add_argument("--time", action="store_true", help="measure time; let nothing else run")
    parser.add_argument("--recipe", help="as flowfuse-train --config: what all are trained by")
    parser.add_argument("--samples", type=parse_count, default=4000, help="of each training (4000)")
    parser.add_argument(
        "--train-iterations", type=parse_count, default=12, help="of the peers in training (12)"
    )
    parser.add_argument("--textures", type=Path, help="photographs for the scenes of trainings")
    parser.add_argument("--cache", type=Path, help="folder that keeps scenes between runs")
    parser.add_argument("--sets", nargs="*", default=list(SETS), metavar="SET", help="to measure")
    parser.add_argument("--scenes", type=parse_count, default=48, help="of each set (48)")
    parser.add_argument("--size", type=int, nargs=2, default=[240, 320], metavar=("H", "W"))
    parser.add_argument("--recordings", type=Path, metavar="DIR", help="real, with ground truth")
    parser.add_argument("--threads", type=parse_count, help="CPU threads (torch's own number)")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="OUT.json, .md, .png")
    return parser


def run(options: Namespace) -> int:
    """Train, measure and time what was asked for."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.train and (code := train_all(options)):
        return code
    if options.measure or options.time:
        report = load_report(options.output)
        if options.measure:
            measure(options, report)
        if options.time:
            time_all(options, report)
        write_report(report, options.output)
        print(as_markdown(report))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 1 on an error, which is printed in one line."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if not (options.train or options.measure or options.time):
        parser.error("nothing to do: add --train, --measure or --time")
    if (options.measure or options.time) and options.output is None:
        parser.error("--measure and --time write OUT.json: name it with -o OUT")
    if options.output is not None:
        try:
            result_file(f"{options.output}.json")
        except ArgumentTypeError as error:
            parser.error(str(error))
    return run_command("trained_peers", lambda: run(options), output=options.output)


if __name__ == "__main__":
    leave(main())
