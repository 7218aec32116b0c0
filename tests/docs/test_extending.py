"""docs/extending/: the examples are written to disk, registered, and used."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

import flowfuse
from flowfuse import Events, open_recording, write_flow
from flowfuse.data.opening import DATASETS
from flowfuse.data.recording import Recording
from flowfuse.data.recording_writer import write_recording
from flowfuse.data.registry import FORMATS, event_suffixes
from flowfuse.inputs import InputSpec
from flowfuse.training.data_spec import find_labelled, parse_data
from flowfuse.training.pools import make_held_out, make_pool
from flowfuse.training.settings import TrainConfig

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = REPOSITORY / "docs" / "extending"
TEXT = "".join(
    (PAGES / f"{name}.md").read_text(encoding="utf-8") for name in ("camera", "data_set")
)
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
MODULES = {
    block.split("\n", 1)[0].removeprefix("# "): block for kind, block in BLOCKS if kind == "python"
}
POINTS = "\n".join(
    re.sub(r'\[project\.entry-points\."(.*)"\]', r"[\1]", block).replace('"', "")
    for kind, block in BLOCKS
    if kind == "toml"
)
HEIGHT, WIDTH = 6, 8


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install modules and entry points, as pip does; they are gone after the test."""
    site = tmp_path / "site"

    def put(modules: dict[str, str], points: str) -> None:
        info = site / "acme-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points)
        for name, text in modules.items():
            (site / name).write_text(text)
            monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
        monkeypatch.syspath_prepend(site)
        FORMATS.forget()
        DATASETS.forget()

    yield put
    monkeypatch.undo()
    for name in ("acme_camera", "street_dataset", "faulty"):
        sys.modules.pop(name, None)
    FORMATS.forget()
    DATASETS.forget()


@pytest.fixture
def events():
    t = np.arange(100, 1100, 10)
    return Events(t % WIDTH, t % HEIGHT, t, t // 10 % 2, height=HEIGHT, width=WIDTH)


def images():
    return np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH)).astype(np.uint8)


def write_acme(path, events, frames):
    import acme_camera

    header = np.array([(b"ACME", WIDTH, HEIGHT, len(events), len(frames))], acme_camera.HEADER)
    rows = np.zeros(len(events), acme_camera.EVENT)
    for name in "txyp":
        rows[name] = getattr(events, name)
    kind = np.dtype([("time", "<i8"), ("pixels", "u1", (HEIGHT, WIDTH))])
    stored = np.zeros(len(frames), kind)
    stored["time"], stored["pixels"] = 100 + 400 * np.arange(len(frames)), frames
    path.write_bytes(header.tobytes() + rows.tobytes() + stored.tobytes())
    return path


def check(recording, events):
    assert isinstance(recording, Recording)
    assert (recording.height, recording.width) == (HEIGHT, WIDTH)
    window, expected = recording.events(300, 705), events.slice_time(300, 705)
    for column in "xytp":
        np.testing.assert_array_equal(getattr(window, column), getattr(expected, column))
    assert recording.event_range == (events.t[0], events.t[-1])
    assert recording.frame_times.tolist() == [100, 500, 900]
    for index, image in enumerate(images()):
        np.testing.assert_array_equal(recording.frame(index), image)


def test_the_camera_format_is_read(install, events, tmp_path):
    install(MODULES, POINTS)
    assert event_suffixes()[-1] == ".acme"
    path = write_acme(tmp_path / "a.acme", events, images())
    check(open_recording(path), events)
    check(open_recording(path.rename(tmp_path / "a.bin")), events)  # by content
    (tmp_path / "r").mkdir()
    write_acme(tmp_path / "r" / "events.acme", events, images())
    check(open_recording(tmp_path / "r"), events)
    write_acme(tmp_path / "alone.acme", events, images()[:0])
    assert not open_recording(tmp_path / "alone.acme").has_frames
    path = write_acme(tmp_path / "b.acme", events, images())
    (tmp_path / "times.txt").write_text("1\n")
    with pytest.raises(ValueError, match=r"frame times were given, but .*b.acme has its own"):
        open_recording(path, frames=path, times=tmp_path / "times.txt")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"b.acme: \d+ bytes expected"):
        open_recording(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"b.acme: not an ACME file"):
        open_recording(path)


