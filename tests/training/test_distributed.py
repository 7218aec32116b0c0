"""Several processes train as one does, stop together, and none waits for one that is gone."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flowfuse import distributed
from flowfuse.cli import train
from flowfuse.losses.supervised import masked_mean
from flowfuse.training import devices

pytestmark = pytest.mark.usefixtures("one_thread")  # as many as the other processes have
ROOT = Path(__file__).parents[2]  # where -m finds the package, installed or not
RECIPE = """
model: {name: small, slices: 2, bins: 2, stem_channels: 8, channels: 8, hidden: 8,
        token_channels: 8, boundary_channels: 8, iterations: 2, radius: 1, levels: 1,
        dilations: [1, 2]}
data: scenes:slow=2,fast=1
scenes: 4
scene_size: [40, 48]
crop: [24, 32]
batch: 4
final_share: 0.5
final_batch: 2
steps: 6
learning_rate: 2e-3
log_every: 1
validate_every: 3
validation_scenes: 3
checkpoint_every: 2
tensorboard: false
device: cpu
"""

# What each of two processes does. An import of torch takes longer than all of it.
PAIR = """
import os, signal, sys
from pathlib import Path
import torch
from flowfuse import distributed
from flowfuse.cli import train
from flowfuse.losses.supervised import masked_mean, overall_mean
from flowfuse.training import trainer

recipe, out, *ports = sys.argv[1:]
last = os.environ["RANK"] == "1"
take_step, loss = train.Trainer.take_step, trainer.supervised_loss

def run(name, *words):
    os.environ["MASTER_PORT"] = ports.pop()
    return train.main(["--config", recipe, "-o", f"{out}/{name}", *words])

def interrupted(self, batch):
    if last and self.state.step + 1 == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return take_step(self, batch)

def poisoned(output, batch, config, single=None):
    total, parts = loss(output, batch, config, single)
    return total * (float("nan") if last else 1.0), parts

codes = [run("whole")]
train.Trainer.take_step = interrupted
codes.append(run("stopped"))
train.Trainer.take_step = take_step
codes.append(run("stopped", "--resume"))
trainer.supervised_loss = poisoned
codes.append(run("nan"))

os.environ["MASTER_PORT"] = ports.pop()
with distributed.joined(distributed.launched(), torch.device("cpu")):
    # Three valid elements here and one there: their mean is no mean of the means.
    values = torch.tensor([4.0, 5.0, 6.0] if last else [1.0, 100.0, 100.0], requires_grad=True)
    mask = torch.tensor([True, True, True] if last else [True, False, False])
    share = masked_mean(values, mask)
    share.backward()
    found = {
        "mean": distributed.total(share), "gradient": values.grad,
        "overall": distributed.total(overall_mean(values)), "codes": torch.tensor(codes),
        "anywhere": torch.tensor([distributed.anywhere(last), distributed.anywhere(False)]),
        "first": torch.tensor(distributed.from_first(7 + last)),
        "gathered": torch.tensor(distributed.gathered(last)),
    }
torch.save(found, f"{out}/{int(last)}.pt")
"""

# One of two processes ends in step 3, as if it had been killed.
DYING = """
import os, sys
from flowfuse.cli import train
take_step = train.Trainer.take_step

def dying(self, batch):
    if os.environ["RANK"] == "1" and self.state.step + 1 == 3:
        os._exit(9)
    return take_step(self, batch)

