"""benchmarks/accuracy.py and compare.py with their parts: what they compute and write, and how they
fail; never how accurate anything is."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import flowfuse
from flowfuse.data.synthetic.camera import srgb_to_linear
from flowfuse.data.synthetic.simulator import SensorConfig
from flowfuse.events import Events
from flowfuse.io.flow import write_flow
from flowfuse.model import CONFIGS, FlowFuse
from flowfuse.model.checkpoint import save_checkpoint
from flowfuse.visualization import write_image

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = ("--scenes", "2", "--size", "64", "80")


@pytest.fixture(autouse=True)
def neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other by name."""
    monkeypatch.syspath_prepend(str(FOLDER))


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


def pair_case(ground_truth: np.ndarray, valid: np.ndarray, boundary: np.ndarray | None = None):
    """A case with truth [T, 2, H, W] at equally spaced times."""
    times, _, height, width = ground_truth.shape
    frame = np.zeros((height, width), np.uint8)
    return load("accuracy_sets").PairCase(
        facts=load("accuracy_statistics").Facts("x", math.nan, math.nan),
        frames=(frame, frame),
        events=Events.empty(height, width),
        tau=np.linspace(1 / times, 1, times, dtype=np.float32),
        ground_truth=ground_truth,
        valid=np.broadcast_to(valid, (times, height, width)),
        boundary=boundary,
        t0=0,
        t1=1000,
    )


# Statistics


def make_tally(numbers: dict[str, list[tuple[float, float]]], **facts: list[float]):
    """A tally of one measure, "epe": row -> (numerator, divisor) of every scene."""
    statistics = load("accuracy_statistics")
    tally = statistics.Tally()
    for i, pairs in enumerate(zip(*numbers.values(), strict=True)):
        known = {name: facts.get(name, [math.nan] * 99)[i] for name in ("exposure", "light")}
        rows = {row: {"epe": pair} for row, pair in zip(numbers, pairs, strict=True)}
        tally.add(statistics.Facts(f"scene {i}", **known), rows)
    return tally


def test_scenes_are_drawn_with_replacement_and_always_alike() -> None:
    drawn_counts = load("accuracy_statistics").drawn_counts
    counts = drawn_counts(5, resamples=300)
    assert counts.shape == (301, 5) and (counts[0] == 1).all() and (counts.sum(axis=1) == 5).all()
    assert np.array_equal(counts, drawn_counts(5, resamples=300))
    assert not np.array_equal(counts, drawn_counts(5, resamples=300, seed=1))
    assert (counts[1:] == 0).any() and (counts[1:] > 1).any()


def test_values_are_ratios_of_sums_and_ratios_are_paired() -> None:
    statistics = load("accuracy_statistics")
    # Errors of b are twice those of a in every scene, though scenes differ a hundredfold.
    a = [(1.0, 1.0), (100.0, 1.0), (30.0, 10.0), (0.0, 0.0)]
    a += 7 * [(0.0, 2.0**-60)]  # scenes that count as such, and next to nothing in a sum
    tally = make_tally({"a": a, "b": [(2 * total, count) for total, count in a]})
    found = statistics.summarize(tally, {"first": "a"}, ["epe"])
    value = found["a"]["measures"]["epe"]
    assert value["value"] == 131 / 12 and value["low"] < 4 and value["high"] > 50
    ratio = found["b"]["ratios"]["first"]["epe"]
    assert all(part == pytest.approx(2) for part in ratio.values())
    assert found["b"]["scene_epe"][:3] == [2, 200, 6] and math.isnan(found["b"]["scene_epe"][3])
    # As text, for the NaN in it.
    assert repr(statistics.summarize(tally, {"first": "a"}, ["epe"])) == repr(found)


def test_few_scenes_have_no_interval() -> None:
    statistics = load("accuracy_statistics")
    tally = make_tally({"a": [*[(3.0, 2.0)] * 9, (0.0, 0.0)]})
    value = statistics.summarize(tally, {}, [])["a"]["measures"]["epe"]
    assert value["value"] == 1.5 and math.isnan(value["low"]) and math.isnan(value["high"])


def test_interval_holds_the_middle_95_percent() -> None:
    interval = load("accuracy_statistics").interval
    found = interval(np.concatenate(([7.0], np.arange(1001.0), [np.nan])), scenes=10)
    assert (found.value, found.low, found.high) == (7, 25, 975)