def test_the_data_set_is_read(install, events, tmp_path):
    install(MODULES, POINTS)
    root = tmp_path / "street" / "day"
    (root / "left").mkdir(parents=True)
    (root / "truth").mkdir()
    (root / "street.json").write_text(json.dumps({"size": [WIDTH, HEIGHT]}))
    np.savez(root / "left.npz", x=events.x, y=events.y, t=events.t, p=events.p)
    for index, image in enumerate(images()):
        cv2.imwrite(str(root / "left" / f"{index}.png"), image)
    (root / "left.txt").write_text("0.0001\n0.0005\n0.0009\n")
    flow = np.arange(2 * HEIGHT * WIDTH, dtype=np.float32).reshape(2, HEIGHT, WIDTH)
    write_flow(root / "truth" / "000001.flo", flow)
    recording = open_recording(root)
    check(recording, events)
    np.testing.assert_array_equal(recording.ground_truth(1)[0], flow)
    assert recording.ground_truth(0) is None and recording.ground_truth_step == 1
    assert parse_data("street:x") == ("street", "x")
    samples = find_labelled("street").training_samples(root.parent, "train", InputSpec(2, 2))
    assert len(samples) == 1 and samples.size == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(samples[0].flow[0], flow)
    config = TrainConfig(data=f"street:{root.parent}")
    with pytest.raises(ValueError, match=r"not be larger than the frames of street:.* \(6, 8\)"):
        make_pool(config)
    with pytest.raises(FileNotFoundError, match=r"no sequence of STREET with .* for validation"):
        make_held_out(config, samples)
    with pytest.raises(ValueError, match=r"holds sequences of STREET; name one, such as .*day"):
        open_recording(root.parent)
    with pytest.raises(ValueError, match=r"no calibration file is taken here: STREET is rectified"):
        open_recording(root, calibration=tmp_path / "rig.yaml")


def test_nothing_is_known_that_is_not_installed(install):
    assert "acme_camera" not in sys.modules and "street_dataset" not in sys.modules
    assert ".acme" not in event_suffixes()
    assert "STREET" not in [dataset.name for dataset in DATASETS]


FAULTY = """
from flowfuse.data.datasets.base import DataSet
from flowfuse.data.formats.base import Format

class Raises(Format):
    name, suffixes, rank = "raises", (".npz",), 1
    def recognizes(self, path):
        raise RuntimeError("broken")

class Shape(Format):
    name, suffixes = "shape", ".abc"

class Shouts(Format):
    name, suffixes = "shouts", (".ABC",)

class Nothing(Format):
    name, holds = "nothing", ("sound",)

class Asks(DataSet):
    name, rank = "asks", 1
    def matches(self, path):
        raise OSError("no network")
    def open(self, path):
        raise AssertionError

class Unnamed(Asks):
    name = None

class Placeless(Asks):
    training_data = "asks"
"""


@pytest.mark.parametrize(
    ("group", "value", "message"),
    [
        ("formats", "absent_module:FORMAT", "ModuleNotFoundError: No module named 'absent_module'"),
        ("formats", "faulty:ABSENT", "AttributeError: .*ABSENT"),
        ("formats", "faulty:Raises", "TypeError: a Format expected, found <class"),
        ("formats", "faulty:raises", "RuntimeError: broken"),
        ("formats", "faulty:shape", "TypeError: suffixes and holds must be tuples"),
        ("formats", "faulty:shouts", "ValueError: suffixes must be like '.cam'"),
        ("formats", "faulty:nothing", "ValueError: holds must have 'events', 'frames' or both"),
        ("datasets", "faulty:asks", "OSError: no network"),
        ("datasets", "faulty:unnamed", "TypeError: name must be a string"),
        ("datasets", "faulty:placeless", "ValueError: training_data must be a name, a colon and"),
    ],
)
def test_a_faulty_entry_point_is_named_once(install, events, tmp_path, group, value, message):
    instances = "\n".join(
        f"{name.lower()} = {name}()"
        for name in ("Raises", "Shape", "Shouts", "Nothing", "Asks", "Unnamed", "Placeless")
    )
    install({"faulty.py": FAULTY + instances}, f"[flowfuse.{group}]\nbad = {value}\n")
    np.savez(tmp_path / "a.npz", x=events.x, y=events.y, t=events.t, p=events.p)
    write_recording(tmp_path / "r", events, None, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert len(open_recording(tmp_path / "r").events(0, 2000)) == len(events)
            assert len(open_recording(tmp_path / "a.npz").events(0, 2000)) == len(events)
    told = [str(w.message) for w in caught if "is left out" in str(w.message)]
    assert len(told) == 1
    assert re.match(
        rf"flowfuse\.{group}: bad \({value}\) of acme is left out, it fails with {message}", told[0]
    )


def test_opening_is_a_public_name():
    assert flowfuse.open_recording is open_recording and "open_recording" in flowfuse.__all__
    assert isinstance(open_recording(flowfuse.sample_recording()), Recording)