train.Trainer.take_step = dying
sys.exit(train.main(sys.argv[1:]))
"""


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [str(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def environment(**values: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **values}


def read_log(run: Path) -> list[dict[str, float]]:
    """Rows without what a clock wrote."""
    with open(run / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: float(v) for k, v in row.items() if k != "seconds_per_step"} for row in rows]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("distributed") / "tiny.yaml"
    path.write_text(f"{RECIPE}cache: {path.parent / 'scenes'}\n")
    return path


@pytest.fixture(scope="module")
def single(recipe, one_thread) -> Path:
    run = recipe.parent / "single"
    assert train.main(["--config", str(recipe), "-o", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def pair(recipe, single) -> tuple[Path, list[str]]:
    """The directory that PAIR wrote to, and what each process said."""
    out = recipe.parent / "pair"
    out.mkdir()
    command = [sys.executable, "-c", PAIR, str(recipe), str(out), *free_ports(5)]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen(
            command,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **place),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    return out, said


def test_two_processes_have_the_losses_of_one(pair, single):
    out, _ = pair
    expected, found = read_log(single), read_log(out / "whole")
    assert len(found) == 6
    for row, other in zip(found, expected, strict=True):
        # Only sums are taken in another order, 1e-7 in float32; six steps make 3e-7 of it.
        # Averages of each process's own means would be off by 1e-2.
        assert row == pytest.approx(other, rel=1e-5)
    validation = (out / "whole/validation.csv").read_text().splitlines()
    for line, other in zip(
        validation[1:], (single / "validation.csv").read_text().splitlines()[1:], strict=True
    ):
        numbers = [float(word) for word in line.split(",")]
        assert numbers == pytest.approx([float(word) for word in other.split(",")], rel=1e-5)
    weights = [load_file(run / "model.safetensors") for run in (out / "whole", single)]
    for name, tensor in weights[0].items():
        # Adam divides by the root of the squared gradient: where that is all but zero, rounding
        # decides the sign of a step, which is at most the learning rate.
        torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=2e-3)


def test_means_are_over_the_elements_of_all(pair):
    out, _ = pair
    first, last = (torch.load(out / f"{rank}.pt") for rank in range(2))
    for found in (first, last):
        assert found["mean"] == (1 + 4 + 5 + 6) / 4
        assert found["overall"] == 216 / 6
        assert found["anywhere"].tolist() == [True, False]
        assert found["first"] == 7 and found["gathered"].tolist() == [False, True]
    assert first["gradient"].tolist() == [0.25, 0, 0]
    assert last["gradient"].tolist() == [0.25, 0.25, 0.25]


def test_one_that_is_asked_to_stop_stops_both_and_they_resume_to_the_same_bits(pair):
    out, said = pair
    codes = [torch.load(out / f"{rank}.pt")["codes"].tolist() for rank in range(2)]
    assert codes == [[0, 0, 0, 1], [0, 130, 0, 1]]
    assert "stopped after step 3, checkpoint saved" in said[0]
    assert read_log(out / "stopped") == read_log(out / "whole")
    expected, found = (
        load_file(out / name / "checkpoints/step_00000006.safetensors")
        for name in ("whole", "stopped")
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert found.keys() == expected.keys()


def test_nan_in_one_process_stops_both_and_saves_the_whole_batch(pair):
    out, said = pair
    assert "step 1: the loss is nan" in said[0] and "nan_batch.safetensors" in said[0]
    batch = load_file(out / "nan/nan_batch.safetensors")
    assert batch["frame0"].shape == (4, 1, 24, 32)
    assert len({float(frame.sum()) for frame in batch["frame0"]}) == 4  # nobody's share twice


def test_only_the_first_process_speaks(pair):
    _, said = pair
    assert "small: 0.07 M parameters on cpu, 2 processes, from step 0 to 6" in said[0]
    assert "flowfuse-train" not in said[1] and "step/s" not in said[1]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_it_resumes(recipe, single, tmp_path, capsys):
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    finished = subprocess.run(
        [*launcher, "--nproc-per-node=2", str(script), "--config", str(recipe), "-o", str(run)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,  # less than processes wait for each other
    )
    assert finished.returncode != 0
    assert "error (process 1 of 2): another process of this run has ended" in finished.stderr
    assert "--resume goes on" in finished.stderr
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000002.safetensors"]
    assert train.main(["-o", str(run), "--resume"]) == 0
    for row, other in zip(read_log(run), read_log(single), strict=True):
        assert row == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "3"], "batch is that of all processes together and must be a multiple of "
         "their number, 2, got 3"),
        (["--batch", "2", "--final-batch", "3"], "final_batch is that of all"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_batch_that_does_not_divide_is_refused_once(
    monkeypatch, tmp_path, capsys, arguments, message, rank
):
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert train.main(["-o", str(tmp_path / "new"), *arguments]) == 2
    error = capsys.readouterr().err
    assert (message in error) if rank == "0" else not error
    assert not (tmp_path / "new").exists()


def test_half_an_environment_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert train.main(["-o", str(tmp_path / "new")]) == 2
    assert "RANK must be a number beside WORLD_SIZE=2, got ''" in capsys.readouterr().err


def test_each_process_takes_the_gpu_of_its_number(monkeypatch):
    monkeypatch.setattr(devices, "select_device", torch.device)
    assert devices.own_device("cuda:3") == torch.device("cuda:3")
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert devices.own_device("cuda") == torch.device("cuda:1")
    assert devices.own_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="'cuda:3' is one GPU, and 8 processes take one each"):
        devices.own_device("cuda:3")


def test_a_group_of_the_callers_own_changes_nothing(monkeypatch):
    """Only processes that joined share a mean: a library must not wait where nobody asked it to."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert masked_mean(torch.tensor([1.0, 3.0]), torch.tensor([True, True])) == 2
    assert distributed.this() == distributed.ALONE


