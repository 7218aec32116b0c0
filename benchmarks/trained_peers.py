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
over the valid pixels of a set, beside the shipped network, DIS and Farneback on the frames. --time:
one estimate of 640 x 480 px from frames and 10^6 events to flow; nothing else may run meanwhile.
-o OUT writes OUT.json, OUT.md and, once both are known, OUT.png: EPE over time. What the file has
already is kept, so both may run apart.
"""

from __future__ import annotations

import csv
import json
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accuracy import SETS, CaseSet, SceneCase, SceneSet
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
from peers import ERaft
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import flowfuse
from flowfuse.cli import train
from flowfuse.cli.console import leave, parse_count, run_command
from flowfuse.cli.train_options import read_command_line
from flowfuse.config import read_yaml, write_yaml
from flowfuse.evaluation.baselines import DIS, FARNEBACK, ZERO, dense_inverse_search, farneback
from flowfuse.evaluation.cases import Case, PairCase, pair_case, real_sets
from flowfuse.geometry.grid import pad_to_multiple
from flowfuse.inputs import InputSpec, ModelInputs, prepare_inputs
from flowfuse.io.atomic import atomic_path
from flowfuse.model import CONFIGS
from flowfuse.training.log import TrainingLog
from flowfuse.training.pools import make_pool
from flowfuse.training.sampling import StepSamples, batches
from flowfuse.training.schedule import learning_rate_at
from flowfuse.training.settings import TrainConfig
from flowfuse.visualization import contact_sheet, write_image

SPEC = InputSpec(slices=4, bins=3)  # of all samples, whichever network sees them
GAMMA = 0.8  # of RAFT's sequence loss
OUR_ITERATIONS, PEER_ITERATIONS = (1, 2, 3, 4), (1, 2, 4, 6, 12)
SHIPPED = "shipped small"
# Options of flowfuse-train that make it alike: all modalities, no average, no validation between.
ALIKE = (
    "--augment.drop-frames 0 --augment.drop-events 0 --augment.drop-history 0 --ema 0 "
    "--validate-every 1000000000 --validation-scenes 1 --checkpoint-every 100 --no-tensorboard "
    "--device cpu --resume"
).split()
MODEL = "model.safetensors"  # what flowfuse-train leaves
GENERATED, REAL, ROTATION = "generated", "real", "rotation"  # kinds of sets; the last has no frames


def standardize(grid: Tensor) -> Tensor:
    """E-RAFT's voxel grids [B, C, H, W]: mean 0, deviation 1 over the non-zero cells of each."""
    filled, axes = grid != 0, (1, 2, 3)
    count = filled.sum(axes, keepdim=True)
    centred = torch.where(filled, grid - grid.sum(axes, keepdim=True) / count.clamp(min=1), 0)
    variance = centred.square().sum(axes, keepdim=True) / (count - 1).clamp(min=1)
    return centred / variance.sqrt().clamp(min=1e-6)


def event_grids(slices: Tensor) -> tuple[Tensor, Tensor]:
    """Event slices [B, K + 1, bins, H, W] as E-RAFT's old and new grid, [B, K bins, H, W] each."""
    old, new = slices[:, 0], slices[:, 1:].flatten(1, 2)
    missing = new.shape[1] - old.shape[1]  # before the slice
    return standardize(F.pad(old, (0, 0, 0, 0, missing, 0))), standardize(new)


class FrameRaft(nn.Module):
    """torchvision's raft_small: inputs and a number of iterations -> the flow of each."""

    STRIDE, SMALLEST = 8, 128  # px of an image

    def __init__(self) -> None:
        super().__init__()
        try:
            from torchvision.models.optical_flow import raft_small
        except ImportError as error:
            reason = f"raft_small needs torchvision: pip install torchvision ({error})"
            raise ImportError(reason) from None
        self.network = raft_small(weights=None)

    def forward(self, inputs: ModelInputs, iterations: int) -> list[Tensor]:
        height, width = inputs.frame0.shape[-2:]
        room = [max(0, self.SMALLEST - size) for size in (width, height)]
        frames = (
            F.pad(pad_to_multiple(frame, self.STRIDE), (0, room[0], 0, room[1]), mode="replicate")
            for frame in (inputs.frame0, inputs.frame1)
        )
        images = ((2 * frame - 1).expand(-1, 3, -1, -1) for frame in frames)
        flows = self.network(*images, num_flow_updates=iterations)
        return [flow[..., :height, :width] for flow in flows]

    def last(self, inputs: ModelInputs, iterations: int) -> Tensor:
        return self(inputs, iterations)[-1]