def test_errors_by_displacement() -> None:
    statistics = load("accuracy_statistics")
    error, length = np.array([1.0, 2, 3, 4]), np.array([0.0, 1.0, 1.99, 5000.0])
    sums = statistics.displacement_sums(error, length)
    name = statistics.displacement_measure
    assert sums[name(0)] == (1, 1) and sums[name(1)] == (5, 2) and sums[name(2)] == (0, 0)
    assert sums[name(len(statistics.DISPLACEMENTS) - 2)] == (4, 1)


def test_sweeps_sort_scenes_by_exposure_and_light() -> None:
    statistics = load("accuracy_statistics")
    tally = make_tally(
        {"a": [(1.0, 1.0), (4.0, 2.0), (9.0, 3.0)]},
        exposure=[0.05, 0.05, 1.0],
        light=[0.3, math.nan, 0.3],
    )
    found = statistics.sweeps(tally)
    exposure, light = found["exposure"], found["light"]
    assert exposure["bins"][0] == "0 to 0.1" and exposure["scenes"] == [2, 0, 0, 0, 0, 1]
    values = [cell["value"] for cell in exposure["rows"]["a"]]
    assert values[0] == 5 / 3 and values[5] == 3 and math.isnan(values[1])
    assert light["scenes"] == [0, 0, 0, 0, 0, 2, 0]
    assert light["rows"]["a"][5]["value"] == 10 / 4
    assert found["displacement"]["bins"][-1] == "> 64"


def test_pooled_and_selected_scenes() -> None:
    statistics = load("accuracy_statistics")
    first, second = make_tally({"a": [(1.0, 1.0)]}), make_tally({"a": [(2.0, 1.0), (3.0, 1.0)]})
    pooled = statistics.Tally.pooled([first, second])
    assert pooled.sums("a", "epe")[:, 0].tolist() == [1, 2, 3]
    assert pooled.select([True, False, True]).sums("a", "epe")[:, 0].tolist() == [1, 3]
    assert pooled.sums("a", "ause").tolist() == [[0, 0]] * 3


# Rows


def test_true_sums_by_hand() -> None:
    rows, sets = load("accuracy_rows"), load("accuracy_sets")
    ground_truth = np.zeros((2, 2, 4, 5))
    ground_truth[0, 0], ground_truth[1, 0] = (
        6,
        8,
    )  # at tau = 1/2 and 1: 2 px ahead of the straight line
    valid = np.ones((4, 5), bool)
    valid[0] = False
    flow = np.zeros_like(ground_truth)
    flow[1, 0] = 8
    flow[1, 0, 1] += 4  # row 1 is off by 4 px, and said to be uncertain
    uncertainty = np.zeros((4, 5))
    uncertainty[1] = 1
    boundary = np.zeros((2, 4, 5))
    case = pair_case(ground_truth, valid, boundary)
    sums = rows.ground_truth_sums(sets.Estimate(flow, uncertainty), case)
    assert sums["epe"] == (20, 15) and sums["epe_displacement_4"] == (20, 15)
    assert sums["epe_boundary"] == (0, 0) and sums["epe_interior"] == (20, 15)
    assert sums["tepe"] == (6 * 15, 15)
    # Its own deviation is 0 - 4 px (0 - 6 px in row 1), the true one 2 px.
    assert sums["deviation_error"] == (10 * 6 + 5 * 8, 15 * 2)
    assert sums["ause"] == (0, 1)
    # 12 of 15 pixels are kept: 10 without an error and 2 with 4 px.
    assert sums["epe_certain"] == (pytest.approx(20 * (8 / 12) / (20 / 15)), 20)
    assert sums["epe_certain_limit"] == sums["epe_certain"]
    alone = rows.ground_truth_sums(sets.Estimate(flow[1:]), pair_case(ground_truth[1:], valid))
    assert not {"tepe", "ause", "epe_certain"} & set(alone) and alone["epe_interior"] == (0, 0)