def test_shares_follow_each_other():
    shares = [distributed.Processes(rank, 3, rank).share(range(6, 12)) for rank in range(3)]
    assert [list(share) for share in shares] == [[6, 7], [8, 9], [10, 11]]


GLOO = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/"  # as torch 2.13 has it


def run_guarded(error: Exception) -> None:
    def collective():
        raise error

    distributed._guard(collective)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"{GLOO}pair.cc:553] Connection closed by peer [127.0.0.1]:7063. This is"),
        RuntimeError(f"{GLOO}pair.cc:537] Read error [127.0.0.1]:6840: Connection reset by peer."),
        RuntimeError(f"{GLOO}pair.cc:300] writev [127.0.0.1]:6840: Broken pipe"),
        RuntimeError(f"{GLOO}unbound_buffer.cc:78] Timed out waiting 6000ms for recv operation"),
        RuntimeError("Application timeout caused pair closure"),
        RuntimeError("Gloo connectFullMesh failed with [...] no peer"),
        torch.distributed.DistStoreError("Timed out after 601 seconds waiting for clients."),
        torch.distributed.DistNetworkError("recvValueWithTimeout failed on SocketImpl(fd=4)"),
        torch.distributed.DistBackendError(
            "NCCL error in: NCCLUtils.hpp:111, remote process exited or there was a network error"
        ),
    ],
    ids=lambda error: str(error)[:90].rpartition("/")[2],
)
def test_what_says_that_a_process_is_lost(error):
    with pytest.raises(distributed.ProcessLostError, match="another process of this") as found:
        run_guarded(error)
    assert found.value.__cause__ is error and str(error).split(":")[0] in str(found.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Tensors must be contiguous"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: the launch timed out and was terminated"),
        torch.distributed.DistNetworkError("The server socket has failed: EADDRINUSE"),
        torch.distributed.DistBackendError("NCCL error, invalid usage\nLast error:\nDuplicate GPU"),
        torch.distributed.DistBackendError("NCCL error, Cuda failure 2 'out of memory'"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_other_errors_of_a_collective_come_through_as_they_are(error):
    with pytest.raises(type(error)) as found:
        run_guarded(error)
    assert found.value is error


def test_a_port_that_is_taken_is_told_in_one_line(recipe, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        finished = subprocess.run(
            [sys.executable, "-m", "flowfuse.train", "--config", str(recipe), "-o", str(tmp_path)],
            env=environment(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", **place),
            capture_output=True,
            text=True,
        )
    assert finished.returncode == 2 and "Traceback" not in finished.stderr
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("flowfuse-train: error (process 1 of 2):") and "EADDRINUSE" in last
