"""Frame pairs and intervals with ground truth, from folders that others publish."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation_cases import FACTS, SIZE, image_folder, make_recordings

import flowfuse
from flowfuse.evaluation import cases
from flowfuse.evaluation.rotation import rotation_flow
from flowfuse.events import Events
from flowfuse.io.flow import write_flow


def test_image_folders_pair_flow_with_images(tmp_path: Path) -> None:
    flow = np.zeros((2, 64, 80), np.float32)
    flow[0] = 2
    found = cases.ImageSet(image_folder(tmp_path, flow))
    assert len(found) == 1 and found.name == "moved"
    case = found[0]
    assert case.facts.name == "moved frame09" and case.tau.tolist() == [1]
    assert np.array_equal(case.known.displacements[0], flow) and case.known.valid.all()
    assert case.t1 - case.t0 == cases.IMAGE_INTERVAL and len(case.events)
    estimator = flowfuse.load("small", device="cpu")
    for mode, used in (
        ("fused", ("frames", "events")),
        ("frames", ("frames",)),
        ("events", ("events",)),
    ):
        estimate = case.estimate(estimator, mode)
        shown = estimator(
            *(case.frames if "frames" in used else (None, None)),
            case.events if "events" in used else None,
            t0=case.t0,
            t1=case.t1,
        )
        assert shown.modalities == used
        assert np.array_equal(estimate.displacements, shown.flow[None])


def test_modes_show_an_estimator_less() -> None:
    class Recorder:
        """As much of an estimator as a case asks for."""

        model = SimpleNamespace(config=SimpleNamespace(boundary=False))

        def __call__(self, frame0, frame1, events, **times):
            seen.append((frame0 is not None, frame1 is not None, events is not None))
            return SimpleNamespace(at=lambda tau: tau, uncertainty=None)

    seen: list[tuple[bool, bool, bool]] = []
    frame = np.zeros((4, 5), np.uint8)
    case = cases.pair_case("pair", (frame, frame), Events.empty(4, 5), 0, 10, None)
    for mode in ("fused", "frames", "events", "frame 0"):
        case.estimate(Recorder(), mode)
    shown = [(True, True, True), (True, True, False), (False, False, True), (True, False, True)]
    assert seen == shown


def test_image_folders_that_do_not_fit_are_told(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, np.zeros((2, 64, 81), np.float32))
    with pytest.raises(ValueError, match=r"frame09.png is 80 x 64 px.*flow9.flo is 81 x 64 px"):
        cases.ImageSet(folder)[0]
    write_flow(folder / "flow9.flo", np.zeros((2, 64, 80)), np.zeros((64, 80), bool))
    with pytest.raises(ValueError, match="unknown at every pixel"):
        cases.ImageSet(folder)[0]
    write_flow(folder / "flow10.flo", np.zeros((2, 64, 80)))
    with pytest.raises(FileNotFoundError, match=r"flow10.flo needs image number 11"):
        cases.ImageSet(folder)
    (folder / "flow10.flo").rename(folder / "flow.flo")
    with pytest.raises(ValueError, match=r"flow.flo: its name must end in a number"):
        cases.ImageSet(folder)
    with pytest.raises(FileNotFoundError, match="no ground truth"):
        cases.ImageSet(tmp_path)


def test_published_images(shared_data: Path) -> None:
    assert len(cases.ImageSet(shared_data / "rubberwhale")) == 1
    assert len(cases.ImageSet(shared_data / "alley_1")) == 3


def test_cases_of_real_recordings(tmp_path: Path) -> None:
    make_recordings(tmp_path)
    pairs, past, bare = cases.real_sets(tmp_path)
    names = [found.name for found in (pairs, past, bare)]
    assert names == ["a/pair", "b, with history", "b, no history"]
    assert len(pairs) == 1
    case = pairs[0]
    assert (case.t0, case.t1) == (10_000, 50_000) and case.known.valid.all()
    assert case.events.t[0] < 10_000  # history
    case = bare[0]
    assert (case.t0, case.t1) == (0, 50_000) and (case.known.displacements == 1).all()
    case = past[0]
    assert (case.t0, case.t1) == (10_000, 50_000) and case.frames is None
    np.testing.assert_allclose(case.known.displacements[0], rotation_flow(FACTS, 0.04, *SIZE))
    with pytest.raises(FileNotFoundError, match="no recording"):
        cases.real_sets(tmp_path / "a/pair/images")
