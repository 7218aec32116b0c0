"""Settings of a training, from defaults, a recipe and the command line, in that order."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import docstring_parser
import jsonargparse

from flowfuse.config import (
    ConfigError,
    check_text,
    config_from_dict,
    config_to_dict,
    flatten,
    overlay,
    read_yaml,
)
from flowfuse.data.augment import AugmentConfig
from flowfuse.losses.self_supervised import SelfSupervisionConfig
from flowfuse.losses.supervised import LossConfig
from flowfuse.model import CONFIGS, ModelConfig
from flowfuse.model.checkpoint import available
from flowfuse.model.flowfuse import MINIMUM_SIZE
from flowfuse.training.pools import absolute, parse_data
from flowfuse.training.sampling import (
    TEST_SEED,
    VALIDATION_SEED,
    StepPlan,
)

PROGRAM = "flowfuse-train"
RECIPES = Path(__file__).parent.parent / "recipes"
MAX_SEED = 2**63 - 1  # of torch.manual_seed, among those that are not negative


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Args:
        model: architecture.
        supervision: "truth", or "self": from frames and events alone.
        loss: weights of the supervised losses.
        self_loss: weights of the self-supervised losses.
        augment: how samples are varied.
        data: what to train on: generated scenes (scenes:PRESET, or a mixture,
            scenes:fast=2,blur=1), dsec:ROOT, mvsec:PATH, or, unlabelled, a recording,
            recording:PATH.
        held_out: share of a recording's frame pairs, the last ones, to measure on.
        scenes: size of the pool of generated scenes.
        scene_size: height and width of the scenes, px.
        crop: height and width of what the network sees, px.
        cache: directory that keeps generated scenes from run to run.
        init: checkpoint whose weights the training starts from: a shipped name, a file, or the
            directory of a run; a resumed run goes on from its own.
        seed: fixes the first weights, the scenes, their order and every variation.
        steps: length of the training; the learning rate falls to zero over it.
        batch: samples per step.
        final_share: share of the steps, at the end, that take final_crop and final_batch.
        final_crop: height and width of what the network sees in these steps, px; crop by default.
        final_batch: samples per step in these steps; batch by default.
        iterations: recurrent updates in training; the model's own number by default.
        max_iterations: half of the steps take a random number of updates, from 1 to this; null: all
            steps take `iterations`.
        learning_rate: highest learning rate (AdamW; linear warm-up, then half a cosine).
        warmup: share of the steps in which the learning rate rises.
        weight_decay: of the weights with more than one axis.
        clip: largest norm of the gradient.
        ema: decay of the moving average of the weights.
        bf16: compute in bfloat16 where autocast does; the weights stay float32. Slower than float32
            on a CPU without bfloat16 instructions, which is told but obeyed.
        channels_last: memory layout of weights and images.
        compile: compile the model with torch.compile.
        device: auto, cpu, cuda or cuda:N.
        scene_device: where scenes are rendered: cpu, cuda or cuda:N (with workers = 0), or auto.
        workers: processes that prepare samples; the result does not depend on it.
        log_every: steps between two lines of log.csv.
        validate_every: steps between two validations.
        validation_scenes: held-out scenes to validate on; of a recording, frame pairs at most.
        checkpoint_every: steps between two checkpoints.
        keep: how many of the newest checkpoints to keep; the best one stays too.
        tensorboard: write TensorBoard event files where TensorBoard is installed.
        overfit: train on this many fixed scenes without variation, and validate on them; 0 = no.
    """

    model: ModelConfig = CONFIGS["small"]
    supervision: Literal["truth", "self"] = "truth"
    loss: LossConfig = field(default_factory=LossConfig)
    self_loss: SelfSupervisionConfig = field(default_factory=SelfSupervisionConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    data: str = "scenes:slow=1,fast=3,blur=1,dark=1,mixed=1"
    held_out: float = 0.2
    scenes: int = 2000
    scene_size: tuple[int, int] = (160, 192)
    crop: tuple[int, int] = (128, 160)
    cache: str | None = None
    init: str | None = None
    seed: int = 0
    steps: int = 20000
    batch: int = 4
    final_share: float = 0.0
    final_crop: tuple[int, int] | None = None
    final_batch: int | None = None
    iterations: int | None = None
    max_iterations: int | None = None
    learning_rate: float = 4e-4
    warmup: float = 0.05
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.999
    bf16: bool = False
    channels_last: bool = True
    compile: bool = False
    device: str = "auto"
    scene_device: str = "cpu"
    workers: int = 0
    log_every: int = 50
    validate_every: int = 1000
    validation_scenes: int = 16
    checkpoint_every: int = 500
    keep: int = 3
    tensorboard: bool = True
    overfit: int = 0

    def __post_init__(self) -> None:
        for name, lowest in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and not value >= lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {value}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        for name in ("warmup", "ema", "final_share", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.seed > MAX_SEED:
            raise ValueError(f"seed must be at most {MAX_SEED}, got {self.seed}")
        if self.seed in (VALIDATION_SEED, TEST_SEED):
            raise ValueError(f"seed {self.seed} is kept for the held-out scenes")
        parse_data(self.data)
        for name in ("crop", "final_crop"):
            self._check_crop(name)
        if self.final_share > 0 and self.overfit:
            raise ValueError(
                f"overfit trains in one stage: final_share must be 0, got {self.final_share}"
            )
        if self.final_share > 0 and self.final_crop is None and self.final_batch is None:
            raise ValueError(
                f"final_share {self.final_share} needs final_crop, final_batch or both: "
                "what is to change in the last steps"
            )
        if self.workers > 0 and self.scene_device not in ("cpu", "auto"):
            raise ValueError(
                f"scene_device {self.scene_device} needs workers = 0, got {self.workers}: "
                "a forked process cannot use the GPU"
            )
        if self.source == "recording" and (self.supervision != "self" or self.overfit):
            raise ValueError(
                f"data {self.data} has no truth: it needs supervision = self and overfit = 0, "
                f"got {self.supervision} and {self.overfit}"
            )

    @property
    def source(self) -> str:
        """The kind of the data, one of :data:`flowfuse.training.pools.KINDS`."""
        return parse_data(self.data)[0]

    def plan(self) -> StepPlan:
        """Say which samples make which step."""
        return StepPlan(
            early_steps=self.steps - round(self.final_share * self.steps),
            crop=self.crop,
            batch=self.batch,
            final_crop=self.final_crop or self.crop,
            final_batch=self.final_batch or self.batch,
        )

    def _check_crop(self, name: str) -> None:
        crop = getattr(self, name)
        if crop is None:
            return
        if min(crop) < MINIMUM_SIZE:
            raise ValueError(
                f"{name} must be at least {MINIMUM_SIZE} x {MINIMUM_SIZE} px, got {crop}"
            )
        if self.source != "scenes":  # its size is not known yet
            return
        if any(c > s for c, s in zip(crop, self.scene_size, strict=True)):
            raise ValueError(f"{name} {crop} must not be larger than scene_size {self.scene_size}")


_LOWEST = {
    "scenes": 1,
    "seed": 0,
    "steps": 1,
    "batch": 1,
    "final_batch": 1,
    "iterations": 1,
    "max_iterations": 1,
    "weight_decay": 0,
    "workers": 0,
    "log_every": 1,
    "validate_every": 1,
    "validation_scenes": 1,
    "checkpoint_every": 1,
    "keep": 1,
    "overfit": 0,
}


@dataclass(frozen=True)
class RunOptions:
    """What belongs to one call of the command, not to the training.

    Args:
        output: directory of the run.
        resume: carry on from the newest checkpoint in it.
        stop_after_minutes: save a checkpoint and stop after this time; None = never.
    """

    output: Path
    resume: bool = False
    stop_after_minutes: float | None = None


def read_command_line(argv: Sequence[str] | None) -> tuple[TrainConfig, RunOptions]:
    """Read settings: defaults, then the recipe (or the resumed run's), then the command line.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The resolved configuration, and the options of this call.

    Raises:
        ConfigError: an unknown or missing key, or a wrong value.
        FileNotFoundError: a recipe, or a run to resume, that is not there.
        SystemExit: after --help.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    _add_run_options(early)
    early.add_argument("--model")
    parser, words = _build_parser(), []
    try:
        options, words = early.parse_known_args(argv)
        words = [_spell(word) for word in words]
        given = parser.parse_args(words, defaults=False).as_dict()
    except argparse.ArgumentError as error:  # jsonargparse raises the same class
        _check_values(words)
        raise ConfigError(" ".join(str(error).split()) + _suggest(str(error))) from None
    # Shown in the help of the second parser, read by the first.
    given = {key: value for key, value in given.items() if key == "model" or key not in options}
    if not options.output:  # an unset variable of a shell is an empty name
        raise ConfigError("name the directory of the run: -o DIRECTORY")
    output = Path(options.output)
    if options.stop_after_minutes is not None and not options.stop_after_minutes >= 0:
        raise ConfigError(
            f"--stop-after-minutes must not be negative, got {options.stop_after_minutes}"
        )

    recipe = None if options.config is None else _find_recipe(Path(options.config))
    if recipe is None and options.resume:
        recipe = output / "config.yaml"
        if not recipe.is_file():
            raise FileNotFoundError(f"{output}: nothing to resume: no {recipe.name} there")
    if options.self_supervised is not None:
        for name in ("data", "supervision"):
            if name in given:
                raise ConfigError(f"--self-supervised says what --{name} is: give one of them")
        given |= {"data": f"recording:{options.self_supervised}", "supervision": "self"}
        recipe = recipe or _find_recipe(Path("adapt"))
    values = read_yaml(recipe) if recipe is not None else {}
    where = str(recipe) if recipe is not None else ""
    if options.model is not None:
        values["model"] = _expand_model(options.model, "--model")
    else:
        values["model"] = _expand_model(values.get("model", "small"), where)
    try:
        config = config_from_dict(TrainConfig, overlay(values, given))
    except ConfigError:
        config_from_dict(TrainConfig, values, where=where)  # names the recipe where it is at fault
        raise
    # A resumed run finds them from wherever it is started.
    config = dataclasses.replace(config, data=absolute(config.data), cache=_absolute(config.cache))
    if config.init not in (None, *available()) and Path(config.init).exists():
        config = dataclasses.replace(config, init=_absolute(config.init))
    return config, RunOptions(output, options.resume, options.stop_after_minutes)


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="DIR", help="directory of the run")
    parser.add_argument(
        "--config",
        metavar="RECIPE",
        help="settings from a YAML file, or the name of a shipped recipe",
    )
    parser.add_argument(
        "--self-supervised",
        metavar="RECORDING",
        help="finetune on a recording without ground truth; by the recipe adapt, unless --config "
        "names another",
    )
    parser.add_argument("--resume", action="store_true", help="carry on from the newest checkpoint")
    parser.add_argument(
        "--stop-after-minutes", type=float, metavar="M", help="save a checkpoint and stop then"
    )


def _build_parser() -> jsonargparse.ArgumentParser:
    """The command line of TrainConfig, made from its fields and their documentation."""
    parser = jsonargparse.ArgumentParser(
        prog=PROGRAM,
        exit_on_error=False,
        allow_abbrev=False,
        description="Train a model on generated scenes, DSEC or MVSEC, or adapt one to a "
        f"recording. --model NAME chooses an architecture ({', '.join(CONFIGS)}); --model.KEY "
        "VALUE changes one of its settings. A recipe given with --config holds the same keys in "
        "YAML; the command line wins over it.",
    )
    documented = docstring_parser.parse(TrainConfig.__doc__).params
    described = {entry.arg_name: entry.description for entry in documented}
    hints = typing.get_type_hints(TrainConfig)
    _add_run_options(parser)
    for setting in dataclasses.fields(TrainConfig):
        hint, flag = hints[setting.name], "--" + setting.name.replace("_", "-")
        about = {"help": described[setting.name], "default": setting.default}
        if dataclasses.is_dataclass(hint):
            parser.add_class_arguments(hint, setting.name)
            # It adds --loss FILE too; --config is the way to give a file, and --model takes a name.
            whole = next(a for a in parser._actions if a.option_strings == [f"--{setting.name}"])
            whole.metavar, whole.help = "NAME", argparse.SUPPRESS
            if setting.name == "model":
                whole.help = f"architecture to start from: {', '.join(CONFIGS)} (default: small)"
        elif hint is bool:
            parser.add_argument(flag, action=jsonargparse.ActionYesNo(no_prefix="no-"), **about)
        elif tuple in map(typing.get_origin, (hint, *typing.get_args(hint))):
            about["default"] = setting.default and list(setting.default)
            parser.add_argument(flag, nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), **about)
        else:
            parser.add_argument(flag, type=hint, **about)
    return parser


def _find_recipe(name_or_path: Path) -> Path:
    """A recipe's path, or the path of the shipped recipe of that name."""
    shipped = RECIPES / f"{name_or_path}.yaml"
    for path in (name_or_path, shipped):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    raise FileNotFoundError(
        f"{name_or_path}: no such configuration file, and no shipped recipe of that name "
        f"(shipped: {names})"
    )


def _spell(word: str) -> str:
    """Accept hyphens and underscores alike: --learning_rate, --augment.drop-frames."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word[2:].partition("=")
    flag = flag.replace("-", "_") if "." in flag else flag.replace("_", "-")
    return f"--{flag}{equals}{value}"


def _check_values(words: Sequence[str]) -> None:
    """Refuse a wrong value on the command line as one in a recipe is refused.

    Raises:
        ConfigError: one does not fit its key. Other faults are left to the parser.
    """
    given: dict[str, list[str]] = {}
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            values = given.setdefault(flag.replace("-", "_"), [])
            values += [value] if equals else []
        else:
            values.append(word)
    for key, texts in given.items():
        if texts and typing.get_type_hints(TrainConfig).get(key) is bool:
            flag = key.replace("_", "-")
            raise ConfigError(f"--{flag} takes no value, got {texts[0]!r}: --{flag} or --no-{flag}")
        if texts:
            check_text(TrainConfig, key, texts if len(texts) > 1 else texts[0])


def _suggest(message: str) -> str:
    """Near matches of an option that does not exist."""
    if "unrecognized" not in message:
        return ""
    unknown = next((word for word in message.split() if word.startswith("--")), "")
    known = [_spell(f"--{key}") for key in flatten(config_to_dict(TrainConfig()))]
    near = difflib.get_close_matches(unknown.partition("=")[0], known, n=2)
    return f"; did you mean {' or '.join(near)}?" if near else f"; see {PROGRAM} --help"


def _expand_model(value: Any, where: str) -> Any:
    """Complete `model: small` and `model: {name: small, fusion: concatenation}`."""
    if not isinstance(value, Mapping):
        value = {"name": value}
    complete = all(entry.name in value for entry in dataclasses.fields(ModelConfig))
    name = value.get("name", "small")
    if complete:
        return value
    if not isinstance(name, str) or name not in CONFIGS:
        at = f"{where}: " if where else ""
        raise ConfigError(f"{at}unknown model {name!r}; known: {', '.join(CONFIGS)}")
    return overlay(config_to_dict(CONFIGS[name]), value)