def test_the_most_certain_pixels_of_a_set() -> None:
    statistics, thresholds = load("accuracy_statistics"), load("accuracy_thresholds")
    errors = np.array([1.0, 1, 1, 1, 6]), np.array([2.0, 2, 3, 9, 9, 9])
    expected = np.array([0.25, 1, 1, 1, 2]), np.array([0, 0.5, 8, 8, 5000, math.nan])
    scenes = np.stack(
        [thresholds.certainty_histogram(*pair) for pair in zip(errors, expected, strict=True)]
    )
    assert scenes.sum(axis=-1).tolist() == [[10, 5], [34, 6]]
    weights = np.array([[1, 1], [2, 0], [0, 2]])
    found = thresholds.certain_values(weights, scenes, share=8 / 11)
    # Of 11 pixels 8 are kept: the first scene's, two of the second, and one of its two at 8 px,
    # which is the half of each. Of one scene alone, twice, 80 / 11 of 10 or 96 / 11 of 12 are kept:
    # errors of 1, or all but part of the least certain.
    both = (10 + 2 + 2 + 12 / 2) / 8 / (44 / 11)
    first = 1 / 2
    second = (2 * (2 + 2 + 3 + 9) + (96 / 11 - 8) * 9) / (96 / 11) / (34 / 6)
    assert found == pytest.approx([both, first, second])
    perfect = thresholds.certainty_histogram(np.zeros(3), np.ones(3))[None]
    nothing = thresholds.certainty_histogram(np.zeros(0), np.zeros(0))[None]
    for empty in (perfect, nothing):
        assert np.isnan(thresholds.certain_values(np.ones((1, 1)), empty)).all()
    # Drawn with the scenes: a set of equal scenes is the same whichever are drawn.
    tally = statistics.Tally()
    for index in range(12):
        facts = statistics.Facts(str(index), math.nan, math.nan)
        tally.add(facts, {"a": {"epe": (34.0, 6)}, "b": {}}, {"a": {"certain_set": scenes[1]}})
    summary = statistics.summarize(tally, {}, [])
    value = summary["a"]["measures"]["epe_certain_set"]
    # Of four scenes 19.2 of 24 pixels, all those at 8 px and 3.2 of those whose error is expected
    # to be larger.
    expected_value = (4 * (2 + 2 + 12) + 3.2 * 9) / 19.2 / (34 / 6)
    assert [value[key] for key in ("value", "low", "high")] == pytest.approx([expected_value] * 3)
    assert "epe_certain_set" not in summary["b"]["measures"]
    picked = statistics.Tally.pooled([tally.select([True, False] * 6)])
    assert picked.histograms("a")["certain_set"].shape[0] == 6


def test_boundaries_by_hand() -> None:
    thresholds = load("accuracy_thresholds")
    ground_truth = np.zeros((9, 12), bool)
    ground_truth[:, 3] = True  # 9 px
    found = np.full((9, 12), 0.1)
    found[:6, 5] = 0.9  # two px beside it: right
    found[7, 4] = 0.5  # likewise, and less sure; it is at most 2 px from the pixels of rows 6 to 8
    found[2, 6] = 0.7  # three px beside it
    found[0, 11] = math.nan
    sure = np.full((9, 12), 0.2)
    sure[:, 3] = 0.4
    scenes = np.stack([thresholds.boundary_histogram(map_, ground_truth) for map_ in (found, sure)])
    values = thresholds.boundary_values(np.array([[1, 0], [0, 1], [1, 1]]), scenes)
    # Alone: at 0.5, of 8 that are found 7 are right, and all of 9 true ones have one; at 0.9, 6
    # of 6 and 6 of 9, which is worse. The second scene has no error at 0.4, which is best for
    # both together, too: 7 + 9 of 8 + 9, and all.
    assert values["precision"] == pytest.approx([7 / 8, 1, 16 / 17])
    assert values["recall"] == pytest.approx([1, 1, 1])
    assert values["f"] == pytest.approx([14 / 15, 1, 32 / 33])
    # Everywhere: five of twelve columns are near a true one.
    assert values["f_everywhere"] == pytest.approx([2 * (5 / 12) / (5 / 12 + 1)] * 3)


def test_the_threshold_of_boundaries_is_that_of_the_set() -> None:
    thresholds = load("accuracy_thresholds")
    ground_truth = np.zeros((9, 40), bool)
    ground_truth[:, 3] = True
    low, high = np.zeros((2, 9, 40))
    low[:, 3] = 0.3  # right, and unsure
    high[:, 3], high[:, 20] = 0.9, 0.6  # sure, and where it is less sure wrong
    scenes = np.stack([thresholds.boundary_histogram(map_, ground_truth) for map_ in (low, high)])
    values = thresholds.boundary_values(np.array([[1, 0], [0, 1], [1, 1]]), scenes)
    assert values["f"][:2].tolist() == [1, 1]
    # At 0.3: 18 of 27 are right, all 18 are found.
    assert values["precision"][2] == pytest.approx(2 / 3) and values["recall"][2] == 1
    empty = thresholds.boundary_histogram(high, np.zeros((9, 40), bool))[None]
    for value in thresholds.boundary_values(np.ones((1, 1)), empty).values():
        assert np.isnan(value).all()


