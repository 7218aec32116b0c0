"""The benchmark of DSEC: flowfuse-infer on a root, on a sequence, and what a submission holds."""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
import json
import shutil
import zipfile
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch

from flowfuse.cli import infer_submission as dsec_submission
from flowfuse.cli.console import ListedError
from flowfuse.cli.infer import main
from flowfuse.cli.infer_submission import (
    TEST_SEQUENCES,
    encode_prediction,
    plan_intervals,
    plan_submission,
)
from flowfuse.data.datasets.dsec.sequence import open_sequence
from flowfuse.data.datasets.dsec.writer import default_rig, write_raw_events, write_sequence
from flowfuse.estimator import load
from flowfuse.events import Events
from flowfuse.geometry.carry import carry_forward
from flowfuse.inputs import ModelInputs
from flowfuse.model import FlowFuse, ModelConfig
from flowfuse.model.checkpoint import save_checkpoint
from flowfuse.runner import Interval

HEIGHT, WIDTH = 16, 24
SCRIPT = Path(__file__).resolve().parents[2] / "data_tools" / "check_submission.py"
FEW = {"interlaken_00_b": 3, "thun_01_a": 2}  # a benchmark in small


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    model = FlowFuse(ModelConfig(
        name="tiny", slices=2, stem_channels=8, channels=8, hidden=8, token_channels=8,
        boundary_channels=8, iterations=1, radius=1, levels=1, dilations=(1, 2),
    ))  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():  # no zero output: predictions must differ
            parameter += 0.02 * torch.randn_like(parameter)
    save_checkpoint(path, model)
    return path


def write_test_sequence(root: Path, name: str, rows: list[tuple[int, int, int]]) -> None:
    """A test sequence with only the images that the schedule needs, at the times it gives."""
    with_events = root / "test_events" / name / "events" / "left"
    with_images = root / "test_images" / name / "images"
    (with_images / "left" / "ev_inf").mkdir(parents=True)
    with_events.mkdir(parents=True)
    known = {i: t for start, end, index in rows for i, t in ((index, start), (index + 2, end))}
    times = np.interp(np.arange(max(known) + 1), sorted(known), [known[i] for i in sorted(known)])
    before = np.arange(min(known), 0, -1)
    times[: min(known)] = known[min(known)] - 50_000 * before
    (with_images / "timestamps.txt").write_text("".join(f"{round(t)}\n" for t in times))
    rng = np.random.default_rng(len(rows))
    for index in known:
        picture = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        cv2.imwrite(str(with_images / "left" / "ev_inf" / f"{index:06d}.png"), picture)
    offset = round(times[0]) - 200_000
    span, count = round(times[-1]) - offset + 100_000, 40 * len(times)
    write_raw_events(
        with_events / "events.h5",
        Events(
            rng.integers(0, WIDTH, count), rng.integers(0, HEIGHT, count),
            np.linspace(0, span, count).astype(np.int64), rng.integers(0, 2, count),
        ),
        offset,
    )  # fmt: skip
    with h5py.File(with_events / "rectify_map.h5", "w") as file:
        file["rectify_map"] = default_rig((HEIGHT, WIDTH), (36, 48)).rectify_map()


def read_rows(path: Path) -> list[tuple[int, int, int]]:
    with open(path) as file:
        return [tuple(map(int, row)) for row in list(csv.reader(file))[1:]]


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """A root with both sequences of FEW, schedules included."""
    monkeypatch.setattr(dsec_submission, "TEST_SEQUENCES", FEW)
    root = tmp_path / "dsec"
    schedules = root / "test_forward_optical_flow_timestamps"
    schedules.mkdir(parents=True)
    for name, count in FEW.items():
        start = 10**9
        rows = [
            (start + 500_000 * i, start + 500_000 * i + 100_000, 20 + 10 * i) for i in range(count)
        ]
        text = "".join(", ".join(map(str, row)) + "\n" for row in rows)
        (schedules / f"{name}.csv").write_text("# from, to, index\n" + text)
        write_test_sequence(root, name, rows)
    return root


