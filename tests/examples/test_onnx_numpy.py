"""The numpy example makes the arrays of flowfuse, to the bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from flowfuse.events import Events
from flowfuse.inputs import InputSpec, prepare_inputs

PATH = Path(__file__).parents[2] / "examples" / "onnx_numpy.py"
SPEC = importlib.util.spec_from_file_location("onnx_numpy", PATH)
example = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(example)

HEIGHT, WIDTH, T0, T1 = 7, 9, 1_000, 2_003


def make_pair(first: int = 0, **known: object) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    count = 4000
    pair = {
        "x": rng.integers(0, WIDTH, count), "y": rng.integers(0, HEIGHT, count),
        "t": np.sort(rng.integers(first, 3000, count)), "p": rng.integers(0, 2, count),
        "frame0": rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8),
        "frame1": rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8), "t0": T0, "t1": T1,
    }  # fmt: skip
    return {name: np.asarray(value) for name, value in (pair | known).items()}


@pytest.mark.parametrize("exposures", [(None, None), (100, 301), (1, 0), (1500, 1200)])
@pytest.mark.parametrize(("slices", "bins"), [(4, 3), (1, 1), (3, 2)])
def test_inputs_are_those_of_flowfuse(exposures, slices, bins):
    named = zip(("exposure0", "exposure1"), exposures, strict=True)
    pair = make_pair(**{name: value for name, value in named if value is not None})
    found = example.make_inputs(pair, slices, bins, (HEIGHT, WIDTH))
    events = Events(*(pair[name] for name in "xytp"), height=HEIGHT, width=WIDTH)
    expected = prepare_inputs(
        pair["frame0"], pair["frame1"], events, t0=T0, t1=T1, spec=InputSpec(slices, bins),
        exposures=exposures,
    ).as_batch()  # fmt: skip
    assert np.abs(found["slices"]).max() > 2 and np.abs(found["event_sum"]).max() > 2
    for name, value in expected._asdict().items():
        assert found[name].dtype == np.float32, name
        assert np.array_equal(found[name], value.numpy()), name


def test_missing_modalities_are_told_to_the_network():
    alone = {name: value for name, value in make_pair().items() if not name.startswith("frame")}
    for pair, mask in (
        (make_pair(), [1, 1, 1, 1]),
        (make_pair(first=T0), [1, 1, 0, 1]),
        (make_pair(first=T1), [1, 0, 0, 1]),
        (alone, [0, 1, 1, 0]),
        ({name: make_pair()[name] for name in ("frame0", "frame1", "t0", "t1")}, [1, 0, 0, 1]),
    ):
        found = example.make_inputs(pair, 2, 2, (HEIGHT, WIDTH))
        assert found["modality_mask"].tolist() == [mask]
        assert found["slices"].shape == (1, 3, 2, HEIGHT, WIDTH)