def test_a_boundary_is_found_within_a_disc() -> None:
    thresholds = load("accuracy_thresholds")
    ground_truth, found = np.zeros((2, 9, 9))
    ground_truth[4, 4] = 1
    for place, near in (((4, 6), 1), ((2, 4), 1), ((5, 5), 1), ((6, 6), 0), ((5, 6), 0)):
        found[:] = 0
        found[place] = 0.9
        _, beside, around = thresholds.boundary_histogram(found, ground_truth > 0)
        assert beside[90] == near and around[90] == near


def test_baselines_move_along_straight_lines() -> None:
    rows = load("accuracy_rows")
    case = pair_case(np.zeros((2, 2, 64, 80)), np.ones((64, 80), bool))
    noise = np.random.default_rng(0).random((64, 80), np.float32)
    image = cv2.normalize(cv2.GaussianBlur(noise, None, 2), None, 0, 255, cv2.NORM_MINMAX)
    frame0 = image.astype(np.uint8)
    found = rows.estimate_baselines(replace(case, frames=(frame0, np.roll(frame0, 3, axis=1))))
    assert list(found) == list(rows.BASELINES)
    for name in (rows.DIS, rows.FARNEBACK):
        half, end = found[name].displacements
        assert np.allclose(half, end / 2)
        # Wide: how well they do is not tested, but right and down have their places.
        assert np.median(end[0]) == pytest.approx(3, abs=0.5)
        assert np.median(end[1]) == pytest.approx(0, abs=0.5)
    assert not found[rows.ZERO].displacements.any()


def test_labels_of_checkpoints(tmp_path: Path) -> None:
    network = load("accuracy_rows").Network
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, FlowFuse(replace(CONFIGS["small"], events=False, slices=6)))
    assert network.parse("small").row == "small fused"
    modes = ["fused", "frames", "events", "true boundaries"]
    assert list(network.parse("a=small").modes.values()) == modes
    alone = network.parse(f"plain={path}")
    assert alone.modes == {"plain": "fused"} and alone.slicing == (6, 3)
    assert network.parse(str(path)).label == "model"


# Generated scenes


def test_scenes_of_two_slicings_are_generated_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sets = load("accuracy_sets")
    dataset = importlib.import_module("flowfuse.data.synthetic.dataset")
    generated = []
    generate = dataset.generate_scene

    def watch(*arguments, **settings):
        generated.append(settings)
        return generate(*arguments, **settings)

    monkeypatch.setattr(dataset, "generate_scene", watch)
    scenes = sets.SceneSet("slow", 2, (64, 80), {(4, 3), (5, 3)}, tmp_path)
    case = scenes[1]
    assert len(generated) == 1
    assert generated[0]["max_step"] == 0.5 and generated[0]["split"] == "test"
    assert {len(sample.slices) for sample in case.samples.values()} == {5, 6}
    four, five = case.samples[4, 3], case.samples[5, 3]
    assert all(torch.equal(four[name], five[name]) for name in ("flow", "tau", "frame0"))
    assert case.frames[0].shape == (64, 80) and case.tau[-1] == 1 and 0 < case.facts.light < 1
    again = scenes[1]  # from the cache
    assert len(generated) == 1 and np.array_equal(again.ground_truth, case.ground_truth)
    with pytest.raises(IndexError, match="scene 2 of 2"):
        scenes[2]


