"""What tests do with several numbers of threads: results must have the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

Found = TypeVar("Found")


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """So many threads inside, as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def with_thread_counts(run: Callable[[], Found], counts: Sequence[int] = (1, 2, 3)) -> list[Found]:
    """What a call gives with each number of threads."""
    found = []
    for count in counts:
        with using_threads(count):
            found.append(run())
    return found
