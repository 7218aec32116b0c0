"""benchmarks/accuracy.py: what it computes and writes, and how it fails; never how
accurate anything is."""

from __future__ import annotations

import importlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from evaluation_cases import image_folder, make_recordings, texture

import flowfuse
from flowfuse.evaluation import statistics
from flowfuse.evaluation.baselines import BASELINES
from flowfuse.evaluation.cases import pair_case
from flowfuse.events import Events
from flowfuse.model import CONFIGS, FlowFuse
from flowfuse.model.checkpoint import save_checkpoint

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = ("--scenes", "2", "--size", "64", "80")


@pytest.fixture(autouse=True)
def neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other by name."""
    monkeypatch.syspath_prepend(str(FOLDER))


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


# Rows


def test_labels_of_checkpoints(tmp_path: Path) -> None:
    network = load("accuracy").Network
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, FlowFuse(replace(CONFIGS["small"], events=False, slices=6)))
    assert network.parse("small").row == "small fused"
    modes = ["fused", "frames", "events", "frame 0"]
    assert list(network.parse("a=small").modes.values()) == modes
    alone = network.parse(f"plain={path}")
    assert alone.modes == {"plain": "fused"} and alone.slicing == (6, 3)
    assert network.parse(str(path)).label == "model"


def test_every_part_that_can_be_switched_off_does_something(tmp_path: Path) -> None:
    rows, parts = load("accuracy"), load("parts")
    whole = rows.Network.parse("small")
    case = rows.SceneSet("fast", 1, (64, 80), {(4, 3)}, tmp_path)[0]

    def run(network):
        estimate = case.estimate(network.estimator, "fused")
        return np.concatenate((estimate.displacements[-1], estimate.boundary))

    before = run(whole)
    for part in parts.PARTS:
        network = whole.without(part)
        assert network.modes == {f"small without {part}": "fused"}
        assert not np.allclose(run(network), before, atol=1e-3), part
    assert np.array_equal(run(rows.Network.parse("small")), before)


LACKS_ALL = replace(
    CONFIGS["nano"], fusion="concatenation", selection=False, boundary=False, gradient_steps=0
)


def test_a_part_that_a_network_lacks_cannot_be_switched_off() -> None:
    parts = load("parts")
    for part in parts.PARTS:
        with pytest.raises(ValueError, match=rf"^--without {part}: this network has no such part$"):
            parts.switch_off(FlowFuse(LACKS_ALL), [part])


def test_rows_without_parts_follow_those_of_the_checkpoints(tmp_path: Path) -> None:
    rows = load("accuracy")
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, FlowFuse(CONFIGS["nano"]))
    without = ["--without", "selection", "evidence", "selection"]
    options = rows.build_parser().parse_args(
        ["--checkpoint", "small", "--checkpoint", str(other), *without]
    )
    labels = [network.label for network in rows.load_networks(options)]
    assert labels == ["small", "other", "small without selection", "small without evidence"]


# Generated scenes


def test_scenes_of_two_slicings_are_generated_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = load("accuracy")
    dataset = importlib.import_module("flowfuse.data.synthetic.dataset")
    generated = []
    generate = dataset.generate_scene

    def watch(*arguments, **settings):
        generated.append(settings)
        return generate(*arguments, **settings)

    monkeypatch.setattr(dataset, "generate_scene", watch)
    scenes = rows.SceneSet("slow", 2, (64, 80), {(4, 3), (5, 3)}, tmp_path)
    case = scenes[1]
    assert len(generated) == 1
    assert generated[0]["max_step"] == 0.5 and generated[0]["split"] == "test"
    assert {len(sample.slices) for sample in case.samples.values()} == {5, 6}
    four, five = case.samples[4, 3], case.samples[5, 3]
    names = ("flow", "tau", "frame0")
    assert all(torch.equal(getattr(four, name), getattr(five, name)) for name in names)
    assert case.frames[0].shape == (64, 80) and case.tau[-1] == 1 and 0 < case.facts.light < 1
    again = scenes[1]  # from the cache
    assert len(generated) == 1 and np.array_equal(
        again.known.displacements, case.known.displacements
    )
    with pytest.raises(IndexError, match="scene 2 of 2"):
        scenes[2]


def test_modes_show_a_network_less(tmp_path: Path) -> None:
    rows = load("accuracy")
    case = rows.SceneSet("slow", 1, (64, 80), {(4, 3)}, tmp_path)[0]
    network = rows.Network.parse("small")
    found = rows.estimate_all([network], case)
    assert list(found) == [*network.modes, *BASELINES]
    flows = [found[row].displacements for row in network.modes]
    assert all(flow.shape == (4, 2, 64, 80) for flow in flows)
    for i, j in itertools.combinations(range(len(flows)), 2):
        assert not np.allclose(flows[i], flows[j])
    fused = found["small fused"]
    assert fused.uncertainty.shape == (64, 80) and fused.boundary.shape == (2, 64, 80)
    few = case.estimate(network.estimator, "fused", iterations=1).displacements
    assert not np.allclose(few, fused.displacements)
    measures = rows.histograms(fused, case)
    assert set(measures) == {"certain_set", "certain_set_limit", "event", "motion"}
    assert rows.histograms(found["zero"], case) == {}
    low = rows.Network.parse("small", bf16=True)
    rough = case.estimate(low.estimator, "fused").displacements
    # bfloat16 has 8 bits: something changes, by a few percent of the motion at most.
    assert 0 < np.abs(rough - flows[0]).max() < 0.1 * max(np.abs(flows[0]).max(), 10)


def test_without_a_localizer_there_are_no_boundaries(tmp_path: Path) -> None:
    rows = load("accuracy")
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, FlowFuse(replace(CONFIGS["nano"], boundary=False)))
    network = rows.Network.parse(str(path))
    case = rows.SceneSet("slow", 1, (64, 80), {(4, 3)}, tmp_path)[0]
    assert case.estimate(network.estimator, "fused").boundary is None
    events = Events(*np.zeros((3, 1), np.int64), np.ones(1, bool), height=48, width=64)
    pair = pair_case("x", (texture(), texture()), events, 0, 1000, None)
    assert pair.estimate(network.estimator, "fused").boundary is None


def test_sets_before_several_sensors() -> None:
    names = load("accuracy").set_names(["slow", "thin"], ["default", "v2e"])
    assert names == ["slow", "thin", "slow@v2e", "thin@v2e"]
    sets = [load("accuracy").SceneSet(n, 1, (64, 80), {(4, 3)}, None) for n in names[1:3]]
    assert sets[0].what.endswith("Event sensor: that of most training scenes.")
    assert sets[1].what.endswith("Event sensor: v2e's model.")


@pytest.mark.slow
def test_scenes_are_prepared_by_several_processes(tmp_path: Path) -> None:
    arguments = ["--sets", "slow", *TINY, "--cache", str(tmp_path)]
    assert load("accuracy").main([*arguments, "--prepare", "--workers", "2"]) == 0
    slicings = {(config.slices, config.bins) for config in CONFIGS.values()}
    assert len(list(tmp_path.glob("*/*.npz"))) == 2 * len(slicings)


# The commands


def test_the_command_writes_report_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy = load("accuracy")
    cache = ["--cache", str(tmp_path / "cache")]
    (tmp_path / "cache").mkdir()
    assert accuracy.main(["--sets", "slow", *TINY, *cache, "--prepare"]) == 0
    # What is prepared is not generated again.
    monkeypatch.setattr("flowfuse.data.synthetic.dataset.generate_scene", None)
    monkeypatch.setattr(statistics, "FEWEST_SCENES", 2)
    folder = image_folder(tmp_path, np.full((2, 64, 80), [[[2]], [[0]]], np.float32))
    output = tmp_path / "today"
    arguments = ["--sets", "slow", *TINY, *cache, "--images", str(folder), "-o", str(output)]
    assert accuracy.main(arguments) == 0

    report = json.loads((tmp_path / "today.json").read_text())
    assert [result["name"] for result in report["sets"]] == ["slow", "moved"]
    shown = ("fused", "frames only", "events only", "frame 0 and events")
    rows = [*(f"small {what}" for what in shown), "DIS", "Farneback", "zero"]
    scenes, images = report["sets"]
    assert list(images["rows"]) == rows
    assert list(scenes["rows"]) == rows
    measures = scenes["rows"]["small fused"]["measures"]
    for name in ("epe", "3pe", "f1_all", "ae", "tepe", "tepe_line_true_end", "ause", "epe_certain"):
        assert measures[name]["low"] <= measures[name]["value"] <= measures[name]["high"], name
    assert scenes["rows"]["DIS"]["measures"]["ause"]["value"] is None
    assert measures["epe_certain_limit"]["value"] <= measures["epe_certain"]["value"]
    assert 0 < measures["epe_certain_set"]["value"] < 1
    for kind in ("event", "motion"):
        f, everywhere = (
            measures[f"boundary_{kind}_f{end}"]["value"] for end in ("", "_everywhere")
        )
        assert everywhere < f < 1
    for name in ("epe_within_2", "epe_beyond_10", "epe_visible", "epe_behind_5", "epe_front_5"):
        assert measures[name]["value"] > 0, name
    single = [scenes["rows"][f"small {m} only"]["measures"]["epe"] for m in ("frames", "events")]
    ratio = measures["epe"]["value"] / min(found["value"] for found in single)
    assert scenes["fusion"]["small"]["value"] == pytest.approx(ratio)
    ratios = scenes["rows"]["zero"]["ratios"]
    assert set(ratios) == {"small fused", "DIS"}
    expected = scenes["rows"]["zero"]["measures"]["epe"]["value"] / measures["epe"]["value"]
    assert ratios["small fused"]["epe"]["value"] == pytest.approx(expected)
    assert images["rows"]["zero"]["measures"]["epe"]["value"] == pytest.approx(2)
    assert "tepe" not in images["rows"]["zero"]["measures"]
    assert sum(report["sweeps"]["light"]["scenes"]) == 2  # the images are not among them

    text = (tmp_path / "today.md").read_text()
    assert text in capsys.readouterr().out
    assert "## slow" in text and "## moved" in text and "## EPE by displacement" in text
    assert "nan" not in text
    zero = scenes["rows"]["zero"]["measures"]["epe"]["value"]
    assert "|  | slow | moved |\n" in text and f"| zero | {zero:.2f} | 2.00 |\n" in text
    for name in ("slow-best.png", "slow-worst.png", "moved-best.png"):
        assert f"today/{name}" in text
        assert cv2.imread(str(output / name)).shape[1] > 5 * 80


def test_recordings_without_truth(capsys: pytest.CaptureFixture) -> None:
    path = flowfuse.sample_recording()
    assert load("accuracy").main(["--sets", "--recording", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    zero = next(line for line in lines if line.startswith("| zero |"))
    cells = [cell.strip() for cell in zero.split("|")[2:-1]]
    assert float(cells[0]) > 0 and cells[1:] == ["1.0000", "0.0000", "0.0000", "0.0000"]


@pytest.mark.parametrize(
    "arguments, code, word",
    [
        (["--checkpoint", "x=no_such_model"], 1, "no_such_model"),
        (["--checkpoint", "small", "--checkpoint", "small"], 1, "two are called small"),
        (["--group", "a", "small", "--group", "b", "large"], 1, "no --checkpoint is called large"),
        (["--group", "a", "small"], 1, "two or more are needed"),
        (["--images", "/no/such/folder"], 1, "/no/such/folder"),
        (["--sets", "--recording", "/no/such/recording"], 1, "/no/such/recording"),
        (["--device", "tpu"], 1, "tpu"),
        (["--size", "8", "8", "--scenes", "1"], 1, "at least 16"),
        (["--prepare"], 2, "--cache"),
        (["--sets", "underwater"], 2, "underwater"),
        (["--sensor", "esim"], 2, "esim"),
        (["--sets"], 2, "--sets names no set, so there is nothing to do: name some, or --images"),
        (["--sets", "--recordings", "/no/such/folder"], 1, "no recording with flow/"),
        (["--sets", "--prepare", "--cache", "/tmp"], 2, "--sets names no set"),
        (["--scenes", "0"], 2, "--scenes"),
        (["-o", "/no/such/folder/x"], 2, "/no/such/folder"),
        (["-o", __file__], 2, "no directory"),
    ],
)
def test_errors_are_told_in_one_line(
    arguments: list[str], code: int, word: str, capsys: pytest.CaptureFixture
) -> None:
    try:
        found = load("accuracy").main(arguments)
    except SystemExit as stop:
        found = stop.code
    assert found == code
    message = capsys.readouterr().err.splitlines()[-1]  # after the progress bars
    assert message.startswith("accuracy: ") and word in message


def test_the_command_measures_real_recordings(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make_recordings(tmp_path)
    arguments = ["--sets", "--recordings", str(tmp_path), "--iterations", "1"]
    arguments += ["--checkpoint", "small", "--checkpoint", "again=small"]
    arguments += ["--group", "a", "small", "--group", "b", "again"]
    assert load("accuracy").main([*arguments, "-o", str(tmp_path / "x")]) == 0
    out = capsys.readouterr().out
    assert "|  | a/pair | b, with history | b, no history |" in out
    report = json.loads((tmp_path / "x.json").read_text())
    pairs, past, _ = report["sets"]
    assert pairs["seeds"]["a / b"]["epe"]["value"] == 1
    assert list(past["rows"]) == ["small events only", "again events only", "zero"]
    assert past["fusion"]["small"] is None
    assert pairs["rows"]["zero"]["measures"]["epe"]["value"] == pytest.approx(2**0.5)
    assert f"| small, a/pair | {pairs['fusion']['small']['value']:.3f} |" in out
    assert (tmp_path / "x" / "a-pair-best.png").exists()
