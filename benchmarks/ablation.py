"""Train variants of a small network alike, with several seeds, and compare them.

    python benchmarks/ablation.py --cache pool --test-cache scenes --runs runs/ablation -o ablation
    python benchmarks/ablation.py --variants guided concatenation --seeds 0 1 2 3 4 ...

All variants have the recipe `nano`, the same number of steps and, for each seed, the same samples
in the same order; concatenation has wider tokens, which make up for the parameters of the guidance.
Trainings that are finished are not repeated, and one that was interrupted is taken up: run the same
command again. Then benchmarks/compare.py sets the first variant against each of the others, and,
where it can do with one sense, with that sense alone against the variant trained on nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import compare
from accuracy import output_name
from accuracy_sets import SETS
from reporting import OneLineParser

from flowfuse.cli import train
from flowfuse.cli.console import leave, run_command
from flowfuse.cli.train_settings import read_command_line
from flowfuse.config import changed_keys, config_to_dict, read_yaml
from flowfuse.training.state import RunDirectory

# A network that has one sense is not trained on samples without it.
SENSES = ("frames", "events")
ONE_SENSE = ("--augment.drop_frames", "0", "--augment.drop_events", "0")
VARIANTS: dict[str, tuple[str, ...]] = {
    "guided": (),
    "concatenation": ("--model.fusion", "concatenation", "--model.token_channels", "29"),
    "frames": ("--model.events", "false", *ONE_SENSE),
    "events": ("--model.frames", "false", *ONE_SENSE),
    "no_common_gradient": ("--model.common_gradient", "false"),
    "no_boundary": ("--model.boundary", "false"),
    "no_gradient_steps": ("--model.gradient_steps", "0"),
}


def run_directory(variant: str, seed: int, options: argparse.Namespace) -> RunDirectory:
    """Where a variant is trained."""
    return RunDirectory(options.runs / f"{variant}_{seed}")


def train_variant(variant: str, seed: int, options: argparse.Namespace) -> int:
    """Train a variant, as far as it is not trained yet.

    Returns:
        The exit code of the training; unless it is 0, the training has said why.

    Raises:
        ValueError: it was begun with other settings.
    """
    place = run_directory(variant, seed, options)
    arguments = ["--config", "nano", *VARIANTS[variant], "--seed", str(seed), "-o", str(place.path)]
    arguments += ["--no-tensorboard", "--workers", str(options.workers)]
    if options.cache is not None:
        arguments += ["--cache", str(options.cache)]
    if options.steps is not None:
        arguments += ["--steps", str(options.steps)]
    if place.checkpoints():
        wanted, _ = read_command_line(arguments)
        changed = changed_keys(read_yaml(place.config), config_to_dict(wanted))
        if changed.keys() - {"workers", "cache"}:
            raise ValueError(
                f"{place.path} is a training with other settings ({', '.join(changed)}), which "
                "would not be comparable: choose another --runs"
            )
        arguments.append("--resume")
    print(f"ablation: {variant}, seed {seed}", file=sys.stderr, flush=True)
    return train.main(arguments)


def run(options: argparse.Namespace) -> int:
    """Train all variants, seed after seed, then compare them."""
    models: dict[str, list[str]] = {variant: [] for variant in options.variants}
    for seed in options.seeds:
        for variant in options.variants:
            if code := train_variant(variant, seed, options):
                told = f"the training of {variant} with seed {seed} ended with exit code {code}"
                print(f"ablation: {told}", file=sys.stderr)
                return code
            models[variant].append(str(run_directory(variant, seed, options).model))
    first, *others = options.variants
    pairs = [(first, other) for other in others]
    alone = [other for other in others if other in SENSES and first not in SENSES]
    pairs += [(f"{first}:{modality}", modality) for modality in alone]
    groups = models | {f"{first}:{modality}": models[first] for modality in alone}
    arguments = ["--paired", "--sets", *options.sets, "--scenes", str(options.scenes)]
    for name, paths in groups.items():
        arguments += ["--group", name, *paths]
    for pair in pairs:
        arguments += ["--pair", *pair]
    if options.test_cache is not None:
        arguments += ["--cache", str(options.test_cache)]
    if options.output is not None:
        arguments += ["-o", str(options.output)]
    return compare.main(arguments)


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = OneLineParser(
        prog="ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS)[:4],
        help="what to train; the first is compared with the others (default: the first four)",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="0 1 2")
    parser.add_argument("--steps", type=int, help="of each training; the recipe's by default")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--cache", type=Path, help="folder that keeps the training scenes")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare samples")
    parser.add_argument(
        "--sets", nargs="+", choices=SETS, default=["fast", "blur", "dark", "mixed"],
        help="test sets of the comparison",
    )  # fmt: skip
    parser.add_argument("--scenes", type=int, default=64, help="scenes of each set")
    parser.add_argument("--test-cache", type=Path, help="folder that keeps the test scenes")
    parser.add_argument(
        "-o", "--output", type=output_name, metavar="OUT", help="write OUT.json and OUT.md"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or the exit code of what failed."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if len(set(options.variants)) < max(len(options.variants), 2):
        parser.error("--variants: name at least two, each once")
    return run_command("ablation", lambda: run(options), output=options.output)


if __name__ == "__main__":
    leave(main())
