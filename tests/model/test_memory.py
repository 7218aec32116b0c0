"""How much memory a forward pass holds."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowfuse.inputs import ModelInputs
from flowfuse.model import CONFIGS, FlowFuse


class HeldMemory(TorchDispatchMode):
    """Bytes of the tensors that are made under it, most of them at once in `peak`.

    What an operator takes and gives back before it returns is not seen: the workspace of torch's
    convolutions differs between processors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._sizes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        given = {id_of(value) for value in tensors_in((args, kwargs))}
        results = operator(*args, **(kwargs or {}))
        for value in tensors_in(results):
            if id_of(value) not in given:
                storage = value.untyped_storage()
                self._sizes[StorageWeakRef(storage)] = storage.nbytes()
        self._sizes = {ref: size for ref, size in self._sizes.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self._sizes.values()))
        return results


def id_of(value: torch.Tensor) -> int:
    return value.untyped_storage()._cdata


def tensors_in(values: object) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def test_held_memory_is_that_of_living_tensors() -> None:
    value = torch.ones(1000)
    with HeldMemory() as held:
        first = value + 1  # 4000 bytes
        second = first.view(10, 100)[2:]  # nothing new
        del first
        third = second * 2  # 3200 bytes more
        del second
        value.add_(1)  # nothing new
        fourth = third.double()  # 6400 bytes, beside the third
    assert held.peak == 3200 + 6400
    del fourth


def test_a_forward_needs_little_memory() -> None:
    config = replace(CONFIGS["small"], correlation="on_demand")  # as at full size
    model, size = FlowFuse(config).eval(), (240, 320)
    inputs = ModelInputs(
        torch.rand(1, config.slices + 1, config.bins, *size),
        *torch.rand(3, 1, 1, *size),
        torch.zeros(1, 2),
        torch.ones(1, 4),
    )

    with torch.no_grad(), HeldMemory() as held:
        model(inputs)
    # 52 planes of all pixels. What is held too long shows: the slices are 15, all windows 14.
    assert held.peak / (4 * 240 * 320) < 55
