"""Averages of metrics.json, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from flowfuse.cli.infer_report import RunMetrics, boundary_line

SIZE = (4, 5)


def constant(u: float) -> np.ndarray:
    return np.stack((np.full(SIZE, u), np.zeros(SIZE)))


def test_paths_are_averaged_over_pixels_not_over_pairs():
    """A pair in which little deviates must not count as much as one in which all does."""
    metrics = RunMetrics()
    frame = np.zeros(SIZE, np.uint8)
    # Half-way the truth is behind the straight line to 8 px: in the first pair by 2 px everywhere,
    # in the second by 4 px in one of its 20 pixels. The estimates find 1/2 and 1/4 of that.
    cases = (np.full(SIZE, 2.0), 0.5), (np.pad([[4.0]], ((0, 3), (0, 4))), 0.25)
    for deviation, found in cases:
        half = constant(4.0)
        half[0] -= deviation
        valid = np.ones(SIZE, bool)
        ground_truth = {0.5: (half, valid), 1.0: (constant(8.0), valid)}
        recording = SimpleNamespace(
            ground_truth_at=lambda index, tau, ground_truth=ground_truth: ground_truth[tau]
        )
        window = SimpleNamespace(index=0, t0=0, t1=10)
        estimate = constant(8.0), {0.5: constant(4.0) - [found * deviation, 0 * deviation]}
        metrics.add(recording, window, *estimate, (frame, frame))
    pairs = [pair["trajectory"]["deviation_error"] for pair in metrics._pairs]
    assert pairs == pytest.approx([0.5, 0.75])
    average = metrics.averages()["trajectory"]
    assert average["deviation_error"] == pytest.approx((20 * 1 + 3) / (20 * 2 + 4))
    assert average["tepe"] == pytest.approx((20 * 1 + 3) / 40)


def test_ause_is_told_of_pairs_with_an_uncertainty():
    metrics = RunMetrics()
    frame, valid = np.zeros(SIZE, np.uint8), np.ones(SIZE, bool)
    recording = SimpleNamespace(ground_truth_at=lambda index, tau: (constant(0.0), valid))
    window = SimpleNamespace(index=0, t0=0, t1=10)
    flow = constant(0.0)
    flow[0] = np.arange(20).reshape(SIZE)  # the error of each pixel
    metrics.add(recording, window, flow, {}, (frame, frame))
    assert not any("AUSE" in line for line in metrics.lines())
    metrics.add(recording, window, flow, {}, (frame, frame), uncertainty=flow[0] ** 2)
    (told,) = [line for line in metrics.lines() if "AUSE" in line]
    assert told.startswith("  AUSE: 0.000 (0: ") and "1 pair estimated by this call" in told
    assert "ause" not in metrics.averages()["flow"]["per_pixel"]  # as of a run that is continued


def test_a_truth_without_any_valid_pixel_is_told():
    metrics = RunMetrics()
    frame, flow = np.zeros(SIZE, np.uint8), constant(1.0)
    ground_truth = np.full((2, *SIZE), np.nan), np.zeros(SIZE, bool)
    recording = SimpleNamespace(ground_truth_at=lambda index, tau: ground_truth)
    window = SimpleNamespace(index=0, t0=0, t1=10)
    metrics.latest = "EPE 1.00"
    metrics.add(recording, window, flow, {}, (frame, frame))
    assert metrics.latest == ""
    told, photometric = metrics.lines()
    assert told == "EPE: unknown, the ground truth of 1 pair has no valid pixel"
    assert photometric.startswith("photometric error")


def test_outliers_of_a_share_of_the_motion():
    """The switch for the NPE of other papers: 4 px of 100 px are below 5 %."""
    frame, window = np.zeros(SIZE, np.uint8), SimpleNamespace(index=0, t0=0, t1=10)
    ground_truth = constant(100.0), np.ones(SIZE, bool)
    recording = SimpleNamespace(ground_truth_at=lambda index, tau: ground_truth)
    for fraction, expected, told in ((0.0, 100, False), (0.05, 0, True)):
        metrics = RunMetrics(fraction)
        metrics.add(recording, window, constant(104.0), {}, (frame, frame))
        assert metrics.averages()["flow"]["per_pixel"]["3pe"] == expected
        assert any("5 % of the true magnitude" in line for line in metrics.lines()) == told


def test_an_interval_without_frames_has_no_photometric_error():
    window = SimpleNamespace(index=0, t0=0, t1=10)
    recording = SimpleNamespace(ground_truth_at=lambda i, tau: (constant(2), np.ones(SIZE, bool)))
    metrics = RunMetrics()
    metrics.add(recording, window, constant(1.0), {}, (None, None))
    assert metrics.averages()["flow"]["per_pixel"]["epe"] == 1
    assert np.isnan(metrics.averages()["photometric_error"])
    assert not any("photometric" in line for line in metrics.lines())


def test_errors_at_motion_discontinuities_in_one_line():
    found = {"epe_within_2": 3.0, "epe_within_5": 2.0, "epe_within_10": 1.0, "epe_beyond_10": 0.5}
    assert boundary_line(found) == (
        "  EPE at motion discontinuities: 3.000 px within 2 px, 2.000 px within 5 px, "
        "1.000 px within 10 px, 0.500 px elsewhere"
    )
    none = found | dict.fromkeys(("epe_within_2", "epe_within_5", "epe_within_10"), float("nan"))
    hidden = {"epe_occluded": 4.0, "epe_visible": 0.25}
    assert boundary_line(none | hidden) == (
        "  no motion discontinuity in the ground truth; occluded 4.000, visible 0.250 px"
    )
