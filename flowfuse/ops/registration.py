"""What every compiled operator tells torch besides its kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch

NAMESPACE = "flowfuse"


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
