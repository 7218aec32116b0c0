"""The ablation trains every variant alike and compares the first with the others."""

import importlib
from pathlib import Path

import pytest

from flowfuse.cli import train
from flowfuse.cli.console import INTERRUPTED
from flowfuse.cli.train_settings import read_command_line
from flowfuse.config import write_yaml
from flowfuse.model import FlowFuse
from flowfuse.training.state import RunDirectory

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def ablation(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("ablation")


@pytest.fixture
def trained(monkeypatch):
    """Command lines of the trainings, which do not happen."""
    calls = []
    monkeypatch.setattr(train, "main", lambda arguments: calls.append(arguments) or 0)
    return calls


def test_variants_are_trained_alike_and_compared(ablation, trained, monkeypatch, tmp_path):
    compared = []
    monkeypatch.setattr(ablation.compare, "main", lambda arguments: compared.append(arguments) or 0)
    arguments = ["--seeds", "3", "4", "--steps", "7", "--runs", str(tmp_path), "--scenes", "2"]
    assert ablation.main([*arguments, "--sets", "mixed", "-o", str(tmp_path / "out")]) == 0
    configs = {}
    for call in trained:
        config, options = read_command_line(call)
        configs[options.output.name] = config
    names = ("guided", "concatenation", "frames", "events")
    assert list(configs) == [f"{name}_{seed}" for seed in (3, 4) for name in names]
    assert {c.steps for c in configs.values()} == {7}
    for name in names:
        for seed in (3, 4):
            config, guided = configs[f"{name}_{seed}"], configs[f"guided_{seed}"]
            assert config.seed == seed
            same = ("data", "scenes", "scene_size", "crop", "batch", "learning_rate", "loss")
            assert all(getattr(config, key) == getattr(guided, key) for key in same)
    (call,) = compared
    asked = ablation.compare.build_parser().parse_args(call)
    models = {
        name: [str(RunDirectory(tmp_path / f"{name}_{seed}").model) for seed in (3, 4)]
        for name in names
    }
    assert asked.group == [
        *([name, *paths] for name, paths in models.items()),
        ["guided:frames", *models["guided"]],
        ["guided:events", *models["guided"]],
    ]
    assert asked.pair == [
        *(["guided", name] for name in names[1:]),
        ["guided:frames", "frames"],
        ["guided:events", "events"],
    ]
    assert asked.paired  # a seed fixes the samples of all variants
    assert (asked.sets, asked.scenes, asked.output) == (["mixed"], 2, tmp_path / "out")


def test_concatenation_has_as_many_parameters(ablation, trained, tmp_path):
    counts = []
    for variant in ("guided", "concatenation"):
        options = ablation.build_parser().parse_args(["--runs", str(tmp_path)])
        ablation.train_variant(variant, 0, options)
        config, _ = read_command_line(trained[-1])
        counts.append(sum(p.numel() for p in FlowFuse(config.model).parameters()))
    assert counts[1] == pytest.approx(counts[0], rel=0.002)


def test_a_training_with_other_settings_is_not_taken_up(ablation, trained, tmp_path, capsys):
    arguments = ["--runs", str(tmp_path), "--steps", "7", "--variants", "guided", "events"]
    ablation.train_variant("guided", 0, ablation.build_parser().parse_args(arguments))
    config, options = read_command_line(trained[-1])
    run = RunDirectory(options.output)
    assert run.path == tmp_path / "guided_0"
    run.create()
    write_yaml(run.config, config)
    (run.path / "checkpoints" / "step_00000007.safetensors").touch()
    options = ablation.build_parser().parse_args(arguments)
    ablation.train_variant("guided", 0, options)
    assert trained[-1][-1] == "--resume"
    options.steps = 8
    with pytest.raises(ValueError, match=r"guided_0 is a training with other settings \(steps\)"):
        ablation.train_variant("guided", 0, options)


@pytest.mark.parametrize("code", [1, INTERRUPTED])
def test_a_failed_training_ends_it(ablation, monkeypatch, tmp_path, capsys, code):
    monkeypatch.setattr(train, "main", lambda arguments: code)
    assert ablation.main(["--runs", str(tmp_path)]) == code
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == f"ablation: the training of guided with seed 0 ended with exit code {code}"


@pytest.mark.parametrize("variants", [["guided"], ["guided", "guided"]])
def test_fewer_than_two_variants_are_refused(ablation, tmp_path, variants):
    with pytest.raises(SystemExit) as stopped:
        ablation.main(["--runs", str(tmp_path), "--variants", *variants])
    assert stopped.value.code == 2
