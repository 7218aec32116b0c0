"""Measure what finetuning by a recipe gives on sequences of DSEC that it has not learned from.

    python benchmarks/finetuning.py --roots roots --markdown today.md
    python benchmarks/finetuning.py --roots roots --seeds 3 --options "" "--learning-rate 1e-4"

The sequences are generated scenes in the files of DSEC (data_tools/write_dsec.py): for every seed
some to learn from and others to measure on, of the presets driving, fast and slow, and more of the
preset dark, of which nothing is learned. They are small, and so are the crops; all else is as the
recipe has it, or as each of --options has it. --roots keeps the sequences for the next call;
without it they are made anew. Recipes are to be chosen on some seeds and confirmed on others.

Error: mean endpoint error (EPE) over the pixels with ground truth of a flow map, then over the maps
of a sequence, before the finetuning and after its last step. Changes come with 95 % bootstrap
intervals over sequences, paired: of the mean EPE, in which large motions weigh most, and of the
single sequence (geometric mean), in which all weigh alike. Below 10 sequences there is no interval.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace
from measuring import (
    OneLineParser,
    Row,
    add_result_arguments,
    fill,
    heading,
    new_report,
    number,
    parse_count,
    reason,
    table,
    tell_failures,
)
from tqdm import tqdm

import flowfuse
from flowfuse.cli import train
from flowfuse.data.datasets.dsec.dataset import VALIDATION_SEQUENCES, DsecDataset
from flowfuse.data.samples import Sample
from flowfuse.evaluation.report import head, line
from flowfuse.evaluation.statistics import Interval, drawn_counts, interval, ratios_of_sums
from flowfuse.model import FlowFuse

sys.path.append(str(Path(__file__).resolve().parents[1] / "data_tools"))
import write_dsec

LEARNED = ("driving", "fast", "slow")  # presets of what is learned from
OTHERS = ("dark",)
ALL_LEARNED, ALL_SEEDS = "all three", "all"
Errors = dict[str, tuple[float, float]]  # sequence -> EPE before and after, px


@dataclass(frozen=True)
class Plan:
    """What a seed makes and does.

    Attributes:
        name: what folders of such sequences begin with.
        learned, held_out: sequences of each preset.
        frames: of a sequence; (frames - 3) / 2 flow maps.
        size, image_size: (width, height) of the event camera and of the images, px.
        crop: (height, width), px.
        options: of flowfuse-train, after those of the recipe.
    """

    name: str = "seed"
    learned: int = 8
    held_out: int = 8
    frames: int = 7
    size: tuple[int, int] = (256, 192)
    image_size: tuple[int, int] = (512, 384)
    crop: tuple[int, int] = (128, 160)
    options: tuple[str, ...] = ("--validate-every", "100000", "--validation-scenes", "12")


QUICK = Plan(
    "quick", 1, 1, 5, (64, 48), (128, 96), (48, 64),
    ("--steps", "2", "--validation-scenes", "1", "--ema", "0.5"),
)  # fmt: skip


def list_sequences(plan: Plan) -> list[tuple[str, str, str]]:
    """The sequences of a seed: folder, name and preset. Those that DSEC's split holds out come last
    in "learn"; the others' names say their preset."""
    learn = [("learn", f"{kind}_{i}", kind) for i in range(plan.learned) for kind in LEARNED]
    validate = [
        ("learn", name, LEARNED[i % len(LEARNED)]) for i, name in enumerate(VALIDATION_SEQUENCES)
    ]
    measure = [
        ("measure", f"{kind}_{i}", kind) for i in range(plan.held_out) for kind in LEARNED + OTHERS
    ]
    return learn + validate + measure


def make_sequences(folder: Path, seed: int, plan: Plan) -> None:
    """Write the sequences of a seed, as far as they are not there."""
    for index, (root, name, preset) in enumerate(
        tqdm(list_sequences(plan), desc="sequences", file=sys.stderr)
    ):
        if (folder / root / name).exists():
            continue
        words = [str(folder / root), name, "--preset", preset, "--frames", str(plan.frames)]
        words += ["--seed", str(10_000 * seed + index)]  # a scene of its own for every sequence
        for option, size in (("--size", plan.size), ("--image-size", plan.image_size)):
            words += [option, "{}x{}".format(*size)]
        with redirect_stdout(sys.stderr):  # the table alone goes to the other
            write_dsec.generate(write_dsec.build_parser().parse_args(words))


@torch.inference_mode()
def measure(model: FlowFuse, root: Path) -> dict[str, float]:
    """The EPE of every sequence below a root, px."""
    found: dict[str, list[float]] = {}
    data = DsecDataset(root, "all", model.config.slices, model.config.bins)
    for index, (sequence, _, _) in enumerate(data.items):
        batch = Sample.collate([data[index]])
        flow = model(batch.inputs).control_points[0, -1]
        error = (flow - batch.flow[0, -1]).norm(dim=0)[batch.valid[0, -1]]
        found.setdefault(data.sequences[sequence].path.name, []).append(float(error.mean()))
    return {name: float(np.mean(errors)) for name, errors in found.items()}


def finetune(folder: Path, out: Path, seed: int, more: str, options: Namespace, plan: Plan) -> Path:
    """Train by the recipe and what is to differ from it; returns the last weights."""
    words = ["--config", options.recipe, "--init", options.init]
    words += ["--data", f"dsec:{folder / 'learn'}", "--seed", str(seed), "-o", str(out)]
    words += ["--no-tensorboard", "--device", "cpu", "--crop", *map(str, plan.crop)]
    if train.main([*words, *plan.options, *shlex.split(more)]):
        raise RuntimeError("flowfuse-train failed; its message is above")
    return out / "model.safetensors"