def test_modes_show_a_network_less(tmp_path: Path) -> None:
    sets, rows = load("accuracy_sets"), load("accuracy_rows")
    case = sets.SceneSet("slow", 1, (64, 80), {(4, 3)}, tmp_path)[0]
    network = rows.Network.parse("small")
    found = rows.estimate_all([network], case)
    assert list(found) == [*network.modes, *rows.BASELINES]
    flows = [found[row].displacements for row in network.modes]
    assert all(flow.shape == (4, 2, 64, 80) for flow in flows)
    assert not np.allclose(flows[0], flows[1]) and not np.allclose(flows[0], flows[2])
    fused = found["small fused"]
    assert fused.uncertainty.shape == (64, 80) and fused.boundary.shape == (2, 64, 80)
    told = found["small true boundaries"]
    assert told.boundary is None and not np.allclose(told.displacements, fused.displacements)
    assert np.array_equal(case.estimate(network.estimator, "fused").boundary, fused.boundary)
    measures = rows.histograms(fused, case)
    assert set(measures) == {"certain_set", "certain_set_limit", "event", "motion"}
    assert set(rows.histograms(told, case)) == {"certain_set", "certain_set_limit"}
    assert rows.histograms(found["zero"], case) == {}
    low = rows.Network.parse("small", bf16=True)
    rough = case.estimate(low.estimator, "fused").displacements
    # bfloat16 has 8 bits: something changes, by a few percent of the motion at most.
    assert 0 < np.abs(rough - flows[0]).max() < 0.1 * max(np.abs(flows[0]).max(), 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_localizer_is_told_the_truth(dtype: torch.dtype) -> None:
    sets = load("accuracy_sets")
    localizer = torch.nn.Conv2d(2, 2, 1, dtype=dtype)
    model = SimpleNamespace(localizer=localizer)
    ground_truth = (torch.rand(2, 12, 13) > 0.5).float()
    seen = torch.ones(1, 2, 16, 16, dtype=dtype)  # padded to a multiple of 8
    usual = localizer(seen)
    with sets.told_boundaries(model, ground_truth):
        found = localizer(seen)
    assert found.shape == usual.shape and found.dtype == dtype
    assert torch.equal(found[0, :, :12, :13] > 0, ground_truth > 0.5)
    assert (found[..., 12:, :] < 0).all() and (found[..., 13:] < 0).all()
    assert torch.equal(localizer(seen), usual)


def test_without_a_localizer_there_are_no_boundaries(tmp_path: Path) -> None:
    sets, rows = load("accuracy_sets"), load("accuracy_rows")
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, FlowFuse(replace(CONFIGS["nano"], boundary=False)))
    network = rows.Network.parse(str(path))
    assert "model true boundaries" not in network.modes
    case = sets.SceneSet("slow", 1, (64, 80), {(4, 3)}, tmp_path)[0]
    assert case.estimate(network.estimator, "fused").boundary is None
    frames = tuple(texture() for _ in range(2))
    events = Events(*np.zeros((3, 1), np.int64), np.ones(1, bool), height=48, width=64)
    pair = replace(
        pair_case(np.zeros((1, 2, 48, 64)), np.ones((48, 64), bool)), frames=frames, events=events
    )
    assert pair.estimate(network.estimator, "fused").boundary is None
    with pytest.raises(ValueError, match="there is no mode 'true boundaries'"):
        pair.estimate(network.estimator, sets.GROUND_TRUTH_BOUNDARIES)


@pytest.mark.slow
def test_scenes_are_prepared_by_several_processes(tmp_path: Path) -> None:
    arguments = ["--sets", "slow", *TINY, "--cache", str(tmp_path)]
    assert load("accuracy").main([*arguments, "--prepare", "--workers", "2"]) == 0
    slicings = {(config.slices, config.bins) for config in CONFIGS.values()}
    assert len(list(tmp_path.glob("*/*.npz"))) == 2 * len(slicings)


# Real images


def texture(height: int = 48, width: int = 64) -> np.ndarray:
    noise = np.random.default_rng(1).random((height, width), np.float32)
    smooth = cv2.GaussianBlur(noise, None, 1.5)
    return cv2.normalize(smooth, None, 30, 220, cv2.NORM_MINMAX).astype(np.uint8)


def test_light_between_images_follows_the_flow() -> None:
    images = load("accuracy_images")
    wide = texture(48, 80)
    frame0, frame1 = wide[:, 8:72], wide[:, 4:68]  # the texture moves 4 px to the right
    flow = np.zeros((2, 48, 64), np.float32)
    flow[0] = 4
    valid = np.ones((48, 64), bool)
    flow[:, 10:13, 20:23], valid[10:13, 20:23] = 1e10, False  # unknown: as around it
    between = images.Interpolator(frame0, frame1, flow, valid)
    assert (between.flow[0] == 4).all()
    for tau, left in ((-0.5, 10), (0, 8), (0.25, 7), (0.5, 6), (1, 4)):
        inner = slice(8, -8)  # before image 0, nobody knows what was beyond its border
        expected = srgb_to_linear(wide[:, left : left + 64])[:, inner]
        # 1e-3: OpenCV's cubic sampling has places in steps of 1/32 px.
        assert np.allclose(between(tau)[:, inner], expected, atol=1e-3), tau
    entering = srgb_to_linear(wide[:, 6:70])[:, :2]
    assert np.allclose(between(0.5)[:, :2], entering, atol=1e-3)


