"""Compare ways of building, training or using a network, each trained with one or more seeds.

    python benchmarks/compare.py --sets mixed --cache scenes \\
        --group guided a.safetensors b.safetensors --group concatenation c.safetensors d.safetensors
    python benchmarks/compare.py --group both:frames a.safetensors --group frames c.safetensors

A name that ends in :frames or :events shows the network that sense alone. The first group is set
against each of the others, or --pair says which are compared. A group's error is the mean over its
checkpoints of their errors on the set. Its ratio to that of another group comes with a 95 %
bootstrap interval over scenes and seeds: scenes are drawn anew for all groups alike, checkpoints
within each group on their own, or, with --paired, alike, too. An interval on one side of 1 is a
difference that neither the choice of scenes nor that of seeds explains, as far as the seeds go: of
two or three of them the spread is known badly, of a single one not at all, and the table says how
many there are.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from accuracy import add_set_arguments, describe_run, output_name, write_report
from accuracy_report import cell, what_ran
from accuracy_rows import Network, ground_truth_sums
from accuracy_sets import SceneSet
from accuracy_statistics import SEED, Tally, drawn_counts, interval, ratios_of_sums
from accuracy_thresholds import quotient
from reporting import OneLineParser, head, line
from tqdm import tqdm

from flowfuse.cli.console import leave, run_command
from flowfuse.training.validation import MODES

MEASURES = {
    "EPE": "epe",
    "boundary EPE": "epe_boundary",
    "interior EPE": "epe_interior",
    "TEPE": "tepe",
}


@dataclass(frozen=True)
class Group:
    """Checkpoints that differ in their seeds, all shown the same senses.

    Attributes:
        name: as the report calls it.
        mode: of ``flowfuse.training.validation.MODES``.
        networks: one per seed.
    """

    name: str
    mode: str
    networks: tuple[Network, ...]

    @classmethod
    def parse(cls, name: str, paths: Sequence[str], *, device: str, bf16: bool) -> Group:
        """From "name" or "name:mode", and checkpoints.

        Raises:
            FileNotFoundError, ValueError: there is no such checkpoint, or no such mode.
        """
        mode = name.partition(":")[2] or "fused"
        if mode not in MODES:
            raise ValueError(f"group {name}: the mode must be one of {', '.join(MODES)}")
        networks = (
            Network.parse(f"{name} {i}={path}", device=device, bf16=bf16)
            for i, path in enumerate(paths, start=1)
        )
        return cls(name, mode, tuple(networks))

    @property
    def rows(self) -> list[str]:
        return [network.label for network in self.networks]


def measure_set(groups: Sequence[Group], cases: SceneSet) -> Tally:
    """Run every network on all scenes; rows are labels."""
    tally = Tally()
    for index in tqdm(range(len(cases)), desc=cases.name):
        case = cases[index]
        rows = {
            network.label: ground_truth_sums(case.estimate(network.estimator, group.mode), case)
            for group in groups
            for network in group.networks
        }
        tally.add(case.facts, rows)
    return tally


def compare(
    tally: Tally,
    rows: Mapping[str, Sequence[str]],
    pairs: Sequence[tuple[str, str]],
    *,
    paired: bool = False,
) -> dict:
    """Compare groups of rows on a set.

    Args:
        tally: the set.
        rows: group -> its rows, one per seed.
        pairs: the groups to take ratios of, the first to the second.
        paired: row i of every group has seed i: seeds are drawn for all groups alike.

    Returns:
        measure -> {"groups": {group: interval of its mean}, "ratios": {"first / second": interval},
        "seeds": {group: [S] value of each row}}.
    """
    scenes = drawn_counts(len(tally))
    # Other draws than the scenes', and others for each group unless its seeds are the others'.
    seeds = [
        drawn_counts(len(r), seed=SEED + (1 if paired else i))
        for i, r in enumerate(rows.values(), start=1)
    ]
    found = {}
    for measure in MEASURES.values():
        count = tally.scenes_with(tally.rows[0], measure)
        values = {  # group -> [1 + R, S]
            group: np.stack([ratios_of_sums(scenes, tally.sums(r, measure)) for r in own], axis=1)
            for group, own in rows.items()
        }
        means = {
            group: (drawn * each).sum(axis=1) / drawn.sum(axis=1)
            for drawn, (group, each) in zip(seeds, values.items(), strict=True)
        }
        found[measure] = {
            "groups": {group: asdict(interval(mean, count)) for group, mean in means.items()},
            "ratios": {
                f"{first} / {second}": asdict(
                    interval(quotient(means[first], means[second]), count)
                )
                for first, second in pairs
            },
            "seeds": {group: each[0].tolist() for group, each in values.items()},
        }
    return found


def as_markdown(report: Mapping) -> str:
    """Format a report."""
    groups = report["groups"]
    lines = [
        what_ran(report),
        "",
        f"Errors in px; brackets hold 95 % bootstrap intervals over {report['scenes']} scenes of "
        f"each set and over the seeds{', in pairs' if report['paired'] else ''}.",
        "",
        *rows_of(
            report,
            [f"{group} (seeds: {len(rows)})" for group, rows in groups.items()],
            lambda found: [cell(found["groups"][group], 2, limits=True) for group in groups],
        ),
        "",
        "Ratios; below 1 the first is better.",
        "",
        *rows_of(
            report,
            report["pairs"],
            lambda found: [cell(found["ratios"][pair], 3, limits=True) for pair in report["pairs"]],
        ),
        "",
        "Every seed on its own, px.",
        "",
        *rows_of(
            report,
            list(groups),
            lambda found: [
                ", ".join(f"{value:.2f}" for value in found["seeds"][group]) for group in groups
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


def rows_of(
    report: Mapping, titles: Sequence[str], cells: Callable[[Mapping], list[str]]
) -> list[str]:
    """A table with a row for each measure of each set."""
    lines = head(["set", "", *titles])
    for name, measures in report["sets"].items():
        for title, measure in MEASURES.items():
            lines.append(line([name, title, *cells(measures[measure])]))
    return lines


def run(options: argparse.Namespace) -> None:
    """Measure, print and write what was asked for."""
    groups = [
        Group.parse(name, paths, device=options.device, bf16=options.bf16)
        for name, *paths in options.group
    ]
    pairs = options.pair or [(groups[0].name, group.name) for group in groups[1:]]
    networks = [network for group in groups for network in group.networks]
    for network in networks:
        _ = network.estimator  # what is wrong with a file is told before anything is measured
    rows = {group.name: group.rows for group in groups}
    slicings = {network.slicing for network in networks}
    size = tuple(options.size)
    sets = [SceneSet(s, options.scenes, size, slicings, options.cache) for s in options.sets]
    tallies = {cases.name: measure_set(groups, cases) for cases in sets}
    if len(tallies) > 1:
        tallies["all sets"] = Tally.pooled(tallies.values())
    report = describe_run(networks) | {
        "groups": rows,
        "pairs": [" / ".join(pair) for pair in pairs],
        "scenes": options.scenes,
        "paired": options.paired,
        "sets": {
            name: compare(tally, rows, pairs, paired=options.paired)
            for name, tally in tallies.items()
        },
    }
    text = as_markdown(report)
    print(text)
    write_report(report, text, options.output)


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = OneLineParser(
        prog="compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--group", nargs="+", action="append", default=[], metavar=("NAME", "CHECKPOINT"),
        help="a name and the checkpoints of its seeds; give two groups or more",
    )  # fmt: skip
    parser.add_argument(
        "--pair", nargs=2, action="append", default=[], metavar=("NAME", "NAME"),
        help="groups to take the ratio of (default: the first group to each of the others)",
    )  # fmt: skip
    parser.add_argument(
        "--paired", action="store_true",
        help="checkpoint i of every group has the same seed, and saw the same samples",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=output_name, metavar="OUT", help="write OUT.json and OUT.md"
    )
    add_set_arguments(parser, ("mixed",))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 1 on an error, which is printed in one line."""
    parser = build_parser()
    options = parser.parse_args(argv)
    names = [name for name, *_ in options.group]
    if len(names) < 2 or len(set(names)) < len(names) or not all(p for _, *p in options.group):
        parser.error("give --group NAME CHECKPOINT... twice or more, under different names")
    if options.paired and len({len(group) for group in options.group}) > 1:
        parser.error("--paired: all groups must have as many checkpoints, one per seed")
    if any("=" in name or "/" in name for name in names):
        parser.error("--group: a name must not contain = or /")
    for name in itertools.chain(*options.pair):
        if name not in names:
            parser.error(f"--pair: no group is called {name!r}, but {', '.join(names)}")
    if not options.sets:
        parser.error("--sets: name at least one set")
    return run_command("compare", lambda: run(options), output=options.output)


if __name__ == "__main__":
    leave(main())
