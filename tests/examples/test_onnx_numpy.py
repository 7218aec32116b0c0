"""The numpy example makes the arrays of flowfuse, to the bit."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"t0": None}, "t0: missing; there are frame0, frame1, p, t, t1, x, y"),
        ({"p": None}, "p: missing; there are"),
        ({"frame0": None}, "frame0: missing; there are"),
        ({"t1": T0}, "t1 must be later than t0, got 1000, 1000 us"),
        ({"t": np.ones(4000)}, "t: expected integer microseconds, got float64"),
        ({"t1": 2e-3}, "t1: expected integer microseconds, got float64"),
        ({"t0": [1, 2]}, r"t0: expected one number, got shape \[2\]"),
        ({"x": [1, 2]}, r"expected one length \[N\], got x \[2\], y \[4000\], t \[4000\]"),
        (
            {"frame1": np.zeros((9, 7), np.uint8)},
            r"frame1: expected shape \[7, 9\] or \[7, 9, 3\], the size that .* got \[9, 7\]",
        ),
        ({"frame0": np.zeros((HEIGHT, WIDTH))}, r"frame0: expected uint8 in \[0, 255\], got float"),
    ],
)
def test_what_cannot_be_a_pair_is_named(changed, message):
    pair = make_pair(**{name: value for name, value in changed.items() if value is not None})
    pair = {name: value for name, value in pair.items() if changed.get(name, 0) is not None}
    with pytest.raises(ValueError, match=message):
        example.make_inputs(pair, 2, 2, (HEIGHT, WIDTH))


def write_network(path: Path, batch: int = 1, **facts: object) -> None:
    """An ONNX whose control points are its first frame, with an unused constant."""
    onnx = pytest.importorskip("onnx")
    frame = onnx.helper.make_tensor_value_info("frame0", 1, [batch, 1, HEIGHT, WIDTH])
    points = onnx.helper.make_tensor_value_info("control_points", 1, [batch, 1, 1, HEIGHT, WIDTH])
    unused = onnx.helper.make_tensor("unused", 1, [1], [0.0])
    axis = onnx.helper.make_tensor("axis", 7, [1], [1])
    node = onnx.helper.make_node("Unsqueeze", ["frame0", "axis"], ["control_points"])
    graph = onnx.helper.make_graph([node], "graph", [frame], [points], [axis, unused])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 9
    known = {"height": HEIGHT, "width": WIDTH, "channels": 1, "slices": 2, "bins": 2} | facts
    for name, value in known.items():
        if value is not None:
            model.metadata_props.add(key=f"flowfuse.{name}", value=json.dumps(value))
    onnx.save(model, path)


def run(folder: Path, *names: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, PATH, *names], cwd=folder, capture_output=True, text=True
    )


def test_it_runs_and_says_what_is_wrong(tmp_path):
    pytest.importorskip("onnxruntime")
    write_network(tmp_path / "net.onnx")
    write_network(tmp_path / "other.onnx", bins=None, channels=None)
    write_network(tmp_path / "rgb.onnx", channels=3)
    write_network(tmp_path / "two.onnx", batch=2)
    np.savez(tmp_path / "pair.npz", **make_pair())
    np.savez(tmp_path / "large.npz", **make_pair(frame0=np.zeros((8, 9), np.uint8)))
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text.onnx").write_text("hello")
    done = run(tmp_path, "net.onnx", "pair.npz", "flow.npy")
    # ONNX Runtime would warn of the constant, and of hundreds in a network.
    assert (done.returncode, done.stdout, done.stderr) == (0, "flow.npy: 9 x 7 px\n", "")
    expected = make_pair()["frame0"].astype(np.float32)[None] / np.float32(255)
    assert np.array_equal(np.load(tmp_path / "flow.npy"), expected)
    for names, message in (
        (("absent.onnx", "pair.npz", "f.npy"), "error: absent.onnx: no such file"),
        (("net.onnx", "absent.npz", "f.npy"), "error: absent.npz: no such file"),
        (("text.onnx", "pair.npz", "f.npy"), "error: text.onnx: ONNX Runtime cannot open it ("),
        (("other.onnx", "pair.npz", "f.npy"), "properties flowfuse.channels, flowfuse.bins;"),
        (("rgb.onnx", "pair.npz", "f.npy"), "frame0: the network takes RGB frames, [H, W, 3], got"),
        (("two.onnx", "pair.npz", "f.npy"), "two.onnx: frame0 is of a batch of 2, expected 1"),
        (("net.onnx", "array.npy", "f.npy"), "array.npy: cannot be read as an .npz"),
        (("net.onnx", "large.npz", "f.npy"), "large.npz: frame0: expected shape [7, 9] or"),
        (("net.onnx", "pair.npz", "f.txt"), "f.txt: expected a name that ends in .npy"),
        (("net.onnx", "pair.npz", "no/f.npy"), "no/f.npy: No such file or directory"),
    ):
        done = run(tmp_path, *names)
        assert done.returncode == 1 and not done.stdout, names
        assert message in done.stderr and done.stderr.count("\n") == 1, (names, done.stderr)
    assert not list(tmp_path.glob("f.*"))
