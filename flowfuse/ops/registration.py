"""What every compiled operator tells torch besides its kernel, and how one is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "flowfuse"


def call(name: str, *arguments: object) -> Any:
    """Run the kernel of operator `name`; memory it could not get is a torch.OutOfMemoryError.

    Under torch.compile every fault of a kernel is a plain RuntimeError.
    """
    operator = getattr(torch.ops.flowfuse, name)
    if torch.compiler.is_compiling():
        return operator(*arguments)
    try:
        return operator(*arguments)
    except RuntimeError as error:  # the stable interface of torch carries no other type
        if "API call failed" in str(error):  # torch's own operators, which copy arguments
            raise RuntimeError(
                f"{name}: torch could not copy an argument, most often for want of memory: {error}"
            ) from None
        _, found, what = str(error).partition(": out of memory: ")
        if not found:
            raise
        # An allocation fails as well after a fault of an earlier kernel, which is told here.
        for argument in arguments:
            if isinstance(argument, torch.Tensor) and argument.is_cuda:
                torch.cuda.current_stream(argument.device).query()
        raise torch.OutOfMemoryError(f"{name}: out of memory: {what}") from None


def refuse_vmap(name: str) -> None:
    def vmap(info: object, in_dims: object, *args: object) -> None:
        raise NotImplementedError(f"{name}: vmap is not supported; use the batch axis instead")

    torch.library.register_vmap(f"{NAMESPACE}::{name}", vmap)


def register_differentiable(name: str, backward: Callable, setup_context: Callable) -> None:
    """Gradient of operator `name`; `<name>_backward` refuses to be differentiated again."""
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context)

    def twice(context: object, *grads: object) -> None:
        raise NotImplementedError(f"{name}: double backward is not supported")

    torch.library.register_autograd(f"{NAMESPACE}::{name}_backward", twice)
    for operator in (name, f"{name}_backward"):
        refuse_vmap(operator)
