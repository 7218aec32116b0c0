"""Every kind of data can be named, trained on and validated on."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from dsec_cases import write

from flowfuse.cli import train
from flowfuse.cli.train_options import read_command_line
from flowfuse.data.datasets.mvsec.dataset import split_sequences
from flowfuse.data.datasets.mvsec.writer import write_mvsec
from flowfuse.data.recording_writer import write_recording
from flowfuse.events import Events
from flowfuse.inputs import InputSpec
from flowfuse.io.flow import write_flow
from flowfuse.training.data_spec import absolute, parse_data, scene_weights
from flowfuse.training.pools import make_held_out, make_pool, make_scenes

HEIGHT, WIDTH, FRAMES = 20, 24, 21
SPEC = InputSpec(2, 2)
TINY = [
    "--model.slices", "2", "--model.bins", "2", "--model.stem_channels", "8",
    "--model.channels", "8", "--model.hidden", "8", "--model.token_channels", "8",
    "--model.boundary_channels", "8", "--model.iterations", "1", "--model.radius", "1",
    "--model.levels", "1", "--crop", "16", "16", "--batch", "2", "--steps", "2",
    "--validation-scenes", "2", "--no-tensorboard", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def dsec(tmp_path_factory):
    root = tmp_path_factory.mktemp("dsec")
    write(root, "thun_00_a")
    write(root, "zurich_city_09_a")
    return root


@pytest.fixture(scope="module")
def mvsec(tmp_path_factory):
    rng = np.random.default_rng(0)
    count, folder = 3000, tmp_path_factory.mktemp("mvsec")
    times = 1_000_000 + 20_000 * np.arange(FRAMES)
    events = Events(
        rng.integers(0, WIDTH, count), rng.integers(0, HEIGHT, count),
        np.sort(rng.integers(times[0], times[-1], count)), rng.integers(0, 2, count),
        height=HEIGHT, width=WIDTH,
    )  # fmt: skip
    frames = rng.integers(0, 256, (FRAMES, HEIGHT, WIDTH)).astype(np.uint8)
    maps = np.ones((FRAMES, 2, HEIGHT, WIDTH))
    write_mvsec(folder / "outdoor_day2", events, frames, times, maps, times)
    return folder


def test_data_is_a_kind_and_a_rest():
    assert parse_data("scenes:fast=2,blur=1") == ("scenes", "fast=2,blur=1")
    assert parse_data("dsec:/data/DSEC:1") == ("dsec", "/data/DSEC:1")
    assert scene_weights("fast=2, blur=0.5") == {"fast": 2.0, "blur": 0.5}
    for wrong in ("dsec", "dsec:", "kitti:x", ""):
        with pytest.raises(ValueError, match=r"dsec:ROOT or mvsec:PATH, got"):
            parse_data(wrong)
    with pytest.raises(ValueError, match="named twice"):
        parse_data("scenes:fast,fast")


def test_textures_reach_the_scenes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [*TINY, "--data", "scenes:thin=2,fast=3", "--textures", "photographs", "-o", "run"]
    config, _ = read_command_line(given)
    assert config.textures == str(tmp_path / "photographs")  # a resumed run finds it
    assert make_scenes(config, 0, 1).textures == tmp_path / "photographs"
    assert make_scenes(replace(config, textures=None), 0, 1).textures is None
    with pytest.raises(FileNotFoundError, match=r"texture folder .*photographs does not exist"):
        make_pool(config)[0]


@pytest.mark.parametrize("kind", ["dsec", "mvsec"])
def test_training_on_a_data_set(kind, request, tmp_path):
    data = f"{kind}:{request.getfixturevalue(kind)}"
    assert train.main([*TINY, "--data", data, "-o", str(tmp_path / "run")]) == 0
    with open(tmp_path / "run" / "validation.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert np.isfinite([float(row[name]) for name in ("epe", "epe_frames", "epe_zero")]).all()
    with open(tmp_path / "run" / "log.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["flow"]) > 0 and float(row["boundary_motion"]) == 0  # no truth of boundaries


def test_sequences_of_mvsec_are_split_in_time(mvsec):
    (learned,) = split_sequences(mvsec, "train", SPEC)
    (held,) = split_sequences(mvsec / "outdoor_day2_data.hdf5", "validation", SPEC)
    # 20 pairs: 18 and 19 are held out, and 17, which ends in the frame where 18 begins, is neither.
    assert list(learned.indices) == list(range(17)) and list(held.indices) == [18, 19]
    assert len(held.dataset) == 20
    with pytest.raises(FileNotFoundError, match=r"no \*_data.hdf5 of MVSEC there"):
        split_sequences(mvsec / "elsewhere", "train", SPEC)


def test_a_sequence_of_mvsec_may_be_too_short(tmp_path):
    times = 1_000_000 + 20_000 * np.arange(3)
    events = Events([0], [0], [times[1]], [1], height=HEIGHT, width=WIDTH)
    frames = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    write_mvsec(tmp_path / "a", events, frames, times, np.ones((3, 2, HEIGHT, WIDTH)), times)
    with pytest.raises(ValueError, match=r"2 pair\(s\) of frames with ground truth; 3 are needed"):
        split_sequences(tmp_path, "train", SPEC)


@pytest.mark.parametrize("kind", ["dsec", "mvsec"])
def test_what_does_not_fit_is_refused(kind, request, tmp_path, capsys):
    data = ["--data", f"{kind}:{request.getfixturevalue(kind)}", "-o", str(tmp_path / "run")]
    assert train.main([*TINY, *data, "--crop", "64", "16"]) == 2
    assert "crop (64, 16) must not be larger than the frames of" in capsys.readouterr().err
    assert train.main([*TINY, *data, "--overfit", "99"]) == 2
    assert "overfit 99: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_overfitting_takes_the_first_samples(mvsec):
    config, _ = read_command_line([*TINY, "--data", f"mvsec:{mvsec}", "--overfit", "2", "-o", "x"])
    pool = make_pool(config)
    assert isinstance(pool, list) and len(pool) == 2


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Two recordings with ground truth of 24 x 20 px, five frames each."""
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for name in ("first", "second"):
        times = 20_000 * np.arange(1, 6)
        t = np.sort(rng.integers(0, 100_000, 2000))
        x, y = rng.integers(0, WIDTH, 2000), rng.integers(0, HEIGHT, 2000)
        events = Events(x, y, t, rng.integers(0, 2, 2000), height=HEIGHT, width=WIDTH)
        frames = rng.integers(0, 256, (5, HEIGHT, WIDTH), dtype=np.uint8)
        write_recording(root / name, events, frames, times)
        (root / name / "flow").mkdir()
        for i in range(4):
            write_flow(root / name / "flow" / f"{i:06d}.flo", np.ones((2, HEIGHT, WIDTH)))
    return root