def test_uncovered_places_show_image_1() -> None:
    images = load("accuracy_images")
    background = texture()
    frames = [background.copy(), background.copy()]
    frames[0][16:32, 10:26] = 250  # a square that moves 8 px to the right
    frames[1][16:32, 18:34] = 250
    flow = np.zeros((2, 48, 64), np.float32)
    flow[0, 16:32, 10:26] = 8
    between = images.Interpolator(*frames, flow, np.ones((48, 64), bool))
    middle = between(0.5)
    bright = srgb_to_linear(np.uint8([250]))[0]
    assert np.allclose(middle[17:31, 15:29], bright, atol=0.02)  # the square, without its rim
    uncovered, covered = (slice(17, 31), slice(11, 13)), (slice(17, 31), slice(31, 40))
    still = srgb_to_linear(background)
    assert np.allclose(middle[covered], still[covered], atol=0.02)
    # Between the square's old and new place the nearest known flow may be either's.
    assert np.abs(middle[uncovered] - bright).min() > 0.1


def test_events_show_the_motion() -> None:
    images = load("accuracy_images")
    frames = [np.full((32, 48), 40, np.uint8) for _ in range(2)]
    frames[0][:, 10:] = 200
    frames[1][:, 16:] = 200  # an edge, dark on its left, moves 6 px to the right
    flow = np.zeros((2, 32, 48), np.float32)
    flow[0] = 6
    window = {"t0": 10_000, "t1": 20_000, "sensor": SensorConfig.noiseless()}
    events = images.simulate_between(*frames, flow, np.ones((32, 48), bool), **window)
    assert len(events) and not events.p.any()  # it only gets darker
    assert events.t.min() >= 5_000 and events.t.max() <= 20_000
    assert set(np.unique(events.x)) == set(range(7, 16))  # half an interval before image 0, too
    passed = events.t[events.x == 13].mean()
    assert 15_000 <= passed <= 16_667  # the edge is at 13 + 0 .. 1 px
    still = images.simulate_between(*frames[:1] * 2, 0 * flow, np.ones((32, 48), bool), **window)
    assert len(still) == 0


def image_folder(tmp_path: Path, flow: np.ndarray) -> Path:
    folder = tmp_path / "moved"
    folder.mkdir()
    wide = texture(64, 100)
    write_image(folder / "frame09.png", wide[:, 8:88])
    write_image(folder / "frame10.png", wide[:, 6:86])
    write_image(folder / "overview.png", wide)
    write_flow(folder / "flow9.flo", flow)
    return folder


def test_image_folders_pair_flow_with_images(tmp_path: Path) -> None:
    images = load("accuracy_images")
    flow = np.zeros((2, 64, 80), np.float32)
    flow[0] = 2
    cases = images.ImageSet(image_folder(tmp_path, flow))
    assert len(cases) == 1 and cases.name == "moved"
    case = cases[0]
    assert case.facts.name == "moved frame09" and case.tau.tolist() == [1]
    assert np.array_equal(case.ground_truth[0], flow) and case.valid.all()
    assert case.t1 - case.t0 == images.INTERVAL and len(case.events)
    network = load("accuracy_rows").Network.parse("small")
    for mode, used in (
        ("fused", ("frames", "events")),
        ("frames", ("frames",)),
        ("events", ("events",)),
    ):
        estimate = case.estimate(network.estimator, mode)
        shown = network.estimator(
            *(case.frames if "frames" in used else (None, None)),
            case.events if "events" in used else None,
            t0=case.t0,
            t1=case.t1,
        )
        assert shown.modalities == used
        assert np.array_equal(estimate.displacements, shown.flow[None])


def test_image_folders_that_do_not_fit_are_told(tmp_path: Path) -> None:
    images = load("accuracy_images")
    folder = image_folder(tmp_path, np.zeros((2, 64, 81), np.float32))
    with pytest.raises(ValueError, match=r"frame09.png is 80 x 64 px.*flow9.flo is 81 x 64 px"):
        images.ImageSet(folder)[0]
    write_flow(folder / "flow9.flo", np.zeros((2, 64, 80)), np.zeros((64, 80), bool))
    with pytest.raises(ValueError, match="unknown at every pixel"):
        images.ImageSet(folder)[0]
    write_flow(folder / "flow10.flo", np.zeros((2, 64, 80)))
    with pytest.raises(FileNotFoundError, match=r"flow10.flo needs image number 11"):
        images.ImageSet(folder)
    (folder / "flow10.flo").rename(folder / "flow.flo")
    with pytest.raises(ValueError, match=r"flow.flo: its name must end in a number"):
        images.ImageSet(folder)
    with pytest.raises(FileNotFoundError, match="no true flow"):
        images.ImageSet(tmp_path)