@pytest.fixture
def run(checkpoint):
    def call(*arguments: object) -> int:
        given = [*arguments, "--checkpoint", checkpoint, "--device", "cpu", "--threads", 1]
        return main([str(argument) for argument in given])

    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)


def check(*argv: object) -> int:
    spec = importlib.util.spec_from_file_location("check_submission", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(argument) for argument in argv])


def codes(data: bytes) -> np.ndarray:
    """[H, W, 3] uint16, R, G, B."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]


def test_all_predictions_of_the_published_schedules(run, shared_data, tmp_path, capsys):
    schedules = shared_data / "dsec_test_timestamps"
    if not schedules.is_dir():
        pytest.skip(f"no schedules at {schedules}")
    for path in schedules.glob("*.csv"):
        write_test_sequence(tmp_path, path.stem, read_rows(path))
    out = tmp_path / "out.zip"
    assert run(tmp_path, "--submission", out, "--schedules", schedules) == 0
    assert "416 predictions of 7 sequences" in capsys.readouterr().out
    with zipfile.ZipFile(out) as archive:
        names = {
            f"{path.stem}/{index:06d}.png"
            for path in schedules.glob("*.csv")
            for _, _, index in read_rows(path)
        }
        assert set(archive.namelist()) == names and len(names) == len(archive.namelist()) == 416
        image = codes(archive.read("interlaken_00_b/000820.png"))
    assert image.dtype == np.uint16 and image.shape == (HEIGHT, WIDTH, 3)
    assert (image[..., 2] == 0).all() and image[..., 0].std() > 0
    assert check(out, schedules, "--size", f"{WIDTH}x{HEIGHT}") == 0
    assert "416 predictions of 7 sequences" in capsys.readouterr().out


def test_predictions_are_those_of_the_estimator(run, small, checkpoint, tmp_path):
    out = tmp_path / "out.zip"
    assert run(small, "--submission", out) == 0
    sequence, estimator = open_sequence(small / "thun_01_a"), load(checkpoint)
    t0, t1 = 10**9 + 500_000, 10**9 + 600_000
    frames = sequence.frame(30), sequence.frame(32)
    flow = estimator(*frames, sequence.events(t0 - 50_000, t1), t0=t0, t1=t1).flow
    with zipfile.ZipFile(out) as archive:
        assert len(archive.namelist()) == 5
        image = codes(archive.read("thun_01_a/000030.png")).astype(np.float64)
    expected = np.rint(flow.astype(np.float64) * 128 + 2**15)
    np.testing.assert_array_equal(image[..., 0], expected[0])
    np.testing.assert_array_equal(image[..., 1], expected[1])
    # The same predictions are the same bytes; nothing is overwritten unasked.
    first = out.read_bytes()
    assert run(small, "--submission", out) == 1
    assert run(small, "--submission", out, "--overwrite") == 0 and out.read_bytes() == first


def test_everything_missing_is_listed(run, small, tmp_path, capsys):
    shutil.rmtree(small / "test_events" / "interlaken_00_b")
    (small / "test_forward_optical_flow_timestamps" / "thun_01_a.csv").unlink()
    out = tmp_path / "out.zip"
    assert run(small, "--submission", out) == 1
    error = capsys.readouterr().err
    first, *lines = error.splitlines()
    assert f"{small}: 3 things are missing for a submission" in first
    assert f"download_dsec.py {small} --split test` gets" in first
    starts = (
        "interlaken_00_b: events not found as", "interlaken_00_b: rectify map not found as",
        "thun_01_a: no schedule",
    )  # fmt: skip
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(f"  {start}")
    assert str(small / "test_events" / "interlaken_00_b") in lines[0]
    assert not out.exists() and list(tmp_path.iterdir()) == [small]
    assert run(tmp_path / "nowhere", "--submission", out) == 1
    error = capsys.readouterr().err
    assert "nowhere: no such directory" in error and error.count("\n") == 1
    assert run(small, "--submission", tmp_path / "no" / "out.zip") == 1
    assert "is not an existing directory" in capsys.readouterr().err


def test_what_does_not_fit_the_schedule_is_listed(small):
    schedules = small / "test_forward_optical_flow_timestamps"
    file = schedules / "thun_01_a.csv"
    text = file.read_text()

    def fault(changed: str, message: str) -> None:
        file.write_text(changed)
        with pytest.raises(ListedError, match=message):
            plan_submission(small)
        file.write_text(text)

    fault(text.replace(", 30", ", 32"), "file_index 32 has the time stamp of frame 30")
    fault(text.replace("1000500000", "1000525000"), "1000525000 us is not the time stamp of a fr")
    wrong = text.replace("1000500000", "1000525000").replace("1000000000", "1000025000")
    fault(wrong, r"1000025000 us is not .* \(and 1 more like it\)")
    fault(text[: text.index("1000500000")], r"thun_01_a.csv: 1 predictions, 2 expected")
    image = small / "test_images" / "thun_01_a" / "images" / "left" / "ev_inf" / "000032.png"
    image.rename(image.with_name("kept"))
    fault(text, "thun_01_a: 1 images are missing, e.g. 000032.png")
    image.with_name("kept").rename(image)
    late = small / "test_events" / "thun_01_a" / "events" / "left" / "events.h5"
    late.unlink()
    write_raw_events(late, Events([1, 2], [1, 2], [0, 300_000], [1, 0]), 10**9)
    fault(
        text,
        r"thun_01_a: the events, from \(1000000000, 1000300000\) us, do not cover time interval 30",
    )
    with h5py.File(late, "r+") as file_:
        del file_["ms_to_idx"]
    fault(text, "'ms_to_idx' expected")


class Sequence:
    """What planning asks a sequence: frames every 50 ms, three of them lost after number 35."""

    name, event_range = "a", (0, 10**9)
    frame_times = np.append(50_000 * np.arange(36), 150_000 + 50_000 * np.arange(36, 70))
    frame_files = tuple(Path(f"{i:06d}.png") for i in range(70))

    def frame_at(self, time: int, source: object) -> int:
        return self.frame_times.tolist().index(time)

    def covers(self, t0: int, t1: int) -> bool:
        return True


def test_warm_start_runs_the_intervals_between_and_resets_at_gaps():
    times = Sequence.frame_times
    rows = np.array([(times[i], times[i + 2], i) for i in (10, 20, 30, 40, 60)])
    cold, problems = plan_intervals(Sequence(), rows, Path("s.csv"), warm_start=False)
    assert problems == [] and [w.index for w in cold] == [10, 20, 30, 40, 60]
    warm, problems = plan_intervals(Sequence(), rows, Path("s.csv"), warm_start=True)
    # Interval 34 would span the lost frames; from 40 to 60 the schedule itself has a gap.
    assert problems == [] and [w.index for w in warm] == [*range(10, 34, 2), 36, 38, 40, 60]
    assert warm[1] == Interval(12, 600_000, 700_000, (12, 14))
    starts = [b for a, b in itertools.pairwise(warm) if a.frames[1] != b.frames[0]]
    assert [w.index for w in starts] == [36, 60]


def test_warm_start_hands_the_flow_on(small, tmp_path, checkpoint, monkeypatch):
    rows = read_rows(small / "test_forward_optical_flow_timestamps" / "interlaken_00_b.csv")
    every = small / "test_images" / "interlaken_00_b" / "images" / "left" / "ev_inf"
    for index in range(20, 44, 2):
        if not (every / f"{index:06d}.png").exists():
            shutil.copy(every / "000020.png", every / f"{index:06d}.png")
    monkeypatch.setattr(dsec_submission, "TEST_SEQUENCES", {"interlaken_00_b": len(rows)})
    given, original = [], dsec_submission.estimate_interval

    def watch(estimator, sequence, reader, window, iterations, flow_init):
        result, seconds = original(estimator, sequence, reader, window, iterations, flow_init)
        given.append((window.index, flow_init, result.flow))
        return result, seconds

    monkeypatch.setattr(dsec_submission, "estimate_interval", watch)
    arguments = [small, "--checkpoint", checkpoint, "--device", "cpu", "--warm-start"]
    out = tmp_path / "warm.zip"
    assert main([*map(str, arguments), "--submission", str(out)]) == 0
    assert [index for index, _, _ in given] == list(range(20, 42, 2))
    assert given[0][1] is None
    for (_, _, flow), (_, flow_init, _) in itertools.pairwise(given):
        np.testing.assert_allclose(flow_init, carry_forward(flow), rtol=1e-5)
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == [f"interlaken_00_b/0000{i}.png" for i in (20, 30, 40)]


def test_a_network_starts_from_what_it_is_given(checkpoint):
    model = load(checkpoint).model
    torch.manual_seed(1)
    inputs = ModelInputs(
        torch.randn(1, 3, 3, 16, 20), torch.rand(1, 1, 16, 20), torch.rand(1, 1, 16, 20),
        torch.randn(1, 1, 16, 20), torch.zeros(1, 2), torch.ones(1, 4),
    )  # fmt: skip
    points = torch.randn(1, 6, 2, 3)
    given = torch.full((1, 2, 16, 20), torch.nan)
    given[0, 0, :8, :8] = 8.0
    given[0, 1, :8, :8] = -4.0
    given[0, :, 0, 0] = torch.nan
    replaced = model._replace_first(points, given)
    # In cells of 8 px, a third and two thirds of the way first.
    expected = torch.tensor([1 / 3, -1 / 6, 2 / 3, -1 / 3, 1.0, -0.5])
    torch.testing.assert_close(replaced[0, :, 0, 0], expected)
    assert torch.equal(replaced[0, :, 1], points[0, :, 1]) and torch.equal(
        replaced[0, :, 0, 1:], points[0, :, 0, 1:]
    )
    with torch.no_grad():
        cold, moved = (model(inputs, flow_init=i).control_points for i in (None, given))
        same = model(inputs, flow_init=torch.full_like(given, torch.nan)).control_points
    assert torch.equal(cold, same) and not torch.equal(cold, moved)
    with pytest.raises(
        ValueError, match=r"flow_init must have shape \[2, 16, 20\], got \[2, 4, 4\]"
    ):
        frame = np.zeros((16, 20), np.uint8)
        load(checkpoint)(frame, frame, None, t0=0, t1=9, flow_init=np.zeros((2, 4, 4)))


def test_predictions_beyond_the_range_are_clipped_with_a_warning():
    flow = np.zeros((2, 3, 4), np.float32)
    flow[0, 0, 0], flow[1, 0, 1] = 500.0, -257.0
    with pytest.warns(UserWarning, match=r"thun_01_a/000020.png: 2 of 12 flow vectors exceed"):
        image = codes(encode_prediction("thun_01_a/000020.png", flow))
    assert image[0, 0].tolist() == [65535, 32768, 0] and image[0, 1].tolist() == [32768, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data", "--submission", "out.png"), "--submission must name a .zip, got 'out.png'"),
        (("--events", "e.h5", "--submission", "out.zip"), "--submission needs INPUT"),
        (("data", "-o", "out", "--submission", "o.zip"), "leave out --output"),
        (("data", "--pairs", "0:3", "--submission", "o.zip"), "leave out --pairs"),
        (("data", "--format", "npz", "--submission", "o.zip"), "leave out --format"),
        (("data", "-o", "out", "--warm-start"), "--warm-start belongs to --submission"),
        (("data", "-o", "out", "--schedules", "s"), "--schedules belongs to --submission"),
        (("data",), "name the directory of the results: -o OUT"),
        (("data", "-o", ""), "name the directory of the results: -o OUT"),
    ],
)
def test_options_that_do_not_go_together(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def entries(small: Path, change: dict[str, bytes | None]) -> bytes:
    """A right submission of `small`, with entries replaced or (None) left out."""
    data = {}
    for name, count in FEW.items():
        for i in range(count):
            rng = np.random.default_rng(i)
            flow = rng.normal(0, 5, (2, HEIGHT, WIDTH)).astype(np.float32)
            data[f"{name}/{20 + 10 * i:06d}.png"] = encode_prediction("x.png", flow)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {**data, **change}.items():
            if content is not None:
                archive.writestr(name, content)
    return buffer.getvalue()


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.mark.parametrize(
    ("entry", "content", "message"),
    [
        ("thun_01_a/000020.png", None, "missing"),
        ("thun_01_a/000021.png", b"", "not asked for"),
        ("notes.txt", b"", "not asked for"),
        ("thun_01_a/000020.png", b"no image", "not a PNG"),
        ("thun_01_a/000020.png", png(np.zeros((HEIGHT, WIDTH, 3), np.uint8)), "8 bits"),
        ("thun_01_a/000020.png", png(np.zeros((HEIGHT, WIDTH), np.uint16)), "1 channels"),
        ("thun_01_a/000020.png", png(np.zeros((9, WIDTH, 3), np.uint16)), "is 24 x 9 px"),
        (
            "thun_01_a/000020.png",
            png(np.full((HEIGHT, WIDTH, 3), 2**15, np.uint16)),
            "third channel",
        ),
        (
            "thun_01_a/000020.png",
            png(np.zeros((HEIGHT, WIDTH, 3), np.uint16)),
            "384 pixels of code (0, 0)",
        ),
        (
            "thun_01_a/000020.png",
            png(np.full((HEIGHT, WIDTH, 3), (0, 2**15, 2**15), np.uint16)),
            "zero everywhere",
        ),
        (
            "thun_01_a/000020.png",
            png(np.full((HEIGHT, WIDTH, 3), (0, 9, 65535), np.uint16))[:-20],
            "truncated",
        ),
    ],
)
def test_faults_of_a_submission_are_named(small, tmp_path, capsys, entry, content, message):
    schedules = small / "test_forward_optical_flow_timestamps"
    path = tmp_path / "out.zip"
    path.write_bytes(entries(small, {entry: content}))
    size = ("--size", f"{WIDTH}x{HEIGHT}")
    assert check(path, schedules, *size) == 1
    captured = capsys.readouterr()
    assert entry in captured.err and message in captured.err and "1 fault" in captured.err


@pytest.mark.parametrize(
    ("offset", "value"), [(6, 1), (8, 99)], ids=["encrypted", "unknown compression"]
)
def test_a_zip_that_python_cannot_unpack_is_named(small, tmp_path, capsys, offset, value):
    data = bytearray(entries(small, {}))
    # The same fields are in the header of the first entry and in its row of the directory.
    data[offset] = data[data.find(b"PK\1\2") + offset + 2] = value
    path = tmp_path / "out.zip"
    path.write_bytes(data)
    schedules = small / "test_forward_optical_flow_timestamps"
    assert check(path, schedules, "--size", f"{WIDTH}x{HEIGHT}") == 1
    assert f"{path}: not a zip that can be read" in capsys.readouterr().err


def test_right_submissions_pass_as_zip_and_as_directory(small, tmp_path, capsys):
    schedules = small / "test_forward_optical_flow_timestamps"
    path = tmp_path / "out.zip"
    path.write_bytes(entries(small, {}))
    size = ("--size", f"{WIDTH}x{HEIGHT}")
    assert check(path, schedules, *size) == 0
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "out")
    assert check(tmp_path / "out", schedules, *size) == 0
    assert "5 predictions of 2 sequences" in capsys.readouterr().out
    # Every sequence of the benchmark must have its schedule.
    (schedules / "thun_01_a.csv").rename(tmp_path / "kept.csv")
    assert check(path, schedules, *size) == 1
    assert "thun_01_a: 2 predictions are asked for, 0 in the schedules" in capsys.readouterr().err
    (tmp_path / "kept.csv").rename(schedules / "thun_01_a.csv")
    path.write_bytes(path.read_bytes()[:-30])
    assert check(path, schedules, *size) == 1
    assert "out.zip: not a zip" in capsys.readouterr().err
    assert check(tmp_path / "nothing.zip", schedules) == 1
    assert "nothing.zip: no such file" in capsys.readouterr().err
    assert check(path, tmp_path / "nowhere") == 1
    assert "nowhere: no schedules" in capsys.readouterr().err


def test_test_sequences_are_the_published_ones():
    assert sum(TEST_SEQUENCES.values()) == 416 and len(TEST_SEQUENCES) == 7


def test_a_sequence_is_evaluated(run, tmp_path, capsys):
    """flowfuse-infer ROOT/SEQ -o OUT: errors per pixel and per frame, against counts by hand."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (7, HEIGHT, WIDTH), np.uint8)
    count = 6000
    events = Events(
        rng.integers(0, WIDTH, count), rng.integers(0, HEIGHT, count),
        np.sort(rng.integers(0, 400_000, count)), rng.integers(0, 2, count),
        height=HEIGHT, width=WIDTH,
    )  # fmt: skip
    flow = rng.normal(0, 3, (2, 2, HEIGHT, WIDTH)).astype(np.float32)
    valid = np.zeros((2, HEIGHT, WIDTH), bool)
    valid[0, :2], valid[1] = True, True
    path = write_sequence(
        tmp_path, "thun_00_a", events, frames, 50_000 * np.arange(1, 8),
        flow={1: (flow[0], valid[0]), 3: (flow[1], valid[1])}, layout="per_file",
        image_size=(36, 48),
    )  # fmt: skip
    out = tmp_path / "out"
    arguments = (path, "-o", out, "--max-pictures", 1, "--no-video")
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert "2 pairs of 24 x 16 px: 2 estimated" in printed
    assert sorted(p.name for p in (out / "flow").iterdir()) == ["000001.flo", "000003.flo"]
    content = json.loads((out / "metrics.json").read_text())
    sequence = open_sequence(path)
    errors, angles = [], []
    for index in (1, 3):
        data = (out / "flow" / f"{index:06d}.flo").read_bytes()
        estimate = np.frombuffer(data, "<f4", offset=12).reshape(HEIGHT, WIDTH, 2).astype(float)
        true, known = sequence.ground_truth(index)
        true, estimate = true.transpose(1, 2, 0)[known], estimate[known]
        errors.append(np.sqrt(((estimate - true) ** 2).sum(axis=1)))
        a, b = (np.concatenate((f, np.ones((len(f), 1))), axis=1) for f in (estimate, true))
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    for name, average in (
        ("per_pixel", lambda parts: np.concatenate(parts).mean()),
        ("per_frame", lambda parts: np.mean([part.mean() for part in parts])),
    ):
        found = content["average"]["flow"][name]
        expected = {"epe": average(errors), "ae": average(angles)}
        expected |= {f"{n}pe": average([100.0 * (e > n) for e in errors]) for n in (1, 2, 3)}
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, rel=1e-6), (name, key)
        text = (
            f"{name.replace('_', ' ')}: EPE {expected['epe']:.3f} px, 1PE {expected['1pe']:.2f} %, "
            f"2PE {expected['2pe']:.2f} %, 3PE {expected['3pe']:.2f} %, AE {expected['ae']:.3f} deg"
        )
        assert text in printed
    assert [pair["t1_us"] - pair["t0_us"] for pair in content["pairs"]] == [100_000, 100_000]
    # Taken up, not estimated again; a changed event file is another recording.
    assert run(*arguments) == 0
    assert "2 pairs of 24 x 16 px: 0 estimated, 2 were there already" in capsys.readouterr().out
    with h5py.File(sequence.files.find("rectify_map"), "r+") as file:
        file.attrs["changed"] = 1
    assert run(*arguments) == 1
    assert "holds a run with other settings (recording" in capsys.readouterr().err


def test_steps_of_a_sequence_use_rectified_events(run, tmp_path, capsys):
    events = Events(
        np.arange(300) % WIDTH, np.arange(300) % HEIGHT, 1000 * np.arange(300), np.ones(300),
        height=HEIGHT, width=WIDTH,
    )  # fmt: skip
    frames = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    path = write_sequence(
        tmp_path, "a", events, frames, [50_000, 100_000, 150_000], image_size=(36, 48), t_offset=0
    )
    assert run(path, "-o", tmp_path / "out", "--every", "100ms", *("--max-pictures", 0)) == 0
    assert "2 time intervals of 24 x 16 px: 2 estimated" in capsys.readouterr().out
    written = sorted(path.name for path in (tmp_path / "out" / "flow").iterdir())
    assert written == ["000000.flo", "000001.flo"]
