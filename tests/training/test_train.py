"""flowfuse-train: exact resuming, kills, NaN, what is refused, and what is written."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowfuse.cli import train, train_options
from flowfuse.config import ConfigError
from flowfuse.data.augment import AugmentConfig
from flowfuse.data.samples import Sample
from flowfuse.model import CONFIGS, FlowFuse, ModelOutput
from flowfuse.model.checkpoint import load_checkpoint, read_header
from flowfuse.training import log, sampling, state, trainer
from flowfuse.training.validation import Validator

pytestmark = pytest.mark.usefixtures("one_thread")  # as many as the killed process has
RECIPE = """
model: {name: small, slices: 2, bins: 2, stem_channels: 8, channels: 8, hidden: 8,
        token_channels: 8, boundary_channels: 8, iterations: 2, radius: 1, levels: 1,
        dilations: [1, 2]}
data: scenes:slow=2,fast=1
scenes: 5
scene_size: [40, 48]
crop: [24, 32]
batch: 2
steps: 16
learning_rate: 2e-3
log_every: 2
validate_every: 8
validation_scenes: 2
checkpoint_every: 4
keep: 2
tensorboard: false
device: cpu
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(f"{RECIPE}cache: {path.parent / 'scenes'}\n")
    return path


@pytest.fixture(scope="module")
def finished(recipe, one_thread) -> Path:
    """The run that nothing interrupts; others are compared with it."""
    run = recipe.parent / "finished"
    assert train.main(["--config", str(recipe), "-o", str(run)]) == 0
    return run


def read_all(run: Path, step: int = 16) -> dict[str, torch.Tensor]:
    with safe_open(str(run / f"checkpoints/step_{step:08d}.safetensors"), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows without what a clock wrote."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "seconds_per_step"} for row in rows]


def assert_same_run(run: Path, other: Path, step: int = 16) -> None:
    found, expected = read_all(run, step), read_all(other, step)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    for table in ("log.csv", "validation.csv"):
        assert read_table(run / table) == read_table(other / table)


def interrupt_at(monkeypatch, step: int, number: int = signal.SIGINT) -> None:
    take_step = train.Trainer.take_step

    def interrupted(self, batch):
        if self.state.step + 1 == step:
            os.kill(os.getpid(), number)
        return take_step(self, batch)

    monkeypatch.setattr(train.Trainer, "take_step", interrupted)


def test_what_a_run_leaves(finished):
    assert {p.name for p in finished.iterdir()} == {
        "best.safetensors", "checkpoints", "config.yaml", "history.jsonl", "log.csv",
        "model.safetensors", "pictures", "validation.csv",
    }  # fmt: skip
    kept = {int(p.stem[5:]) for p in (finished / "checkpoints").iterdir()}
    best = read_header(finished / "model.safetensors")[1]["training"]["best"]["step"]
    assert kept == {12, 16, best}
    assert {p.name for p in (finished / "pictures").iterdir()} == {
        "step_00000008.png", "step_00000016.png",
    }  # fmt: skip
    rows = read_table(finished / "log.csv")
    assert [int(row["step"]) for row in rows] == list(range(2, 17, 2))
    assert {"loss", "epe", "epe_zero", "epe_ratio", "gradient", "learning_rate"} <= rows[0].keys()
    validated = read_table(finished / "validation.csv")
    assert {"epe", "tepe", "epe_frames", "epe_events", "epe_zero", "epe_dis"} <= validated[0].keys()
    model, info = load_checkpoint(finished / "model.safetensors")
    average = read_all(finished)
    assert all(torch.equal(t, average[f"model.{n}"]) for n, t in model.state_dict().items())
    assert info["training"]["step"] == 16 and info["training"]["settings"]["crop"] == [24, 32]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_has_the_same_bits(
    recipe, finished, tmp_path, monkeypatch, capsys, number
):
    # Step 5 is between two checkpoints, two lines of the log and two epochs.
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, number)
        assert train.main(["--config", str(recipe), "-o", str(tmp_path)]) == 130
    assert "stopped after step 5, checkpoint saved" in capsys.readouterr().err
    assert train.main(["-o", str(tmp_path), "--resume"]) == 0
    assert "resuming from" in capsys.readouterr().err
    assert_same_run(tmp_path, finished)


def test_killed_and_resumed_has_the_same_bits(recipe, finished, tmp_path, capsys):
    command = [sys.executable, "-m", "flowfuse.train", "--config", str(recipe), "-o", str(tmp_path)]
    root = Path(__file__).parents[2]  # where -m finds the package, installed or not
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE)
    first = tmp_path / "checkpoints/step_00000004.safetensors"
    try:
        while not first.exists() and process.poll() is None:
            time.sleep(0.005)
    finally:
        process.kill()
        stderr = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, stderr
    assert train.main(["--config", str(recipe), "-o", str(tmp_path), "--resume"]) == 0
    assert_same_run(tmp_path, finished)


