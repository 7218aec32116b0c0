"""What tests of devices do with flowfuse.ops.EXAMPLES: record the operators that one calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from flowfuse.ops.examples import Example


class Calls(TorchDispatchMode):
    """Records every call of a flowfuse operator, forward and backward: (operator, arguments)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "flowfuse":
            self.calls.append((function, tree_map_only(Tensor, Tensor.detach, args)))
        return function(*args, **(kwargs or {}))


def recorded(example: Example) -> list[tuple[Any, tuple]]:
    """The operators that an example calls, with their arguments."""
    with Calls() as calls:
        example.run()
    return calls.calls


# What stands for a GPU with fake tensors: a build of torch without CUDA has no guard for "cuda".
OTHER = "cuda" if torch.cuda.is_available() else "meta"


def leave_meta_alone(monkeypatch) -> None:
    """torch.autocast knows no "meta": there it is the CPU's, which leaves these tensors alone."""

    def known(function):
        return lambda device, *args, **options: function(
            "cpu" if device == "meta" else device, *args, **options
        )

    # Dynamo lists torch's functions when it is first used, for the whole process: not these.
    torch.compile(torch.neg, backend="eager")(torch.zeros(1))
    for name in ("autocast", "is_autocast_enabled", "get_autocast_dtype"):
        monkeypatch.setattr(torch, name, known(getattr(torch, name)))
