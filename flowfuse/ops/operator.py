"""What an operator is: a kernel, a reference in plain torch, and what torch must know of both."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .examples import Example
from .extension import LIBRARY, has_kernel

NAMESPACE = "flowfuse"
FEATURE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
COORDINATE_DTYPES = (torch.float32, torch.float64)

Result = TypeVar("Result")
MakeExample = Callable[[torch.dtype, tuple], Example]  # for a size (batch, height, width)

OPERATORS: dict[str, Operator] = {}  # by name: every Operator that was made
EXAMPLES: dict[str, MakeExample] = {}  # calls of all of them, by name


@dataclass(frozen=True)
class Gradient:
    """The gradient of an operator, by the operator `<name>_backward` of the library.

    Attributes:
        fake: empty results of `<name>_backward`.
        setup_context, backward: as torch.library.register_autograd takes them.
    """

    fake: Callable[..., Any]
    setup_context: Callable[..., None]
    backward: Callable[..., Any]


@dataclass(frozen=True)
class Operator:
    """An operator of the library; called, it runs its kernel, or its reference where none is.

    Attributes:
        name: in the library, of the files that hold its parts, and of the public function.
        check: raises a ValueError where the kernel would, for what no kernel sees: the reference
            and fake tensors. csrc/operators/<name>.h has the check of the kernels.
        reference: the formula in plain torch: slow, obvious, differentiable, on any device.
        fake: empty results, for tensors that have no values.
        gradient: None where there is none.
        trained_by_reference: the kernel is for inference alone: where a gradient is asked for, the
            reference is run.
        examples: calls of it by name, a name that begins with the operator's.
        cuda: the kernels of it and its gradient on CUDA where they are calls of torch; they check
            their arguments. None where csrc/cuda has them.
    """

    name: str
    check: Callable[..., None]
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    gradient: Gradient | None
    examples: Mapping[str, MakeExample]
    trained_by_reference: bool = False
    cuda: tuple[Callable[..., Any], ...] = ()

    def __post_init__(self) -> None:
        OPERATORS[self.name] = self
        EXAMPLES.update(self.examples)
        if LIBRARY is not None:
            self._register()

    def __call__(self, *arguments: Any) -> Any:
        device = next((a.device for a in arguments if isinstance(a, Tensor)), torch.device("cpu"))
        if has_kernel(device) and not (self.trained_by_reference and gradient_wanted(arguments)):
            return self.call(*arguments)
        check_types(self.name, self.reference, arguments)
        self.check(*arguments)
        return self.reference(*arguments)

    def call(self, *arguments: Any) -> Any:
        return call(self.name, self.reference, *arguments)

    def call_backward(self, *arguments: Any) -> Any:
        """`<name>_backward`, for `gradient.backward`."""
        return call(f"{self.name}_backward", None, *arguments)

    def _register(self) -> None:
        full = f"{NAMESPACE}::{self.name}"

        def fake(*arguments: Any) -> Any:
            # Where torch.compile traces, the kernel checks when the graph runs.
            if not torch.compiler.is_compiling():
                self.check(*arguments)
            return self.fake(*arguments)

        torch.library.register_fake(full, fake)
        refuse_vmap(self.name)
        for suffix, kernel in zip(("", "_backward"), self.cuda, strict=False):
            torch.library.register_kernel(full + suffix, "cuda", kernel)
        if self.gradient is None:
            torch.library.register_autograd(full, no_backward, setup_context=not_differentiable)
            return
        torch.library.register_fake(f"{full}_backward", self.gradient.fake)
        refuse_vmap(f"{self.name}_backward")
        torch.library.register_autograd(
            full, self.gradient.backward, setup_context=self.gradient.setup_context
        )

        def twice(context: object, *grads: object) -> None:
            raise NotImplementedError(f"{self.name}: double backward is not supported")

        torch.library.register_autograd(f"{full}_backward", twice)


def gradient_wanted(arguments: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(argument, Tensor) and argument.requires_grad for argument in arguments
    )


def not_differentiable(ctx: Any, inputs: tuple, output: Any) -> None:
    # Without this, inputs that require a gradient make an output that seems to have one.
    ctx.mark_non_differentiable(*([output] if isinstance(output, Tensor) else output))
    ctx.inputs = len(inputs)


def no_backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
    return (None,) * ctx.inputs


def refuse_vmap(name: str) -> None:
    def vmap(info: object, in_dims: object, *args: object) -> None:
        raise NotImplementedError(f"{name}: vmap is not supported; use the batch axis instead")

    torch.library.register_vmap(f"{NAMESPACE}::{name}", vmap)


def call(name: str, signature: Callable[..., Any] | None, *arguments: Any) -> Any:
    """Run the kernel of operator `name`; memory it could not get is a torch.OutOfMemoryError.

    `signature` names the arguments and their types. Under torch.compile, faults of arguments are
    ValueErrors too, others plain RuntimeErrors.
    """
    operator = getattr(torch.ops.flowfuse, name)
    if torch.compiler.is_compiling():
        return operator(*arguments)
    try:
        return operator(*arguments)
    except (RuntimeError, ValueError) as error:  # what the stable interface of torch carries
        if signature is not None:  # a None, say, reaches a kernel as a tensor without a shape
            check_types(name, signature, arguments)
        if isinstance(error, ValueError):
            raise
        if "API call failed" in str(error):  # torch's own operators, which copy arguments
            raise RuntimeError(
                f"{name}: torch could not copy an argument, most often for want of memory: {error}"
            ) from None
        _, found, what = str(error).partition(": out of memory: ")
        if not found:
            raise
        # An allocation fails as well after a fault of an earlier kernel, which is told here.
        for argument in arguments:
            if isinstance(argument, Tensor) and argument.is_cuda:
                torch.cuda.current_stream(argument.device).query()
        raise torch.OutOfMemoryError(f"{name}: out of memory: {what}") from None


# ---- checks in Python: of what never reaches a kernel --------------------------------------------


def check_types(op: str, signature: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Name the first argument that is no tensor or integer although `signature` says so."""
    parameters = inspect.signature(signature).parameters.values()
    for parameter, value in zip(parameters, arguments, strict=False):
        name, kind = parameter.name, str(parameter.annotation)
        if kind == "int":
            check_integer(op, name, value)
        elif kind == "Sequence[Tensor]":
            for level, item in enumerate(value):
                check_tensor(op, f"level {level} of {name.removesuffix('_levels')}", item)
        elif kind == "Tensor" or (kind == "Tensor | None" and value is not None):
            check_tensor(op, name, value)