def test_published_images(shared_data: Path) -> None:
    images = load("accuracy_images")
    assert len(images.ImageSet(shared_data / "rubberwhale")) == 1
    assert len(images.ImageSet(shared_data / "alley_1")) == 3


# Report and pictures


def test_cells() -> None:
    cell = load("accuracy_report").cell
    value = {"value": 1.234, "low": 1.0, "high": 1.5}
    assert cell(value, 2, limits=True) == "1.23 [1.00, 1.50]"
    assert cell(value, 1, limits=False) == "1.2"
    assert cell({"value": math.nan, "low": 0, "high": 0}, 2, limits=True) == ""
    assert cell({"value": None, "low": None, "high": None}, 2, limits=True) == ""
    assert cell({"value": 1.0, "low": None, "high": None}, 2, limits=True) == "1.00"
    assert cell({"value": 1.0, "low": 1.0, "high": 1.0}, 2, limits=True) == "1.00"
    assert cell(None, 2, limits=True) == ""


def test_pictures_are_chosen_by_the_error_over_that_of_zero_flow() -> None:
    pick = load("accuracy_pictures").pick
    assert pick([1, 5, 3, 2], [10, 10, 2, 10]) == {"best": 0, "median": 3, "worst": 2}
    assert pick([1, 2], [1, 1]) == {"best": 0, "worst": 1}
    assert pick([1], [1]) == {"best": 0}
    assert pick([math.nan, 0], [1, 0]) == {}  # unknown, and nothing that moves


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    estimate = load("accuracy_sets").Estimate(np.zeros((1, 2, 40, 1000)))
    case = pair_case(np.ones((1, 2, 40, 1000)), np.ones((40, 1000), bool))
    load("accuracy_pictures").draw_case(tmp_path / "x.png", case, {"DIS": estimate})
    assert cv2.imread(str(tmp_path / "x.png")).shape[1] == 5 * (333 + 8) + 8


def test_without_nan() -> None:
    without_nan = load("accuracy").without_nan
    assert without_nan({"a": [1.5, math.nan, (math.inf, "x")], "b": 2}) == {
        "a": [1.5, None, [None, "x"]],
        "b": 2,
    }


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
    monkeypatch.setattr(load("accuracy_statistics"), "FEWEST_SCENES", 2)
    folder = image_folder(tmp_path, np.full((2, 64, 80), [[[2]], [[0]]], np.float32))
    output = tmp_path / "today"
    arguments = ["--sets", "slow", *TINY, *cache, "--images", str(folder), "-o", str(output)]
    assert accuracy.main(arguments) == 0

    report = json.loads((tmp_path / "today.json").read_text())
    assert [result["name"] for result in report["sets"]] == ["slow", "moved"]
    rows = ["small fused", "small frames only", "small events only", "DIS", "Farneback", "zero"]
    scenes, images = report["sets"]
    assert list(images["rows"]) == rows
    rows.insert(3, "small true boundaries")  # which images do not have
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
    assert "boundary_motion_f" not in scenes["rows"]["small true boundaries"]["measures"]
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


