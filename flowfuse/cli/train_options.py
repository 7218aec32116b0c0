"""Settings of flowfuse-train: defaults, then a recipe, then the command line."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docstring_parser
import jsonargparse

from flowfuse import __version__
from flowfuse.config import (
    ConfigError,
    check_text,
    config_from_dict,
    config_to_dict,
    flatten,
    overlay,
    read_yaml,
)
from flowfuse.model import CONFIGS, ModelConfig
from flowfuse.model.checkpoint import available
from flowfuse.model.config import EARLIER_CONFIG
from flowfuse.training.data_spec import absolute
from flowfuse.training.settings import TrainConfig

PROGRAM = "flowfuse-train"
RECIPES = Path(__file__).parent.parent / "recipes"


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
    # jsonargparse has no parse_known_args; what this one leaves over depends on the model it names.
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    _add_run_options(early)
    early.add_argument("--model")
    parser = _build_parser()
    words: list[str] = []
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
        model = values.get("model", "small")
        if options.resume and options.config is None and isinstance(model, Mapping):
            model = {**EARLIER_CONFIG, **model}  # of a run that an earlier version began
        values["model"] = _expand_model(model, where)
    try:
        config = config_from_dict(TrainConfig, overlay(values, given))
    except ConfigError:
        config_from_dict(TrainConfig, values, where=where)  # names the recipe where it is at fault
        raise
    # A resumed run finds them from wherever it is started.
    config = dataclasses.replace(
        config,
        data=absolute(config.data),
        cache=_absolute(config.cache),
        textures=_absolute(config.textures),
    )
    if config.init and config.init not in available() and Path(config.init).exists():
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
        version=__version__,
        exit_on_error=False,
        allow_abbrev=False,
        description="Train a model on generated scenes, on a data set or on recordings with ground "
        "truth, or finetune one on a recording without. --model NAME chooses an architecture "
        f"({', '.join(CONFIGS)}); --model.KEY VALUE changes one of its settings. A recipe given "
        "with --config holds the same keys in YAML; the command line wins over it.",
    )
    documented = docstring_parser.parse(TrainConfig.__doc__).params
    described = {entry.arg_name: entry.description for entry in documented}
    hints = typing.get_type_hints(TrainConfig)
    _add_run_options(parser)
    for setting in dataclasses.fields(TrainConfig):
        hint, flag = hints[setting.name], "--" + setting.name.replace("_", "-")
        about: dict[str, Any] = {"help": described[setting.name], "default": setting.default}
        if dataclasses.is_dataclass(hint):
            parser.add_class_arguments(hint, setting.name)
            # It adds --loss FILE too; --config is the way to give a file, and --model takes a name.
            whole = next(a for a in parser._actions if a.option_strings == [f"--{setting.name}"])
            whole.metavar, whole.help = "NAME", argparse.SUPPRESS
            if setting.name == "model":
                whole.help = f"architecture to start from: {', '.join(CONFIGS)} (default: small)"
        elif hint is bool:
            parser.add_argument(flag, action=jsonargparse.ActionYesNo(no_prefix="no-"), **about)
        elif tuple in [typing.get_origin(kind) for kind in (hint, *typing.get_args(hint))]:
            about["default"] = about["default"] and list(about["default"])
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