class EventRaft(nn.Module):
    """E-RAFT on event slices: inputs and a number of iterations -> the flow of each."""

    def __init__(self) -> None:
        super().__init__()
        self.network = ERaft(SPEC.slices * SPEC.bins)

    def forward(self, inputs: ModelInputs, iterations: int) -> list[Tensor]:
        return self.network.flows(*event_grids(inputs.slices), iterations)

    def last(self, inputs: ModelInputs, iterations: int) -> Tensor:
        return self.network(*event_grids(inputs.slices), iterations)


PEERS: dict[str, type[FrameRaft] | type[EventRaft]] = {"raft_small": FrameRaft, "eraft": EventRaft}


# Training


def sequence_loss(flows: Sequence[Tensor], ground_truth: Tensor, valid: Tensor) -> Tensor:
    """RAFT's: the absolute error of every iteration, an earlier one GAMMA times the next.

    Args:
        flows: [B, 2, H, W] px of each iteration.
        ground_truth: [B, 2, H, W] px.
        valid: [B, H, W] bool.
    """
    known, loss = valid.sum().clamp(min=1), ground_truth.new_zeros(())
    for i, flow in enumerate(reversed(flows)):
        error = torch.where(valid.unsqueeze(1), flow - ground_truth, 0)
        loss = loss + GAMMA**i * error.abs().sum() / known
    return loss


def train_words(name: str, folder: Path, options: Namespace) -> list[str]:
    """What flowfuse-train is told; of a peer, its settings are taken alone."""
    batch = read_command_line([*recipe_words(options), "-o", str(folder)])[0].batch
    steps = str(options.samples // batch)
    ours = ["--model", name] if name in CONFIGS else []
    return [*recipe_words(options), *ALIKE, *ours, "--steps", steps, "-o", str(folder)]


def recipe_words(options: Namespace) -> list[str]:
    words = [] if options.recipe is None else ["--config", options.recipe]
    for name in ("cache", "textures"):
        value = getattr(options, name)
        words += [] if value is None else [f"--{name}", str(value)]
    return words


def train_peer(name: str, config: TrainConfig, folder: Path, iterations: int) -> None:
    """Train a peer, or go on with it; writes a checkpoint, config.yaml and log.csv."""
    torch.manual_seed(config.seed)
    module = PEERS[name]().train()
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=config.weight_decay)
    done, path = 0, folder / "checkpoint.pt"
    fixed = {"steps": config.steps, "batch": config.batch, "iterations": iterations}
    if path.exists():
        saved = torch.load(path, weights_only=True)
        if saved["fixed"] != fixed:
            raise ValueError(f"{path}: was trained with {saved['fixed']}, expected {fixed}")
        done = saved["step"]
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(folder / "config.yaml", config)
    log = TrainingLog(folder, done, tensorboard=False)
    samples = StepSamples(make_pool(config), config.seed, config.plan(), config.augment)
    steps = range(done + 1, config.steps + 1)
    feed = batches(
        samples, first_step=done + 1, last_step=config.steps, workers=config.workers, pin=False
    )
    bar, sums = tqdm(steps, desc=name, initial=done, total=config.steps), np.zeros(2)
    for step in bar:
        batch = next(feed)
        optimizer.param_groups[0]["lr"] = learning_rate_at(
            step, config.steps, config.learning_rate, config.warmup
        )
        flows = module(batch.inputs, iterations)
        ground_truth, valid = batch.flow[:, -1], batch.valid[:, -1]
        loss = sequence_loss(flows, ground_truth, valid)
        if not loss.isfinite():
            raise ValueError(f"{name}, step {step}: the loss is {loss.item()}, expected a number")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), config.clip)
        optimizer.step()
        error = (flows[-1].detach() - ground_truth).norm(dim=1)[valid]
        sums += loss.item(), error.mean().item() if len(error) else 0.0
        last = step == config.steps
        if step % config.log_every == 0 or last:
            since = (step - 1) % config.log_every + 1
            seconds = bar.format_dict["elapsed"] / (step - done)
            log.log_training(
                step, dict(loss=sums[0] / since, epe=sums[1] / since, seconds_per_step=seconds)
            )
            sums[:] = 0
        if step % config.checkpoint_every == 0 or last:
            found = {"step": step, "fixed": fixed, "module": module.state_dict()}
            with atomic_path(path) as partial:
                torch.save(found | {"optimizer": optimizer.state_dict()}, partial)
    log.close()


