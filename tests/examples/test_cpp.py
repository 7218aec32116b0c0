"""The C++ example makes the inputs of flowfuse, to the bit, and gives its flow."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from flowfuse.events import Events
from flowfuse.export import ExportSpec, write_package
from flowfuse.inputs import InputSpec, prepare_inputs
from flowfuse.model import FlowFuse, ModelConfig
from flowfuse.ops import build_info

FOLDER = Path(__file__).parents[2] / "examples" / "cpp"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
HEIGHT, WIDTH, T0, T1 = 24, 40, 1_000, 2_003
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
needs_cmake = pytest.mark.skipif(
    shutil.which("cmake") is None or COMPILER is None, reason="no cmake, or no C++ compiler"
)
# find_package(Torch) of a CUDA build looks for the toolkit.
needs_toolkit = pytest.mark.skipif(
    torch.version.cuda is not None and shutil.which("nvcc") is None,
    reason="this torch is built with CUDA, whose toolkit is not here",
)


def make_pair(**known: object) -> dict[str, np.ndarray | int]:
    rng = np.random.default_rng(0)
    count = 20_000
    frames = rng.integers(0, 256, (2, HEIGHT, WIDTH), np.uint8)
    return {
        "x": rng.integers(0, WIDTH, count), "y": rng.integers(0, HEIGHT, count),
        "t": np.sort(rng.integers(0, 3000, count)), "p": rng.integers(0, 2, count),
        "frame0": frames[0], "frame1": frames[1], "t0": T0, "t1": T1, **known,
    }  # fmt: skip


def events_of(pair: dict) -> Events:
    return Events(*(pair[name] for name in "xytp"), height=HEIGHT, width=WIDTH)


@pytest.fixture(scope="module")
def header(tmp_path_factory) -> ctypes.CDLL:
    source, target = Path(__file__).with_name("voxel_grids.cpp"), tmp_path_factory.mktemp("header")
    subprocess.run(
        [
            COMPILER, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
            f"-I{FOLDER}", source, "-o", target / "voxel_grids.so",
        ],
        check=True, timeout=300,
    )  # fmt: skip
    library = ctypes.CDLL(str(target / "voxel_grids.so"))
    for function in (library.grids, library.sum):
        function.restype = ctypes.c_char_p
    return library


def call(function, pair: dict, numbers: tuple, shape: tuple) -> np.ndarray:
    rows = np.stack([pair[name] for name in "txyp"], axis=1).astype(np.int64)
    out = np.full(shape, np.nan, np.float32)
    told = function(
        rows.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(len(rows)),
        *map(ctypes.c_int64, numbers), out.ctypes.data_as(ctypes.c_void_p),
    )  # fmt: skip
    if told is not None:
        raise ValueError(told.decode())
    return out


@needs_compiler
@pytest.mark.parametrize("exposures", [(0, 0), (100, 301), (1, 0), (1500, 1200)])
@pytest.mark.parametrize(("slices", "bins"), [(4, 3), (1, 1), (3, 2)])
@pytest.mark.parametrize("start", [0, 10**15])
def test_inputs_are_those_of_flowfuse(header, exposures, slices, bins, start):
    pair = make_pair()
    pair["t"] = pair["t"] + start
    t0, t1 = T0 + start, T1 + start
    expected = prepare_inputs(
        None, None, events_of(pair), t0=t0, t1=t1, spec=InputSpec(slices, bins),
        exposures=exposures,
    )  # fmt: skip
    numbers, size = (t0, t1), (HEIGHT, WIDTH)
    shape = (slices + 1, bins, *size)
    grids = call(header.grids, pair, (*numbers, slices, bins, *size), shape)
    total = call(header.sum, pair, (*numbers, *exposures, *size), (1, *size))
    assert np.abs(grids).max() > 2 and np.abs(total).max() > 2
    assert np.array_equal(grids, expected.slices.numpy())
    assert np.array_equal(total, expected.event_sum.numpy())


@needs_compiler
def test_events_elsewhere_are_left_out(header):
    pair = {"t": [T0, T0, T1, T0], "x": [-1, 2, 2, WIDTH], "y": [0, 3, 3, 0], "p": [1, 1, 1, 1]}
    pair = {name: np.array(values) for name, values in pair.items()}
    grids = call(header.grids, pair, (T0, T1, 1, 1, HEIGHT, WIDTH), (2, 1, HEIGHT, WIDTH))
    assert grids[1, 0, 3, 2] == 1 and np.abs(grids).sum() == 1


@needs_compiler
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((T0, T0 + 3, 4, 1, 2, 2), "[1000, 1003) us is too short for 4 slices of at least 1 us"),
        ((T0, T1, 1, 0, 2, 2), "bins must be in [1, 65536], got 0"),
        ((T0, T1, 1, 1, 0, 2), "height and width must be at least 1, got 0 and 2"),
        ((0, 2**41, 1, 1, 2, 2), "expected t0 < t1 <= end <= t0 + 2^40 us"),
    ],
)
def test_what_cannot_be_is_refused(header, numbers, message):
    with pytest.raises(ValueError) as error:
        call(header.grids, make_pair(), numbers, (2, 1, 2, 2))
    assert message in str(error.value)


def network() -> FlowFuse:
    """A small one: its compilation is what this test waits for."""
    torch.manual_seed(0)
    model = FlowFuse(
        ModelConfig(
            name="tiny", slices=1, bins=2, stem_channels=8, channels=8, hidden=8,
            token_channels=8, boundary_channels=8, iterations=1, radius=1, levels=1,
            dilations=(1,), degree=2, gradient_steps=0, boundary=False, fusion="concatenation",
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():  # no zero output
            parameter += 0.02 * torch.randn_like(parameter)
    return model


@needs_cmake
@needs_toolkit
@pytest.mark.slow
def test_the_program_gives_the_flow_of_flowfuse(tmp_path):
    build, package, pair_file = tmp_path / "build", tmp_path / "tiny.pt2", tmp_path / "pair.pt"
    subprocess.run(
        [
            "cmake", "-S", FOLDER, "-B", build,
            f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}",
        ],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    subprocess.run(["cmake", "--build", build], check=True, capture_output=True, timeout=600)
    model = network()
    spec = ExportSpec(HEIGHT, WIDTH, batch=None, iterations=1)
    assert write_package(package, model, spec, {"checkpoint": "tiny"}) < 1e-3

    def run(pair: object, operators: str | None = None) -> subprocess.CompletedProcess:
        if isinstance(pair, dict):
            pair = {
                name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                for name, value in pair.items()
            }
        torch.save(pair, pair_file)
        library = operators or build_info()["path"]
        command = [build / "flow", library, package, pair_file, tmp_path / "flow.pt"]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    whole = make_pair(exposure0=100, exposure1=301)
    alone = {name: value for name, value in whole.items() if "frame" not in name}
    for pair in (whole, alone):
        done = run(pair)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{tmp_path / 'flow.pt'}: {WIDTH} x {HEIGHT} px\n"
        found = torch.load(tmp_path / "flow.pt")
        inputs = prepare_inputs(
            pair.get("frame0"), pair.get("frame1"), events_of(pair), t0=T0, t1=T1,
            spec=model.config.input_spec, exposures=(100, 301),
        )  # fmt: skip
        with torch.no_grad():
            expected = model(inputs.as_batch(), iterations=1).control_points[0, -1]
        assert found.shape == (2, HEIGHT, WIDTH) and found.abs().max() > 0.1
        assert (found - expected).abs().max() < 1e-3
    for pair, message in (
        ([1, 2], "pair.pt: expected a dict that torch.save wrote, got"),
        ({**whole, "x": whole["x"].astype(np.uint16)}, "pair.pt: cannot be read: Unpickler found"),
        ({**whole, "t1": torch.tensor(3)}, "pair.pt: t1 must be an integer, got Tensor"),
        ({name: whole[name] for name in whole if name != "t0"}, "pair.pt: t0 is missing"),
        ({**whole, "p": whole["p"][1:]}, "x, y, t and p must have one length"),
        (
            {**whole, "frame0": np.zeros((HEIGHT, WIDTH, 3), np.uint8)},
            f"frame0 must have height, width and channels {HEIGHT}, {WIDTH}, 1",
        ),
    ):
        done = run(pair)
        assert done.returncode == 1 and message in done.stderr
    assert "operators: " in run(whole, operators="none.so").stderr
    assert subprocess.run([build / "flow"], capture_output=True).returncode == 2
