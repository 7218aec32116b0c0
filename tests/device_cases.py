"""What tests of devices do with flowfuse.ops.EXAMPLES: record the operators that one calls."""

from __future__ import annotations

from typing import Any

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