def test_truncated_newest_checkpoint_is_set_aside(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    newest = run / "checkpoints/step_00000016.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    abandoned = run / "checkpoints/.step_00000016.999999999-ab.tmp.safetensors"
    abandoned.write_bytes(b"half")
    exported = run / ".model.999999999-ab.tmp.safetensors"
    exported.write_bytes(b"half")
    assert train.main(["-o", str(run), "--resume"]) == 0
    message = capsys.readouterr().err
    assert "truncated" in message and "using step_00000012.safetensors" in message
    assert (run / "checkpoints/unreadable_step_00000016.safetensors").exists()
    assert not abandoned.exists() and not exported.exists()
    assert_same_run(run, finished)


def test_no_readable_checkpoint_is_an_error(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"")
    assert train.main(["-o", str(run), "--resume"]) == 2
    assert "step_00000016.safetensors: not a safetensors file" in capsys.readouterr().err


def test_nan_stops_saves_the_batch_and_keeps_the_checkpoint(recipe, tmp_path, monkeypatch, capsys):
    loss = trainer.supervised_loss
    calls = []

    def poisoned(output, batch, config, single=None):
        calls.append(1)
        total, parts = loss(output, batch, config, single)
        return (total * float("nan") if len(calls) == 6 else total), parts

    monkeypatch.setattr(trainer, "supervised_loss", poisoned)
    assert train.main(["--config", str(recipe), "-o", str(tmp_path)]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step 6: the loss is nan" in message and "step_00000004.safetensors" in message
    with safe_open(str(tmp_path / "nan_batch.safetensors"), "pt") as file:
        assert file.metadata()["step"] == "6"
        assert file.get_tensor("slices").shape == (2, 3, 2, 24, 32)
    assert all(t.isfinite().all() for t in read_all(tmp_path, 4).values())


def test_infinite_gradient_stops_too(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        trainer.nn.utils, "clip_grad_norm_", lambda parameters, clip: torch.tensor(float("inf"))
    )
    assert train.main(["--config", str(recipe), "-o", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "step 1: " in message and "norm inf" in message and "no checkpoint yet" in message


def test_full_disk_is_one_line(recipe, tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(state.TrainingState, "save", full)
    assert train.main(["--config", str(recipe), "-o", str(tmp_path)]) == 1
    assert capsys.readouterr().err.strip().endswith("error: No space left on device")


def test_faults_of_the_data_are_one_line(recipe, tmp_path, capsys):
    arguments = ["--config", str(recipe), "-o", str(tmp_path / "run"), "--steps", "1"]
    arguments += ["--cache", str(tmp_path / "cache"), "--workers", "1"]
    assert train.main([*arguments, "--validation-scenes", "1"]) == 0
    for kept in (tmp_path / "cache").rglob("*.npz"):
        if kept.stat().st_size:
            kept.write_bytes(kept.read_bytes()[:100])
    assert train.main([*arguments, "--validation-scenes", "2", "-o", str(tmp_path / "more")]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("flowfuse-train: error: ") and message.endswith("delete it")


def test_events_alone_are_validated_as_they_are_trained():
    """Without frames no exposure weighs the event sum; without events there is none."""
    torch.manual_seed(0)
    slices, image = torch.randint(-3, 4, (3, 2, 16, 16)).float(), torch.rand(1, 16, 16)
    sample = Sample(
        slices=slices, frame0=image, frame1=image, event_sum=image,
        exposure=torch.ones(2), tau=torch.tensor([0.5, 1.0]),
        flow=torch.ones(2, 2, 16, 16), valid=torch.ones(2, 16, 16) > 0,
        modality_mask=torch.ones(4),
    )  # fmt: skip
    seen = []

    class Model:
        config = CONFIGS["small"]

        def __call__(self, inputs):
            seen.append(inputs)
            points = torch.zeros(1, 2, 2, 16, 16)
            maps = points[:, 0]
            return ModelOutput(points, maps, points[None, ..., 4::8, 4::8], maps, maps, maps, maps)

    cpu = torch.device("cpu")
    found = Validator([sample], batch=1, device=cpu, bf16=False).measure(Model())
    assert found["epe"] == found["epe_events"] == pytest.approx(2**0.5)
    both, frames, events = seen
    assert torch.equal(both.event_sum[0], image) and both.modality_mask.tolist() == [[1, 1, 1, 1]]
    assert not frames.event_sum.any() and frames.modality_mask.tolist() == [[1, 0, 0, 1]]
    assert torch.equal(events.event_sum[0, 0], slices[1:].sum((0, 1)))
    assert not events.exposure.any() and events.modality_mask.tolist() == [[0, 1, 1, 0]]


def test_time_is_up(recipe, tmp_path, monkeypatch, capsys):
    """The first step is the first good moment; --stop-after-minutes counts from the start."""
    given = ["--config", str(recipe), "-o", str(tmp_path)]
    assert train.main([*given, "--stop-after-minutes=0"]) == 0
    assert "the time is up during the preparation: nothing was trained" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))

    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)  # nothing takes time before the first step

    def late(self, batch, usual=train.Trainer.take_step):
        monkeypatch.setattr(time, "monotonic", lambda: now + 3600)
        return usual(self, batch)

    monkeypatch.setattr(train.Trainer, "take_step", late)
    assert train.main([*given, "--resume", "--stop-after-minutes=30"]) == 0
    told = capsys.readouterr().err
    assert "stopped after step 1, checkpoint saved" in told
    assert f"the model is {tmp_path / 'model.safetensors'}; it was never validated" in told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_prepares(recipe, tmp_path, monkeypatch, capsys, number):
    def signalled(config, held_out):
        os.kill(os.getpid(), number)
        return [held_out[0]]

    monkeypatch.setattr("flowfuse.training.trainer.validation_samples", signalled)
    assert train.main(["--config", str(recipe), "-o", str(tmp_path)]) == 130
    assert "stopped during the preparation: nothing was trained" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_second_ctrl_c_stops_at_once(recipe, tmp_path, monkeypatch, capfd):
    def twice(self, batch):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)  # the first one is answered here
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
        raise AssertionError("still here")

    monkeypatch.setattr(train.Trainer, "take_step", twice)
    assert train.main(["--config", str(recipe), "-o", str(tmp_path)]) == 130
    told = capfd.readouterr().err
    assert "stopping after this step, with a checkpoint; once more stops at once" in told
    assert "stopped in step 1; --resume goes on from the last checkpoint" in told


def test_every_call_is_kept_and_the_best_is_named(recipe, tmp_path, capsys):
    given = ["--config", str(recipe), "-o", str(tmp_path), "--steps", "2", "--validate-every", "1"]
    assert train.main(given) == 0
    assert train.main([*given, "--resume", "--steps", "3"]) == 0
    first, second = map(json.loads, (tmp_path / "history.jsonl").read_text().splitlines())
    assert first["command"] == shlex.join(["flowfuse-train", *given])
    assert second["command"].endswith("--resume --steps 3") and second["settings"]["steps"] == 3
    assert first["versions"]["torch"] == torch.__version__
    with open(tmp_path / "validation.csv", newline="") as file:
        errors = {int(row["step"]): float(row["epe"]) for row in csv.DictReader(file)}
    best = min(errors, key=lambda step: (errors[step], step))
    _, info = load_checkpoint(tmp_path / "best.safetensors")
    assert info["training"]["step"] == best
    told = capsys.readouterr().err.splitlines()[-1]
    if best == 3:
        assert f"the model is {tmp_path / 'model.safetensors'}, the best by validation" in told
    else:
        assert f"that of step {best}, {tmp_path / 'best.safetensors'}" in told
    assert f"epe {errors[best]:.4g}" in told


STAGES = ["--steps", "6", "--final-share", "0.5", "--final-crop", "40", "48"]
STAGES += ["--final-batch", "1", "--checkpoint-every", "1", "--validation-scenes", "1"]


@pytest.fixture(scope="module")
def staged(recipe, one_thread) -> Path:
    run = recipe.parent / "staged"
    assert train.main(["--config", str(recipe), "-o", str(run), *STAGES]) == 0
    return run


@pytest.mark.parametrize("step", [2, 3, 4])
def test_interrupted_about_the_final_stage_has_the_same_bits(
    recipe, staged, tmp_path, monkeypatch, step
):
    """The early stage ends with step 3."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        assert train.main(["--config", str(recipe), "-o", str(tmp_path), *STAGES]) == 130
    seen = []
    take_step = train.Trainer.take_step

    def watched(self, batch):
        seen.append(tuple(batch.frame0.shape))
        return take_step(self, batch)

    monkeypatch.setattr(train.Trainer, "take_step", watched)
    assert train.main(["-o", str(tmp_path), "--resume"]) == 0
    assert seen == [*[(2, 1, 24, 32)] * (3 - step), *[(1, 1, 40, 48)] * min(3, 6 - step)]
    assert_same_run(tmp_path, staged, step=6)


def test_init_gives_the_first_weights_and_a_resumed_run_keeps_its_own(
    recipe, finished, tmp_path, capsys
):
    def start(*words):
        given = ["--config", str(recipe), "-o", str(tmp_path / "run"), "--init", str(finished)]
        config, options = train_options.read_command_line(
            [*given, "--model.iterations", "1", *words]
        )
        return train.prepare(config, options, torch.device("cpu"))

    expected = load_checkpoint(finished / "model.safetensors")[0].state_dict()
    run, begun = start("--seed", "5")
    for model in (begun.model, begun.average):
        assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items())
    assert begun.step == 0 and not begun.optimizer.state
    assert f"starting from the weights of {finished}" in capsys.readouterr().err

    with torch.no_grad():
        next(begun.model.parameters()).zero_()
    run.save(begun, {}, keep=1)
    _, resumed = start("--resume")
    assert not next(resumed.model.parameters()).any()
    assert "starting from the weights" not in capsys.readouterr().err


def average_after(first, trained, decays):
    """The average by its recurrence, from the weights that were trained step by step."""
    average = {name: tensor.double() for name, tensor in first.items()}
    for weights, decay in zip(trained, decays, strict=True):
        average = {n: decay * t + (1 - decay) * weights[n].double() for n, t in average.items()}
    return average


@pytest.mark.parametrize(
    ("given", "decays"),
    [(True, [0.9] * 4), (False, [2 / 11, 3 / 12, 4 / 13, 5 / 14])],  # of the first random weights
)
def test_the_average_forgets_first_weights_early_unless_they_are_given(
    recipe, finished, tmp_path, given, decays
):
    run, words = tmp_path / "run", ["--ema", "0.9", "--checkpoint-every", "1", "--keep", "9"]
    words += ["--init", str(finished)] if given else []
    argv = ["--config", str(recipe), "-o", str(run), "--steps", "4", "--validate-every", "9"]
    assert train.main([*argv, *words]) == 0
    kept = [read_all(run, step) for step in (1, 2, 3, 4)]
    trained = [
        {n.removeprefix("raw."): t for n, t in tensors.items() if n.startswith("raw.")}
        for tensors in kept
    ]
    config, _ = train_options.read_command_line([*argv, *words])
    new = state.TrainingState(
        config.model, torch.device("cpu"), seed=config.seed, weight_decay=config.weight_decay,
        evidence_rate=config.evidence_rate, decay=config.ema, channels_last=config.channels_last,
    )  # fmt: skip
    if given:
        new.start_from(finished / "model.safetensors")
    expected = average_after(new.model.state_dict(), trained, decays)
    for name, tensor in expected.items():
        # Four roundings to float32.
        assert torch.allclose(kept[-1][f"model.{name}"].double(), tensor, rtol=1e-6, atol=1e-7)


def test_weights_without_motion_of_neighbours_begin_a_training_with_it(recipe, tmp_path):
    plain, run = tmp_path / "plain", tmp_path / "run"
    words = ["--config", str(recipe), "--steps", "4", "--checkpoint-every", "1", "--keep", "9"]
    assert train.main([*words, "--model.selection", "false", "-o", str(plain)]) == 0
    assert train.main([*words, "--init", str(plain), "-o", str(run)]) == 0
    given, first = read_all(plain, 4), read_all(run, 1)
    part = "refinement.selection."
    assert not any(part in name for name in given)
    assert any(part in name for name in first)
    # One small step away from what was given.
    name = "raw.refinement.out.weight"
    assert (first[name] - given["model.refinement.out.weight"]).abs().max() < 0.02


def test_a_run_of_an_earlier_version_is_resumed_as_it_was_begun(recipe, tmp_path, monkeypatch):
    """Such a version knew no motion of neighbours: neither settings nor checkpoints say so."""
    run = tmp_path / "run"
    words = ["--config", str(recipe), "--steps", "6", "--model.selection", "false", "-o", str(run)]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert train.main(words) == 130
    settings = run / "config.yaml"
    lines = settings.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.strip() != "selection: false"]
    assert len(kept) == len(lines) - 1
    settings.write_text("".join(kept))
    for path in (run / "checkpoints").iterdir():
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata()
        values = json.loads(metadata["config"])
        del values["selection"]
        metadata["config"] = json.dumps(values)
        save_file(load_file(path), path, metadata=metadata)
    assert train.main(["-o", str(run), "--resume"]) == 0
    assert not any("refinement.selection." in name for name in read_all(run, 6))


@pytest.mark.parametrize("former", [False, True])
def test_a_finetuning_is_resumed_with_the_same_bits(
    recipe, finished, tmp_path, monkeypatch, former
):
    """And one of a former version, which did not say that the average keeps the given weights, as
    it was begun."""
    words = ["--config", str(recipe), "--init", str(finished), "--steps", "6", "--ema", "0.9"]
    if former:
        facts, start = state.TrainingState.facts, state.TrainingState.start_from

        def without(self, settings):
            return {k: v for k, v in facts(self, settings).items() if k != "keeps_first"}

        def forgetful(self, path):
            start(self, path)
            self.keeps_first = False

        monkeypatch.setattr(state.TrainingState, "facts", without)
        monkeypatch.setattr(state.TrainingState, "start_from", forgetful)
    assert train.main([*words, "-o", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert train.main([*words, "-o", str(tmp_path / "parts")]) == 130
    monkeypatch.undo()
    assert train.main(["-o", str(tmp_path / "parts"), "--resume"]) == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole", step=6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the directory of the run: -o"),
        (["-o", ""], "name the directory of the run: -o"),
        (
            ["-o", "{run}"],
            "already holds a training, up to step_00000016.safetensors: add --resume",
        ),
        (["-o", "{new}", "--resume"], "nothing to resume: no config.yaml"),
        (["-o", "{run}", "--resume", "--model.hidden", "16"], "model.hidden = 8; 16 cannot go on"),
        (["-o", "{recipe}/x"], ": Not a directory"),
        (["-o", "{foreign}"], "holds config.yaml, but no checkpoints/: no training made them"),
        (["-o", "{run}", "--resume", "--steps", "9"], "what the run has done, 16, got 9"),
        (["-o", "{new}", "--config", "absent"], "of that name (shipped: adapt, dsec, nano, small)"),
        (["-o", "{new}", "--config", "{listed}"], "listed.yaml: unknown model ['small']; known"),
        (["-o", "{new}", "--config", "{twice}"], "twice.yaml: key steps is given twice"),
        (["-o", "{new}", "--seed", "9" * 20], "seed must be at most 9223372036854775807, got 999"),
        (["-o", "{new}", "--evidence-rate", "0"], "evidence_rate must be a positive number, got 0"),
        (["-o", "{new}", "--loss.flow", "-1"], "error: loss.flow must be a number >= 0, got -1.0"),
        (["-o", "{new}", "--loss.matching", "nan"], "loss.matching"),
        (["-o", "{new}", "--crop", "15", "32"], "crop must be at least 16 x 16 px, got (15, 32)"),
        (["-o", "{new}", "--model.levels", "17"], "levels must be at most 16, got 17"),
        (["-o", "{new}", "--model.radius", "17"], "radius must be at most 16, got 17"),
        (["-o", "{new}", "--config", "absent"], "absent: no such configuration file"),
        (["-o", "{new}", "--config", "{bad}"], "unknown key learning_rat; did you mean learning_"),
        (["-o", "{new}", "--stepz", "3"], "did you mean --steps"),
        (["-o", "{new}", "--model.fusio", "x"], "did you mean --model.fusion"),
        (["-o", "{new}", "--nonsense", "1"], "unrecognized arguments: --nonsense 1; did you mean"),
        (["-o", "{new}", "stray"], "unrecognized arguments: stray; see flowfuse-train --help"),
        (
            ["-o", "{new}", "--model.fusion", "sum"],
            "model.fusion must be evidence or guided or concatenation",
        ),
        (["-o", "{new}", "--model.hidden", "foo"], "error: model.hidden must be int, got 'foo'"),
        (["-o", "{new}", "--batch", "x"], "error: batch must be int, got 'x'"),
        (["-o", "{new}", "--crop", "3"], "error: crop must be a list of 2 values (int), got 3"),
        (["-o", "{new}", "--iterations=x"], "error: iterations must be int or null, got 'x'"),
        (["-o", "{new}", "--bf16", "true"], "--bf16 takes no value, got 'true': --bf16 or --no-"),
        (["-o", "{new}", "--loss", "3"], "error: loss must be a mapping of keys, got 3"),
        (["-o", "{new}", "--stop-after-minutes", "x"], "--stop-after-minutes: invalid float value"),
        (["-o", "{new}", "--config", "{wrong}"], "wrong.yaml: model.hidden must be int, got 'foo'"),
        (["-o", "{new}", "--model", "smal"], "unknown model 'smal'; known: nano, small, base"),
        (["-o", "{new}", "--steps", "many"], "error: steps must be int, got 'many'"),
        (["-o", "{new}", "--steps", "0"], "flowfuse-train: error: steps must be at least 1, got 0"),
        (["-o", "{new}", "--crop", "200", "100"], "must not be larger than scene_size"),
        (
            ["-o", "{new}", "--final-crop", "128", "200"],
            "final_crop (128, 200) must not be larger than scene_size (160, 192)",
        ),
        (["-o", "{new}", "--final-crop", "8", "99"], "final_crop must be at least 16 x 16 px, got"),
        (["-o", "{new}", "--final-share", "1"], "final_share must be in [0, 1), got 1.0"),
        (["-o", "{new}", "--final-share", "0.1"], "0.1 needs final_crop, final_batch or both"),
        (["-o", "{new}", "--final-batch", "0"], "final_batch must be at least 1, got 0"),
        (
            ["-o", "{new}", "--overfit", "1", "--final-share", "0.1", "--final-batch", "2"],
            "overfit trains in one stage: final_share must be 0, got 0.1",
        ),
        (["-o", "{new}", "--init", "absent"], "checkpoint absent: no such file"),
        (
            ["-o", "{new}", "--init", "{run}/model.safetensors"],
            "model.safetensors has model.bins = 2, this training 3: its weights cannot begin it",
        ),
        (["-o", "{new}", "--data", "scenes:fats"], "no scene preset 'fats'"),
        (["-o", "{new}", "--data", "scenes:fast@dvs"], "no sensor 'dvs'"),
        (["-o", "{new}", "--data", "dsec"], "data must be scenes:PRESET, scenes:A=2,B=1,"),
        (["-o", "{new}", "--data", "scenes:fast=-1"], "weight of fast must be positive"),
        (["-o", "{new}", "--augment.flip", "2"], r"augment.flip must be in [0, 1], got 2"),
        (["-o", "{new}", "--device", "tpu"], "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["-o", "{new}", "--scene-device", "tpu"], "cpu, cuda or cuda:N, got 'tpu'"),
        (["-o", "{new}", "--device", "cuda:77"], "device 'cuda:77' was asked for, but torch"),
        (["-o", "{new}", "--scene-device", "cuda:77"], "device 'cuda:77' was asked for, but torch"),
        (
            ["-o", "{new}", "--scene-device", "cuda", "--workers", "2"],
            "scene_device cuda needs workers = 0, got 2: a forked process cannot use the GPU",
        ),
    ],
)
def test_refused_in_one_line(finished, recipe, tmp_path, capsys, arguments, message):
    bad = tmp_path / "bad.yaml"
    bad.write_text("learning_rat: 1\n")
    listed, twice, wrong = (tmp_path / f"{name}.yaml" for name in ("listed", "twice", "wrong"))
    wrong.write_text("model: {hidden: foo}\n")
    listed.write_text("model: [small]\n")
    twice.write_text("steps: 1\nsteps: 2\n")
    places = {"run": finished, "new": tmp_path / "new", "recipe": recipe, "bad": bad}
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.yaml").write_text("port: 80\n")
    places |= {"listed": listed, "twice": twice, "wrong": wrong, "foreign": foreign}
    assert train.main([word.format(**places) for word in arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and message.replace("{recipe}", str(recipe)) in error
    assert not (tmp_path / "new").exists()
    assert [path.name for path in foreign.iterdir()] == ["config.yaml"]


def test_settings_of_a_run_hold_in_any_directory(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    given = ["--config", str(recipe), "-o", "run", "--cache", "pool", "--init", "runs/a"]
    config = train_options.read_command_line(given)[0]
    assert (config.cache, config.init) == (str(tmp_path / "pool"), str(tmp_path / "runs/a"))
    assert train_options.read_command_line([*given[:-1], "small"])[0].init == "small"  # shipped


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ModuleNotFoundError("reading x.aedat4 needs dv-processing"), 2, "needs dv-processing"),
        (KeyboardInterrupt(), 130, "stopped before anything was written"),
    ],
)
def test_what_ends_a_training_before_it_begins(
    recipe, tmp_path, monkeypatch, capsys, error, code, message
):
    def fail(config):
        raise error

    monkeypatch.setattr(train, "make_pool", fail)
    assert train.main(["--config", str(recipe), "-o", str(tmp_path / "run")]) == code
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(tmp_path, capsys):
    assert train.main(["-o", str(tmp_path / "new"), "--device", "cuda"]) == 2
    error = capsys.readouterr().err
    assert "cuda" in error and "cpu" in error and error.count("\n") == 1


def test_finished_run_resumed_does_nothing_and_longer_goes_on(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    assert train.main(["-o", str(run), "--resume"]) == 0
    assert_same_run(run, finished)
    assert train.main(["-o", str(run), "--resume", "--steps", "18"]) == 0
    assert "changed since then: steps = 18 (was 16)" in capsys.readouterr().err
    assert [row["step"] for row in read_table(run / "log.csv")][-2:] == ["16", "18"]


@pytest.mark.slow
def test_overfit_learns(recipe, tmp_path):
    arguments = ["--overfit", "2", "--data", "scenes:fast", "--steps", "150", "--ema", "0.9"]
    arguments += ["--validate-every", "1000", "--checkpoint-every", "1000"]
    assert train.main(["--config", str(recipe), "-o", str(tmp_path), *arguments]) == 0
    result = read_table(tmp_path / "validation.csv")[-1]
    # Seen: 0.45. A network that learns nothing stays at 1.
    assert float(result["epe"]) < 0.7 * float(result["epe_zero"])


def test_bfloat16_and_tensorboard(recipe, tmp_path, capsys):
    arguments = ["--bf16", "--tensorboard", "--steps", "2"]
    assert train.main(["--config", str(recipe), "-o", str(tmp_path), *arguments]) == 0
    assert all(t.dtype == torch.float32 for t in read_all(tmp_path, 2).values())
    if importlib.util.find_spec("tensorboard") is None:
        assert "pip install tensorboard" in capsys.readouterr().err
    else:
        assert any((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_without_instructions_is_told_and_obeyed(
    recipe, tmp_path, monkeypatch, capsys, native
):
    monkeypatch.setattr("flowfuse.precision.cpu_has_bfloat16", lambda: native)
    arguments = ["--config", str(recipe), "-o", str(tmp_path), "--bf16", "--steps", "1"]
    assert train.main(arguments) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "no bfloat16" in line]
    expected = (
        "flowfuse-train: warning: bf16: this CPU has no bfloat16 instructions: float32 is faster "
        "(--no-bf16); going on as asked"
    )
    assert told == ([] if native else [expected])
    assert "bf16: true" in (tmp_path / "config.yaml").read_text()


def test_tensorboard_missing_is_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    record = log.TrainingLog(tmp_path, 0, tensorboard=True)
    record.log_training(1, {"loss": 1.0})
    record.close()
    assert caplog.text.count("pip install tensorboard") == 1


def test_table_drops_what_comes_after_and_half_rows(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,0.5\n2,0.25\n3,0.125\n4")
    table = log.Table(path, last_step=2)
    table.append(3, {"loss": 1 / 3})
    with pytest.raises(ValueError, match="has columns step, loss; this version writes step, epe"):
        table.append(4, {"epe": 1.0})
    table.close()
    assert path.read_text().split() == ["step,loss", "1,0.5", "2,0.25", "3,0.333333333"]


def test_settings_from_recipe_and_command_line(recipe):
    config, options = train_options.read_command_line(
        ["--config", str(recipe), "-o", "runs/x", "--learning-rate=1e-3", "--model.fusion",
         "concatenation", "--augment.drop-frames", "0.2", "--bf16", "--stop-after-minutes", "3"]
    )  # fmt: skip
    assert options == train_options.RunOptions(Path("runs/x"), False, 3.0)
    assert (config.learning_rate, config.bf16, config.steps) == (1e-3, True, 16)
    assert (config.model.fusion, config.model.channels) == ("concatenation", 8)
    assert config.augment == AugmentConfig(drop_frames=0.2)
    config, _ = train_options.read_command_line(
        ["--config", str(recipe), "-o", "x", "--model", "base", "--crop", "16", "24"]
    )
    assert config.model == CONFIGS["base"] and config.crop == (16, 24)


def test_shipped_recipes():
    for path in train_options.RECIPES.glob("*.yaml"):
        data = ["--data", "dsec:there"] if path.stem == "dsec" else []
        config, _ = train_options.read_command_line(["--config", path.stem, "-o", "x", *data])
        assert config.model.name in CONFIGS


def test_help_documents_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        train_options.read_command_line(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert all(word in text for word in ("--learning-rate", "--model.fusion", "--resume", "--crop"))
    assert "--model NAME" in text and "onfiguration file" not in text


class Numbers(torch.utils.data.Dataset):
    """Five samples that carry their index."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Sample:
        image = torch.full((1, 16, 16), index / 5.0)
        flow = torch.zeros(1, 2, 16, 16)
        return Sample(
            slices=image[None].repeat(3, 2, 1, 1), frame0=image, frame1=image,
            event_sum=image, exposure=torch.ones(2), modality_mask=torch.ones(4),
            tau=torch.ones(1), flow=flow,
            valid=flow[:, 0] == 0, occluded=flow[:, 0] > 0, boundary=flow[0],
        )  # fmt: skip


ONE_STAGE = sampling.StepPlan(99, (8, 12), 2, (8, 12), 2)


def test_batches_depend_on_seed_and_step_alone():
    def run(first, last, workers, seed=3):
        source = sampling.StepSamples(Numbers(), seed, ONE_STAGE, AugmentConfig())
        feed = sampling.batches(
            source, first_step=first, last_step=last, workers=workers, pin=False
        )
        return list(feed)

    whole, tail, other = run(1, 5, 0), run(4, 5, 2), run(1, 5, 0, seed=4)
    assert len(whole) == 5 and len(tail) == 2
    for a, b in zip(whole[3:], tail, strict=True):
        a, b = a.tensors(), b.tensors()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(whole[0].frame0, other[0].frame0)
    source = sampling.StepSamples(Numbers(), 3, ONE_STAGE, None)
    assert all(
        sorted(source.pool_index(n) for n in range(epoch * 5, epoch * 5 + 5)) == list(range(5))
        for epoch in range(4)
    )


def test_the_final_stage_numbers_on_with_its_own_crop_and_batch():
    plan = sampling.StepPlan(2, (8, 12), 3, (16, 16), 2)
    assert [list(plan.sample_indices(step)) for step in (1, 2, 3, 4)] == [
        [0, 1, 2], [3, 4, 5], [6, 7], [8, 9],
    ]  # fmt: skip
    assert plan.crop_of(5) == (8, 12) and plan.crop_of(6) == (16, 16)
    config, _ = train_options.read_command_line(
        ["-o", "x", "--steps", "10", "--final-share", "0.25", "--final-crop", "144", "160"]
    )
    # 0.25 of 10 steps: Python rounds a half to the even number, 2.
    assert config.plan() == sampling.StepPlan(8, (128, 160), 4, (144, 160), 4)


def test_seeds_of_held_out_scenes_are_refused():
    with pytest.raises(ConfigError, match="kept for the held-out"):
        train_options.read_command_line(["-o", "x", "--seed", str(sampling.VALIDATION_SEED)])


def test_a_recipe_may_need_the_command_line(tmp_path):
    """Its crops fit the frames of DSEC, not the scenes that are the default."""
    arguments = ["--config", "dsec", "-o", str(tmp_path / "run")]
    config, _ = train_options.read_command_line([*arguments, "--data", "dsec:there"])
    assert config.source == "dsec" and config.crop == (288, 384) and config.init == "small"
    assert config.ema**config.steps == pytest.approx(0.37, abs=0.01)  # kept of the shipped weights
    with pytest.raises(ConfigError, match=r"dsec.yaml: crop \(288, 384\) must not be larger"):
        train_options.read_command_line(arguments)


def test_training_without_truth(recipe, tmp_path):
    run = tmp_path / "self"
    argv = ["--config", str(recipe), "-o", str(run), "--supervision", "self", "--steps", "4"]
    assert train.main(argv) == 0
    rows = read_table(run / "log.csv")
    assert {"photometric", "gradient_constancy", "sharpness", "smoothness", "epe"} <= rows[0].keys()
    assert "boundary_event" not in rows[0]
    with pytest.raises(ConfigError, match="supervision"):
        train_options.read_command_line(["-o", "x", "--supervision", "none"])


@pytest.mark.parametrize("share", ["0", "1"])
def test_training_from_a_flow_like_that_of_the_interval_before(
    recipe, tmp_path, monkeypatch, share
):
    starts = []
    forward = FlowFuse.forward

    def watched(self, *args, **kwargs):
        if self.training:
            starts.append(kwargs["flow_init"])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(FlowFuse, "forward", watched)
    argv = ["--config", str(recipe), "-o", str(tmp_path / "run"), "--steps", "1"]
    assert train.main([*argv, "--augment.warm_start", share]) == 0
    (start,) = starts
    if share == "0":
        assert start is None
    else:
        assert start.shape == (2, 2, 24, 32) and torch.isfinite(start).any()


def test_supervision_was_called_truth(recipe, tmp_path, capsys):
    with pytest.warns(FutureWarning, match="supervision truth is now called ground_truth"):
        config, _ = train_options.read_command_line(["-o", "x", "--supervision", "truth"])
    assert config.supervision == "ground_truth"
    run = tmp_path / "former"
    text = recipe.read_text() + "supervision: truth\n"
    (tmp_path / "former.yaml").write_text(text)
    argv = ["--config", str(tmp_path / "former.yaml"), "-o", str(run), "--steps", "1"]
    assert train.main(argv) == 0
    assert "train: warning: supervision truth is now called ground_truth" in capsys.readouterr().err
    assert "supervision: ground_truth" in (run / "config.yaml").read_text()
