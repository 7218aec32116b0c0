"""Averages over sets with intervals, thresholds of sets, and the choice of pictures, by hand."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from flowfuse.evaluation import pictures, statistics, thresholds
from flowfuse.evaluation.evaluate import Estimate, GroundTruth
from flowfuse.events import Events


def make_tally(numbers: dict[str, list[tuple[float, float]]], **facts: list[float]):
    """A tally of one measure, "epe": row -> (numerator, divisor) of every scene."""
    tally = statistics.Tally()
    for i, pairs in enumerate(zip(*numbers.values(), strict=True)):
        known = {name: facts.get(name, [math.nan] * 99)[i] for name in ("exposure", "light")}
        rows = {row: {"epe": pair} for row, pair in zip(numbers, pairs, strict=True)}
        tally.add(statistics.Facts(f"scene {i}", **known), rows)
    return tally


def test_scenes_are_drawn_with_replacement_and_always_alike() -> None:
    counts = statistics.drawn_counts(5, resamples=300)
    assert counts.shape == (301, 5) and (counts[0] == 1).all() and (counts.sum(axis=1) == 5).all()
    assert np.array_equal(counts, statistics.drawn_counts(5, resamples=300))
    assert not np.array_equal(counts, statistics.drawn_counts(5, resamples=300, seed=1))
    assert (counts[1:] == 0).any() and (counts[1:] > 1).any()


def test_values_are_ratios_of_sums_and_ratios_are_paired() -> None:
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
    tally = make_tally({"a": [*[(3.0, 2.0)] * 9, (0.0, 0.0)]})
    value = statistics.summarize(tally, {}, [])["a"]["measures"]["epe"]
    assert value["value"] == 1.5 and math.isnan(value["low"]) and math.isnan(value["high"])


def test_interval_holds_the_middle_95_percent() -> None:
    found = statistics.interval(np.concatenate(([7.0], np.arange(1001.0), [np.nan])), scenes=10)
    assert (found.value, found.low, found.high) == (7, 25, 975)


def test_errors_by_displacement() -> None:
    error, length = np.array([1.0, 2, 3, 4]), np.array([0.0, 1.0, 1.99, 5000.0])
    sums = statistics.displacement_sums(error, length)
    name = statistics.displacement_measure
    assert sums[name(0)] == (1, 1) and sums[name(1)] == (5, 2) and sums[name(2)] == (0, 0)
    assert sums[name(len(statistics.DISPLACEMENTS) - 2)] == (4, 1)


def test_sweeps_sort_scenes_by_exposure_and_light() -> None:
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
    first, second = make_tally({"a": [(1.0, 1.0)]}), make_tally({"a": [(2.0, 1.0), (3.0, 1.0)]})
    pooled = statistics.Tally.pooled([first, second])
    assert pooled.sums("a", "epe")[:, 0].tolist() == [1, 2, 3]
    assert pooled.select([True, False, True]).sums("a", "epe")[:, 0].tolist() == [1, 3]
    assert pooled.sums("a", "ause").tolist() == [[0, 0]] * 3


def test_the_most_certain_pixels_of_a_set() -> None:
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
    ground_truth, found = np.zeros((2, 9, 9))
    ground_truth[4, 4] = 1
    for place, near in (((4, 6), 1), ((2, 4), 1), ((5, 5), 1), ((6, 6), 0), ((5, 6), 0)):
        found[:] = 0
        found[place] = 0.9
        _, beside, around = thresholds.boundary_histogram(found, ground_truth > 0)
        assert beside[90] == near and around[90] == near


def test_pictures_are_chosen_by_the_error_over_that_of_zero_flow() -> None:
    assert pictures.pick([1, 5, 3, 2], [10, 10, 2, 10]) == {"best": 0, "median": 3, "worst": 2}
    assert pictures.pick([1, 2], [1, 1]) == {"best": 0, "worst": 1}
    assert pictures.pick([1], [1]) == {"best": 0}
    assert pictures.pick([math.nan, 0], [1, 0]) == {}  # unknown, and nothing that moves


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    frame, flow = np.zeros((40, 1000), np.uint8), np.ones((2, 40, 1000))
    known = GroundTruth.of_flow(flow, np.ones((40, 1000), bool))
    found = {"DIS": Estimate(0 * flow[None])}
    pictures.draw_case(
        tmp_path / "x.png", (frame, frame), Events.empty(40, 1000), known, None, found
    )
    assert cv2.imread(str(tmp_path / "x.png")).shape[1] == 5 * (333 + 8) + 8


def test_what_fusing_costs() -> None:
    scenes = {"frames": [2.0, 8.0], "events": [4.0, 1.0], "fused": [3.0, 1.0]}
    tally = make_tally({row: [(e, 1.0) for e in errors] for row, errors in scenes.items()})
    found = statistics.fusion_ratio(tally, "fused", ["frames", "events"])
    # Of the set, events are better: 5 against 10; of the pairs, once each.
    assert found["value"] == 4 / 5
    assert found["pairs"] == pytest.approx(math.sqrt((3 / 2) * (1 / 1)))
    assert statistics.fusion_ratio(tally, "fused", ["frames", "other"]) is None


def test_groups_of_seeds_are_compared_by_their_means() -> None:
    scenes = 4 * [(1.0, 1.0), (2.0, 1.0), (3.0, 1.0)]
    tally = make_tally(
        {
            name: [(factor * e, n) for e, n in scenes]
            for name, factor in (("1", 1), ("3", 3), ("4", 4))
        }
    )
    # Scenes cancel out, as they are drawn alike; what remains is the draw among the pairs of seeds.
    groups = {"a": ["1", "3"], "b": ["4", "3"]}
    ratio = statistics.compare_seeds(tally, groups, ["epe"])["a / b"]["epe"]
    # (1 + 3) / (4 + 3), and of one pair alone 1 / 4 and 3 / 3.
    found = [ratio[key] for key in ("value", "low", "high")]
    assert found == pytest.approx([4 / 7, 1 / 4, 1])
    alike = statistics.compare_seeds(tally, {"a": ["3"], "b": ["4"]}, ["epe"])["a / b"]["epe"]
    assert [alike[key] for key in ("value", "low", "high")] == pytest.approx([0.75] * 3)
