"""Processes that do one thing together, train a model or estimate flow, as torchrun starts them.

Between `joined` and its end, the functions below work on all processes, and every process must call
them in the same order. Elsewhere, one process is all there is, whatever group the caller may have
made for itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# How long a process waits for the others, which may generate scenes meanwhile.
TIMEOUT = timedelta(minutes=10)
# What gloo says of a process that is gone or silent (gloo/transport/tcp, connectFullMesh).
_GLOO_LOST = re.compile(
    r"connection (closed|reset|refused|timed out)|timed out waiting|(connect|read|write) timeout|"
    r"application timeout|broken pipe|no route to host|connectFullMesh failed",
    re.IGNORECASE,
)
# What NCCL and the store say of a fault of this process: one GPU for two, a port that is taken.
_OWN_FAULT = re.compile(r"invalid (usage|argument)|out of memory|EADDRINUSE", re.IGNORECASE)


class ProcessLostError(RuntimeError):
    """Another process has ended, or does not answer."""


@dataclass(frozen=True)
class Processes:
    """The place of this process among all.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes, on all machines.
        local_rank: number of this process on its machine, which is that of its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def share(self, numbers: range) -> range:
        """Return this process's part of numbers that divide evenly; the parts follow by rank."""
        size = len(numbers) // self.count
        return numbers[self.rank * size : (self.rank + 1) * size]

    def part(self, length: int) -> range:
        """Return this process's part of ``range(length)``; sizes differ by at most one."""
        return range(self.rank * length // self.count, (self.rank + 1) * length // self.count)


ALONE = Processes()
_processes = ALONE
_device = torch.device("cpu")
_timeout = TIMEOUT


def launched() -> Processes:
    """Return what torchrun says in RANK, WORLD_SIZE and LOCAL_RANK; without them, one process.

    Raises:
        ValueError: one of them is missing or no number.
    """
    if "WORLD_SIZE" not in os.environ:
        return ALONE
    values = []
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        value = os.environ.get(name, "")
        if not value.isdecimal():
            raise ValueError(
                f"{name} must be a number beside WORLD_SIZE={os.environ['WORLD_SIZE']}, "
                f"got {value!r}: start with torchrun, or unset WORLD_SIZE"
            )
        values.append(int(value))
    return Processes(*values)


def this() -> Processes:
    """Return the place of this process among those that have joined."""
    return _processes


@contextmanager
def joined(
    processes: Processes, device: torch.device, timeout: timedelta = TIMEOUT
) -> Iterator[None]:
    """Work as one of several processes; with one process alone, nothing is different.

    Args:
        processes: as `launched` gives it.
        device: where this process computes: it decides between gloo and NCCL.
        timeout: how long a process waits for the others.

    Raises:
        ProcessLostError: not all processes have come.
    """
    global _processes, _device, _timeout
    if processes.count == 1:
        yield
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    _guard(
        lambda: dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            timeout=timeout,
            device_id=device if on_gpu else None,
        )
    )
    _processes, _device, _timeout, failed = processes, device, timeout, True
    try:
        yield
        failed = False
    finally:
        _processes, _device, _timeout = ALONE, torch.device("cpu"), TIMEOUT
        # After an error the others may be gone, and NCCL would wait for them.
        if not (failed and on_gpu):
            dist.destroy_process_group()


def total(values: Tensor) -> Tensor:
    """Sum a tensor over all processes, each of which gets the same bits; no gradient.

    Args:
        values: of the same shape everywhere, on the device that was joined with. Not changed.

    Raises:
        ProcessLostError: another process has ended, or does not answer.
    """
    values = values.detach()
    if _processes.count == 1:
        return values
    values = values.clone()
    _guard(lambda: dist.all_reduce(values))
    return values


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Put the sum of all processes' gradients in place of each one's own.

    Args:
        parameters: the same everywhere; those that have no gradient have none in any process.

    Raises:
        ProcessLostError: as `total`.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if _processes.count == 1 or not gradients:
        return
    sums = total(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(
        gradients, sums.split([gradient.numel() for gradient in gradients]), strict=True
    ):
        gradient.copy_(part.view(gradient.shape))


def anywhere(flag: bool) -> bool:
    """Tell whether a flag is set in any process.

    Raises:
        ProcessLostError: as `total`.
    """
    return bool(total(torch.tensor(float(flag), device=_device)) > 0)


def from_first(value: Any) -> Any:
    """Return what the first process gives; what the others give is not looked at.

    Raises:
        ProcessLostError: as `total`.
    """
    if _processes.count == 1:
        return value
    box = [value]
    _guard(lambda: dist.broadcast_object_list(box, src=0))
    return box[0]


def gathered(value: Any) -> list[Any]:
    """Return what every process gives, by rank.

    Raises:
        ProcessLostError: as `total`.
    """
    if _processes.count == 1:
        return [value]
    values = [None] * _processes.count
    _guard(lambda: dist.all_gather_object(values, value))
    return values


def _guard(collective: Callable[[], Any]) -> None:
    """Run something that needs all processes; what says that one has left is told as that."""
    try:
        collective()
    except RuntimeError as error:
        if not _says_lost(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise ProcessLostError(
            "another process of this run has ended, or has not answered for "
            f"{_timeout.total_seconds() / 60:g} minutes ({reason})"
        ) from error


def _says_lost(error: RuntimeError) -> bool:
    """Whether an error of a collective comes from another process, and not from this one."""
    if isinstance(error, dist.DistError):  # of NCCL and of the store where processes meet
        return not _OWN_FAULT.search(str(error))
    # gloo's have no class of their own. Subclasses (out of memory, errors of CUDA) are others.
    return type(error) is RuntimeError and bool(_GLOO_LOST.search(str(error)))