def measure_seed(seed: int, options: Namespace, plan: Plan) -> Iterator[tuple[str, Errors]]:
    """Make what a seed needs, and measure before and after each finetuning: options, errors."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.roots or temporary) / f"{plan.name}_{seed}"
        make_sequences(folder, seed, plan)
        before = measure(flowfuse.load(options.init).model, folder / "measure")
        for number, more in enumerate(options.options):
            out = Path(temporary) / f"run_{number}"
            weights = finetune(folder, out, seed, more, options, plan)
            after = measure(flowfuse.load(weights).model, folder / "measure")
            yield more, {name: (before[name], after[name]) for name in before}


def changes(errors: Errors) -> Row:
    """What has changed in some sequences: the values of a row."""
    before, after = np.array(list(errors.values())).T
    weights = drawn_counts(len(before))
    mean = ratios_of_sums(weights, np.stack((after, before), axis=1))
    single = np.exp(weights @ np.log(after / before) / len(before))
    return {
        "sequences": len(before),
        "before": float(before.mean()),
        "after": float(after.mean()),
        "mean": asdict(interval(mean, len(before))),
        "single": asdict(interval(single, len(before))),
        "best": float((after / before).min()),
        "worst": float((after / before).max()),
    }


def rows_of(seed: str, more: str, errors: Errors) -> Iterator[Row]:
    """The rows of one seed, or of all: the presets that are learned from together, then each."""
    for kind in (ALL_LEARNED, *LEARNED, *OTHERS):
        chosen = LEARNED if kind == ALL_LEARNED else (kind,)
        part = {
            sequence: pair
            for sequence, pair in errors.items()
            if sequence.rpartition("_")[0].rpartition(" ")[2] in chosen
        }
        named = {"seed": seed, "options": more, "kind": kind}
        yield {**dict.fromkeys(KEYS), **named, **changes(part)}


def measured_rows(options: Namespace, plan: Plan) -> Iterator[Row]:
    """The rows, printed as they come."""
    everything: dict[str, Errors] = {}
    print(*head(COLUMNS), sep="\n", flush=True)

    def shown(rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            print(line(cells(row)), flush=True)
            yield row

    for seed in options.seeds:
        try:
            for more, errors in measure_seed(seed, options, plan):
                pooled = everything.setdefault(more, {})
                pooled |= {f"{seed} {name}": pair for name, pair in errors.items()}
                yield from shown(rows_of(str(seed), more, errors))
        except Exception as error:
            yield from shown([{**dict.fromkeys(KEYS), "seed": str(seed), "error": reason(error)}])
    if len(options.seeds) > 1:
        for more, errors in everything.items():
            yield from shown(rows_of(ALL_SEEDS, more, errors))


KEYS = (
    "seed", "options", "kind", "sequences", "before", "after", "mean", "single", "best", "worst",
    "error",
)  # fmt: skip
COLUMNS = (
    "seed", "options", "held-out sequences", "number", "EPE before", "after",
    "change of the mean EPE", "of a sequence's EPE", "of single ones", "note",
)  # fmt: skip


def percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}"


def between(found: Mapping[str, float]) -> str:
    """A ratio with its interval, as a change."""
    value = Interval(**found)
    text = f"{percent(value.value)} %"
    return (
        text if np.isnan(value.low) else f"{text} ({percent(value.low)} to {percent(value.high)})"
    )


def cells(row: Row) -> list[str]:
    """The texts of one row of the table."""
    if row["error"]:
        return [str(row["seed"]), *[""] * 8, f"failed: {row['error']}"]
    return [
        str(row["seed"]),
        f"`{row['options']}`" if row["options"] else "",
        str(row["kind"]),
        number(row["sequences"], ".0f"),
        number(row["before"], ".3f"),
        number(row["after"], ".3f"),
        between(row["mean"]),
        between(row["single"]),
        f"{percent(row['best'])} to {percent(row['worst'])} %",
        "",
    ]


def as_markdown(report: Mapping) -> str:
    """A report as text with one table."""
    told = report["finetuning"]
    lines = [
        f"Recipe `{told['recipe']}` from `{told['init']}`, crops of {told['crop'][0]} x "
        f"{told['crop'][1]} px. EPE in px; changes with 95 % intervals over sequences.",
        "",
        *table(COLUMNS, [cells(row) for row in report["rows"]]),
    ]
    return "\n".join([*heading(report), *lines]) + "\n"


def build_parser() -> OneLineParser:
    parser = OneLineParser(__doc__, prog="finetuning", formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=str, default="dsec", help="as flowfuse-train --config")
    parser.add_argument("--init", type=str, default="small", help="what is finetuned")
    parser.add_argument(
        "--options", nargs="+", type=str, default=[""], metavar="TEXT",
        help="of flowfuse-train, what is to differ from the recipe; a finetuning for each text",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", nargs="+", type=parse_count, default=[1, 2], help="of scenes and of training"
    )
    parser.add_argument("--roots", type=Path, metavar="DIR", help="keeps the sequences")
    parser.add_argument("--threads", type=parse_count, help="CPU threads (torch's own number)")
    parser.add_argument("--quick", action="store_true", help="shows that it runs, not how well")
    add_result_arguments(parser)
    return parser


def run(options: Namespace) -> int:
    if options.threads:
        torch.set_num_threads(options.threads)
    plan = QUICK if options.quick else Plan()
    report = new_report("cpu", options.quick, None)
    report["finetuning"] = {
        "recipe": options.recipe, "init": options.init, "crop": plan.crop,
    }  # fmt: skip
    fill(report, "rows", measured_rows(options, plan), options, as_markdown)
    return tell_failures("finetuning", report["rows"], ("seed",))


def main(argv: Sequence[str] | None = None) -> int:
    return run(build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