def check_tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")


def check_integer(op: str, name: str, value: object) -> None:
    if torch.compiler.is_compiling():
        return
    if not hasattr(value, "__index__"):  # as integers of numpy and sizes that torch traces have it
        raise ValueError(f"{op}: {name} must be an int, got {type(value).__name__}")


def check_range(op: str, name: str, value: int, least: int, most: int) -> None:
    check_integer(op, name, value)
    require(least <= value <= most, f"{op}: {name} must be in [{least}, {most}], got {value}")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class Shapes:
    """Checks tensors of one call against each other: shapes, dtypes and devices.

    An axis is a size, or a letter that has the same size wherever it stands; a letter with an
    underscore ("H_l") may have any.
    """

    def __init__(self, op: str) -> None:
        self.op = op
        self.sizes: dict[str, int] = {}
        self.first: tuple[str, Tensor] | None = None

    def check(
        self, name: str, tensor: Tensor, axes: Sequence[str | int], dtypes: Sequence[torch.dtype]
    ) -> None:
        if torch.compiler.is_compiling():  # the kernel checks when the graph runs
            return
        check_tensor(self.op, name, tensor)
        expected = [self.sizes.get(a, a) if isinstance(a, str) else a for a in axes]
        fits = tensor.dim() == len(expected) and all(
            isinstance(size, str) or size == found
            for size, found in zip(expected, tensor.shape, strict=True)
        )
        if not fits:
            form, got = (", ".join(map(str, sizes)) for sizes in (expected, tensor.shape))
            raise ValueError(f"{self.op}: {name} must have shape [{form}], got [{got}]")
        named = zip(axes, tensor.shape, strict=True)
        self.sizes |= {a: n for a, n in named if isinstance(a, str) and "_" not in a}
        if tensor.dtype not in dtypes:
            allowed = ", ".join(map(dtype_name, dtypes))
            got = dtype_name(tensor.dtype)
            raise ValueError(f"{self.op}: {name} must be of dtype {allowed}, got {got}")
        if self.first is None:
            self.first = (name, tensor)
        first_name, first = self.first
        if tensor.device != first.device:
            raise ValueError(f"{self.op}: {name} must be on the device of {first_name}")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- what references and fake kernels share ------------------------------------------------------


def full_precision(function: Callable[..., Result]) -> Callable[..., Result]:
    """Keep autocast out: it would compute and sum an einsum in half precision."""

    @functools.wraps(function)
    def run(first: Tensor, *others: object) -> Result:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *others)

    return run
