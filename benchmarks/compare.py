"""Compare two ways of building or training a network, each trained with one or more seeds.

    python benchmarks/compare.py --sets mixed --cache scenes \\
        --group guided a.safetensors b.safetensors --group concatenation c.safetensors d.safetensors

A group's error is the mean over its checkpoints of their errors on the set. Its ratio to that of
the other group comes with a 95 % bootstrap interval over scenes and seeds: scenes are drawn anew
for both groups alike, checkpoints within each group on their own. An interval on one side of 1 is a
difference that neither the choice of scenes nor that of seeds explains, as far as the seeds go: of
two or three of them the spread is known badly, of a single one not at all, and the table says how
many there are.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from accuracy import add_set_arguments, describe_run, output_name, write_report
from accuracy_report import cell, head, line, what_ran
from accuracy_rows import Network, true_sums
from accuracy_sets import SceneSet
from accuracy_statistics import SEED, Tally, drawn_counts, interval, quotient, ratios_of_sums
from operators import OneLineParser
from tqdm import tqdm

MEASURES = {
    "EPE": "epe",
    "boundary EPE": "epe_boundary",
    "interior EPE": "epe_interior",
    "TEPE": "tepe",
}
Groups = Mapping[str, Sequence[Network]]


def measure_set(networks: Sequence[Network], cases: SceneSet) -> Tally:
    """Run every network, with all its senses, on all scenes; rows are labels."""
    tally = Tally()
    for index in tqdm(range(len(cases)), desc=cases.name):
        case = cases[index]
        rows = {n.label: true_sums(case.estimate(n.estimator, "fused"), case) for n in networks}
        tally.add(case.facts, rows)
    return tally


def compare(tally: Tally, rows: Mapping[str, Sequence[str]]) -> dict:
    """Compare two groups of rows on a set.

    Args:
        tally: the set.
        rows: group -> its rows, one per seed; two groups.

    Returns:
        measure -> {group: interval of its mean, "ratio": of the first group to the second,
        "seeds": {group: [S] value of each row}}.
    """
    scenes = drawn_counts(len(tally))
    # Other draws than the scenes', and others for each group.
    seeds = [drawn_counts(len(r), seed=SEED + i) for i, r in enumerate(rows.values(), start=1)]
    found = {}
    for measure in MEASURES.values():
        count = tally.scenes_with(tally.rows[0], measure)
        values = {  # group -> [1 + R, S]
            group: np.stack([ratios_of_sums(scenes, tally.sums(r, measure)) for r in own], axis=1)
            for group, own in rows.items()
        }
        first, second = (
            (drawn * each).sum(axis=1) / drawn.sum(axis=1)
            for drawn, each in zip(seeds, values.values(), strict=True)
        )
        found[measure] = {
            **{
                group: asdict(interval(mean, count))
                for group, mean in zip(rows, (first, second), strict=True)
            },
            "ratio": asdict(interval(quotient(first, second), count)),
            "seeds": {group: each[0].tolist() for group, each in values.items()},
        }
    return found


def as_markdown(report: Mapping) -> str:
    """Format a report."""
    groups = report["groups"]
    sizes = [f"{group} (seeds: {len(rows)})" for group, rows in groups.items()]
    ratio = " / ".join(groups)
    lines = [
        what_ran(report),
        "",
        f"Errors in px; brackets hold 95 % bootstrap intervals over {report['scenes']} scenes of "
        f"each set and over the seeds. {ratio} below 1: {next(iter(groups))} is better.",
        "",
        *head(["set", "", *sizes, ratio, *(f"seeds of {group}" for group in groups)]),
    ]
    for name, measures in report["sets"].items():
        for title, measure in MEASURES.items():
            found = measures[measure]
            cells = [cell(found[group], 2, limits=True) for group in groups]
            cells.append(cell(found["ratio"], 3, limits=True))
            cells += [", ".join(f"{v:.2f}" for v in found["seeds"][group]) for group in groups]
            lines.append(line([name, title, *cells]))
    return "\n".join(lines) + "\n"


def run(options: argparse.Namespace, groups: Mapping[str, Sequence[str]]) -> None:
    """Measure, print and write what was asked for."""
    networks: dict[str, list[Network]] = {
        group: [
            Network.parse(f"{group} {i}={path}", device=options.device, bf16=options.bf16)
            for i, path in enumerate(paths, start=1)
        ]
        for group, paths in groups.items()
    }
    every = list(itertools.chain(*networks.values()))
    for network in every:
        _ = network.estimator  # what is wrong with a file is told before anything is measured
    rows = {group: [network.label for network in own] for group, own in networks.items()}
    slicings = {network.slicing for network in every}
    size = tuple(options.size)
    sets = [SceneSet(s, options.scenes, size, slicings, options.cache) for s in options.sets]
    tallies = {cases.name: measure_set(every, cases) for cases in sets}
    if len(tallies) > 1:
        tallies["all sets"] = Tally.pooled(tallies.values())
    report = describe_run(every) | {
        "groups": rows,
        "scenes": options.scenes,
        "sets": {name: compare(tally, rows) for name, tally in tallies.items()},
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
        help="a name and the checkpoints of its seeds; give two groups",
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
    groups = {name: paths for name, *paths in options.group}
    if len(options.group) != 2 or len(groups) != 2 or not all(groups.values()):
        parser.error("give --group NAME CHECKPOINT... twice, under two names")
    if any("=" in name or "/" in name for name in groups):
        parser.error("--group: a name must not contain = or /")
    if not options.sets:
        parser.error("--sets: name at least one set")
    try:
        run(options, groups)
    except (ValueError, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