def train_all(options: Namespace) -> int:
    """Train what is asked for, one after the other; returns an exit code."""
    for name in options.networks:
        folder = options.runs / name
        words = train_words(name, folder, options)
        if name in PEERS:
            resumed = [word for word in words if word != "--resume"]
            train_peer(name, read_command_line(resumed)[0], folder, options.train_iterations)
        elif code := train.main(words):
            return code
    return 0


def describe_training(folder: Path) -> dict[str, float]:
    """What a training was: samples, steps, seconds a step, and the EPE of its last lines."""
    config = read_yaml(folder / "config.yaml")
    with open(folder / "log.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    steps = int(lines[-1]["step"])
    seconds = [float(line["seconds_per_step"]) for line in lines]
    return {
        "steps": steps,
        "samples": steps * config["batch"],
        "seconds_per_step": float(np.median(seconds)),
        "training_epe": float(np.mean([float(line["epe"]) for line in lines[-5:]])),
    }


# Measuring


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
        checkpoint = options.runs / name / ("checkpoint.pt" if name in PEERS else MODEL)
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
    sequence = moving_sequence(480, 640)
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
    lines = heading(report) + [
        "EPE in px over the valid pixels of a set; mean: geometric, over the sets of a kind. ms: one "
        "estimate at 640 x 480 px from frames and 10^6 events to flow.",
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
    titles = ["network", "parameters", "samples", "steps", "s per step", "EPE in training"]
    rows = [
        [name, f"{report['parameters'][name]:,}", f"{found['samples']:,}", f"{found['steps']:,}"]
        + [f"{found['seconds_per_step']:.2f}", f"{found['training_epe']:.2f}"]
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


Curve = list[tuple[float, float, int]]  # ms, EPE in px, iterations


def curves(report: Mapping, sets: Sequence[str]) -> dict[str, Curve]:
    """The points of every method whose time and error are known."""
    found: dict[str, Curve] = {}
    for row in report["rows"]:
        epe = mean_epe(row, sets)
        if epe is not None and row["ms"] is not None:
            found.setdefault(row["method"], []).append((row["ms"], epe, row["iterations"]))
    return found


def ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20 ... within limits, and the next ones outside, for a logarithmic axis."""
    known = [digit * 10.0**power for power in range(-3, 7) for digit in (1, 2, 5)]
    below = max((tick for tick in known if tick <= low), default=known[0])
    above = min((tick for tick in known if tick >= high), default=known[-1])
    return [tick for tick in known if below <= tick <= above]


def draw_curves(lines: Mapping[str, Curve], width: int = 900, height: int = 620) -> np.ndarray:
    """Draw EPE over time, both logarithmic: [H, W, 3] uint8 RGB."""
    image = np.full((height, width, 3), 255, np.uint8)
    left, right, top, bottom = 60, width - 200, 20, height - 50
    values = np.array([point[:2] for line in lines.values() for point in line])
    across, up = (ticks(values[:, i].min(), values[:, i].max()) for i in (0, 1))
    ends = [np.log([axis[0], max(axis[-1], 1.01 * axis[0])]) for axis in (across, up)]

    def place(ms: float, epe: float) -> tuple[int, int]:
        x, y = (np.interp(np.log(v), end, (0, 1)) for v, end in zip((ms, epe), ends, strict=True))
        return round(left + x * (right - left)), round(bottom - y * (bottom - top))

    def text(label: str, x: int, y: int, colour: Sequence[int] = (60, 60, 60)) -> None:
        cv2.putText(image, label, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)

    for tick in across:
        x, _ = place(tick, up[0])
        cv2.line(image, (x, top), (x, bottom), (225, 225, 225), 1)
        text(f"{tick:g}", x - 10, bottom + 20)
    for tick in up:
        _, y = place(across[0], tick)
        cv2.line(image, (left, y), (right, y), (225, 225, 225), 1)
        text(f"{tick:g}", 10, y + 5)
    text("ms", (left + right) // 2, bottom + 40)
    for i, (name, line) in enumerate(lines.items()):
        hue = np.uint8([[[180 * i // len(lines), 230, 190]]])
        colour = tuple(int(c) for c in cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0])
        points = [place(ms, epe) for ms, epe, _ in sorted(line)]
        cv2.polylines(image, [np.array(points, np.int32)], False, colour, 2, cv2.LINE_AA)
        for point, (_, _, count) in zip(points, sorted(line), strict=True):
            cv2.circle(image, point, 5, colour, -1, cv2.LINE_AA)
            text(str(count or ""), point[0] + 6, point[1] - 6, colour)
        text(name, right + 12, top + 15 + 22 * i, colour)
    return image


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