@pytest.mark.parametrize(("by", "learned", "held"), [("time", 4, 2), ("recording", 4, 4)])
def test_own_recordings_with_ground_truth(own, tmp_path, capsys, by, learned, held):
    run = tmp_path / "run"
    given = ["--data", f"recording:{own / 'first'},{own / 'second'}", "--held-out-by", by]
    config, _ = read_command_line([*TINY, *given, "-o", str(run)])
    pool = make_pool(config)
    assert (len(pool), len(make_held_out(config, pool))) == (learned, held)
    assert train.main([*TINY, *given, "-o", str(run)]) == 0
    with open(run / "validation.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["epe_zero"]) == pytest.approx(2**0.5, rel=1e-5)
    assert "done: step 2; the model is " in capsys.readouterr().err


def test_a_folder_of_recordings_stands_for_them(own, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(own.parent)
    config, _ = read_command_line([*TINY, "--data", f"recording:{own.name}", "-o", "run"])
    assert config.data == f"recording:{own}" and len(make_pool(config)) == 4
    assert absolute("recording:a,b") == f"recording:{own.parent / 'a'},{own.parent / 'b'}"
    given = [*TINY, "--data", f"recording:{own / 'first'}", "-o", str(tmp_path / "run")]
    assert train.main([*given, "--held-out-by", "recording"]) == 2
    assert "1 recording(s), of which 1 would be held out" in capsys.readouterr().err
    assert train.main([*given, "--supervision", "self", "--overfit", "1"]) == 2
    assert "supervision = self learns from one recording" in capsys.readouterr().err
    assert train.main([*given, "--supervision", "self", "--augment.warm_start", "0.5"]) == 2
    assert "warm_start starts from ground truth" in capsys.readouterr().err