def test_sweeps_are_plotted(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    statistics = load("accuracy_statistics")
    tally = make_tally(
        {row: [(1.0, 1.0), (3.0, 1.0)] for row in ("small fused", "DIS", "zero")},
        exposure=[0.05, 0.5],
        light=[0.3, 0.3],
    )
    modes = {"small fused": "fused", "small true boundaries": "true boundaries"}
    networks = [SimpleNamespace(modes=modes, row="small fused")]
    load("accuracy").draw_sweeps(statistics.sweeps(tally), networks, tmp_path)
    pictures = sorted(path.name for path in tmp_path.iterdir())
    assert pictures == ["epe-by-exposure.png", "epe-by-light.png"]  # nothing by displacement
    picture = cv2.imread(str(tmp_path / "epe-by-light.png"))
    assert picture.std() > 5  # not blank


def test_missing_matplotlib_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy = load("accuracy")
    monkeypatch.setattr(accuracy, "find_spec", lambda name: None)
    arguments = ["--sets", "slow", "--scenes", "1", "--size", "64", "80"]
    assert accuracy.main([*arguments, "-o", str(tmp_path / "x")]) == 0
    assert "matplotlib is not installed" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["slow-best.png"]


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
        (["--images", "/no/such/folder"], 1, "/no/such/folder"),
        (["--sets", "--recording", "/no/such/recording"], 1, "/no/such/recording"),
        (["--device", "tpu"], 1, "tpu"),
        (["--size", "8", "8", "--scenes", "1"], 1, "at least 16"),
        (["--prepare"], 2, "--cache"),
        (["--sets", "underwater"], 2, "underwater"),
        (["--sets"], 2, "--sets names no set, so there is nothing to do: name some, or --images"),
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


def test_groups_of_seeds_are_compared_by_their_means() -> None:
    compare = load("compare").compare
    scenes = 4 * [(1.0, 1.0), (2.0, 1.0), (3.0, 1.0)]
    numbers = {f"a {k}": [(k * total, count) for total, count in scenes] for k in (1, 3)}
    tally = make_tally({**numbers, "b": [(4 * total, count) for total, count in scenes]})
    pairs = [("a", "b")]
    found = compare(tally, {"a": ["a 1", "a 3"], "b": ["b"]}, pairs)["epe"]
    assert found["seeds"] == {"a": [2, 6], "b": [8]}
    assert [found["groups"][name]["value"] for name in "ab"] == [4, 8]
    # Scenes cancel out, as they are drawn alike; what remains is the draw among the two seeds.
    ratio = found["ratios"]["a / b"]
    assert [ratio[key] for key in ("value", "low", "high")] == pytest.approx([0.5, 0.25, 0.75])
    # Of pairs of seeds, as two groups have them that each vary by the factor of three.
    rows = {"a": ["a 1", "a 3"], "b": ["b", "a 3"]}
    ratio = compare(tally, rows, pairs, paired=True)["epe"]["ratios"]["a / b"]
    # (1 + 3) / (4 + 3), and of one pair alone 1 / 4 and 3 / 3.
    found = [ratio[key] for key in ("value", "low", "high")]
    assert found == pytest.approx([4 / 7, 1 / 4, 1])
    alike = compare(tally, {"a": ["a 3"], "b": ["b"]}, pairs)["epe"]["ratios"]["a / b"]
    assert [alike[key] for key in ("value", "low", "high")] == pytest.approx([0.75] * 3)


def test_compare_writes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "plain.safetensors"
    save_checkpoint(path, FlowFuse(replace(CONFIGS["small"], fusion="concatenation")))
    arguments = ["--group", "guided", "small", "--group", "plain", str(path), str(path)]
    arguments += ["--group", "small:frames", "small", "--pair", "guided", "plain"]
    arguments += ["--pair", "small:frames", "plain"]
    output = ["-o", str(tmp_path / "c")]
    assert load("compare").main([*arguments, "--sets", "slow", *TINY, *output]) == 0
    report = json.loads((tmp_path / "c.json").read_text())
    found = report["sets"]["slow"]["epe"]
    first, second = found["seeds"]["plain"]
    assert first == second == pytest.approx(found["groups"]["plain"]["value"])
    for name in ("guided", "small:frames"):
        ratio = found["groups"][name]["value"] / first
        assert found["ratios"][f"{name} / plain"]["value"] == pytest.approx(ratio)
    assert found["groups"]["small:frames"] != found["groups"]["guided"]
    text = (tmp_path / "c.md").read_text()
    assert text in capsys.readouterr().out
    assert "| slow | boundary EPE |" in text and "plain (seeds: 2)" in text


@pytest.mark.parametrize(
    "arguments, code, word",
    [
        ([], 2, "--group"),
        (["--group", "a", "small"], 2, "twice"),
        (["--group", "a", "small", "--group", "a", "small"], 2, "different names"),
        (["--group", "a", "small", "--group", "b"], 2, "CHECKPOINT"),
        (["--group", "a", "small", "--group", "b/c", "small"], 2, "must not contain"),
        (["--group", "a", "small", "--group", "b", "small", "--sets"], 2, "--sets"),
        (["--group", "a", "small", "--group", "b", "small", "--pair", "a", "c"], 2, "'c'"),
        (["--group", "a", "small", "--group", "a:nose", "small"], 1, "nose"),
        (["--group", "a", "small", "--group", "b", "small", "small", "--paired"], 2, "as many"),
        (["--group", "a", "small", "--group", "b", "no_such_model"], 1, "no_such_model"),
    ],
)
def test_errors_of_compare_are_told_in_one_line(
    arguments: list[str], code: int, word: str, capsys: pytest.CaptureFixture
) -> None:
    try:
        found = load("compare").main(arguments)
    except SystemExit as stop:
        found = stop.code
    message = capsys.readouterr().err
    assert found == code
    assert message.startswith("compare: ") and message.count("\n") == 1 and word in message
