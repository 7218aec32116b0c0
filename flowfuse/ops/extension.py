"""Finds and loads the compiled operators, and says once what is used where there are none.

FLOWFUSE_DISABLE_EXTENSION=1, read when flowfuse.ops is imported, leaves the compiled operators
unloaded.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

DISABLED = os.environ.get("FLOWFUSE_DISABLE_EXTENSION", "0") not in ("", "0")
REBUILD = (
    "install it with `FLOWFUSE_EXTENSION=1 pip install --no-build-isolation .` in a checkout, "
    "which needs a C++17 compiler"
)
REBUILD_CUDA = (
    "install it with `FLOWFUSE_CUDA=1 pip install --no-build-isolation .` in a checkout, "
    "which needs nvcc"
)
_announced: set[str] = set()


def find_library() -> Path | None:
    """The compiled library beside the package, or None."""
    found = sorted(Path(__file__).parent.parent.glob("_C*.so"))
    return found[0] if found else None


def load_library() -> Path | None:
    path = None if DISABLED else find_library()
    if path is not None:
        torch.ops.load_library(str(path))
    return path


LIBRARY = load_library()


def library_facts() -> dict[str, str]:
    """What the library says of itself: lines of key=value.

    Asked at import: an instruction set that cannot be had, raised by the first operator, would lose
    its message on the way out of torch's thread pool.
    """
    if LIBRARY is None:
        return {}
    try:
        lines = torch.ops.flowfuse.build_info().splitlines()
    except ValueError as error:  # FLOWFUSE_CPU_CAPABILITY names what this machine does not have
        raise ImportError(str(error)) from None
    return dict(line.split("=", maxsplit=1) for line in lines)


FACTS = library_facts()
KERNEL_DEVICES = ("cpu", "cuda")[: (LIBRARY is not None) + ("cuda" in FACTS)]


def announce(message: str) -> None:
    """Warn about `message` once in this process."""
    if message not in _announced:
        _announced.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=5)


def has_kernel(device: torch.device) -> bool:
    """Whether compiled operators serve this device; where they do not, the user is told once."""
    if device.type in KERNEL_DEVICES:
        return True
    if LIBRARY is not None:
        if not torch.compiler.is_compiling():
            rebuild = f"; {REBUILD_CUDA}" if device.type == "cuda" else ""
            announce(
                f"flowfuse.ops has no compiled operators for {device.type}: "
                f"the slower references in plain torch are used there{rebuild}"
            )
        return False
    if torch.compiler.is_compiling():
        raise RuntimeError(f"torch.compile and export need the flowfuse extension: {REBUILD}")
    cause = "switched off by FLOWFUSE_DISABLE_EXTENSION" if DISABLED else "not built"
    announce(
        f"the flowfuse extension is {cause}: the slower references in plain torch are used"
        + ("" if DISABLED else f"; {REBUILD}")
    )
    return False


@contextmanager
def kernels_on(*devices: str) -> Iterator[None]:
    """Say that there are kernels for these types of devices and for no other, for tests."""
    global KERNEL_DEVICES
    before = KERNEL_DEVICES
    KERNEL_DEVICES = devices
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "flowfuse.ops has no compiled", RuntimeWarning)
            yield
    finally:
        KERNEL_DEVICES = before


def build_info() -> dict[str, Any]:
    """What the operators run on.

    Returns:
        dict with `extension` (bool), `path` (str or None), `devices` (tuple of device types that
        have kernels), `torch` (version running), and of the library, None without it:
        `torch_target` (the LibTorch version whose ABI it was built for), `compiler`,
        `cpp_standard`, `cpu_capability` (instruction set chosen for this machine),
        `cpu_capabilities` (those compiled in), `cuda` (CUDA version of its kernels, None without
        them; CUDA 13 needs a driver of at least R580) and `cuda_architectures` (sm_NN machine
        code, compute_NN PTX for later GPUs).
    """
    info: dict[str, Any] = {
        "extension": LIBRARY is not None,
        "path": None if LIBRARY is None else str(LIBRARY),
        "devices": KERNEL_DEVICES,
        "torch": torch.__version__,
    }
    for key in ("torch_target", "compiler", "cpp_standard", "cpu_capability"):
        info[key] = FACTS.get(key)
    for key, separator in (("cpu_capabilities", ","), ("cuda", None), ("cuda_architectures", "+")):
        value = FACTS.get(key)
        info[key] = tuple(value.split(separator)) if value and separator else value
    return info
