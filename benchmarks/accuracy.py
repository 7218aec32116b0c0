"""Measure checkpoints on generated test sets, on images with ground truth, and on recordings.

    python benchmarks/accuracy.py --cache scenes --prepare --workers 8
    python benchmarks/accuracy.py --cache scenes -o benchmarks/results/today
    python benchmarks/accuracy.py --checkpoint small --checkpoint plain=runs/x/model.safetensors
    python benchmarks/accuracy.py --sets --recordings ../data/real_flow
    python benchmarks/accuracy.py --sets --images ../data/alley_1 --recording ../data/slider_depth

Rows: every checkpoint with both modalities and with each of them alone; OpenCV's DIS (medium) and
Farneback on the frames; zero flow. Ratios are to the first row and to DIS, and of the fused error
to that of the better single modality: 1 means that fusing costs nothing. The generated scenes are
always the same: their seed, and the families of textures and motions that they are drawn from,
belong to this script, and no training uses them. Sweeps pool all generated sets. Real recordings of
events alone are measured with and without history. -o OUT writes OUT.json, OUT.md and pictures in
OUT/: of every set the case that is best, median and worst in the first row's EPE over that of zero
flow.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import torch
from accuracy_rows import (
    SETS,
    Network,
    SceneSet,
    estimate_all,
    histograms,
    measure_estimate,
    prepare,
    sums_without_truth,
)
from measuring import commit, machine, versions
from reporting import OneLineParser, result_file, write
from tqdm import tqdm

from flowfuse.cli.console import leave, parse_count, run_command
from flowfuse.data.synthetic.presets import PRESETS, SENSORS
from flowfuse.evaluation.baselines import DIS, ZERO
from flowfuse.evaluation.cases import (
    ImageSet,
    RealPairs,
    RealRotation,
    real_sets,
    recording_cases,
)
from flowfuse.evaluation.evaluate import ALL, Evaluation
from flowfuse.evaluation.pictures import draw_case, pick
from flowfuse.evaluation.report import COMPARED, COMPARED_WITHOUT_TRUTH, as_markdown
from flowfuse.evaluation.statistics import Tally, compare_seeds, fusion_ratio, summarize, sweeps
from flowfuse.model import CONFIGS

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


def without_nan(value: object) -> object:
    """The same with None for NaN and infinity, which JSON has no words for."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
        "checkpoints": {network.label: str(network.path) for network in networks},
    }


def load_networks(options: argparse.Namespace) -> list[Network]:
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
    return networks


def run(options: argparse.Namespace) -> None:
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
    first, *others = network.modes
    return first, others


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = OneLineParser(
        prog="accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", action="append", metavar="[LABEL=]CHECKPOINT",
        help="shipped name or path; repeat for several (default: small)",
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
        help="event sensors that watch the generated sets: the one of all trainings, or v2e's "
        "model, which no training uses (default)",
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


def add_set_arguments(parser: argparse.ArgumentParser, sets: Sequence[str]) -> None:
    """Add what every measurement on generated scenes can be told."""
    parser.add_argument(
        "--sets", nargs="*", default=list(sets), choices=list(PRESETS), metavar="SET",
        help=f"presets of generated scenes ({' '.join(sets)})",
    )  # fmt: skip
    parser.add_argument("--scenes", type=parse_count, default=64, help="of each set (64)")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("H", "W"))
    parser.add_argument("--cache", type=Path, help="folder that keeps the scenes between runs")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or auto (cpu)")
    parser.add_argument("--bf16", action="store_true", help="run the networks in bfloat16")


def output_name(text: str) -> Path:
    """A name beside which results can be written, known before anything is measured."""
    path = Path(text)
    if not path.name:
        raise argparse.ArgumentTypeError(f"{path} is a directory, expected a name in it")
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} exists and is no directory for pictures")
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
