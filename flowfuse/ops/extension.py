"""Finds and loads the compiled operators, and says once what is used where there are none.

FLOWFUSE_DISABLE_EXTENSION=1, read when flowfuse.ops is imported, leaves the compiled operators
unloaded.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch

DISABLED = os.environ.get("FLOWFUSE_DISABLE_EXTENSION", "0") not in ("", "0")
REBUILD = (
    "install it with `FLOWFUSE_EXTENSION=1 pip install --no-build-isolation .` in a checkout, "
    "which needs a C++17 compiler"
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
        # An instruction set that cannot be had is an error here: raised by the first operator, it
        # would lose its message on the way out of torch's thread pool.
        torch.ops.flowfuse.build_info()
    return path


LIBRARY = load_library()
KERNEL_DEVICES = ("cpu",) if LIBRARY is not None else ()


def announce(message: str) -> None:
    """Warn about `message` once in this process."""
    if message not in _announced:
        _announced.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=4)


def has_kernel(device: torch.device) -> bool:
    """Whether compiled operators serve this device; where they do not, the user is told once."""
    if device.type in KERNEL_DEVICES:
        return True
    if LIBRARY is not None:
        if not torch.compiler.is_compiling():
            announce(
                f"flowfuse.ops has no compiled operators for {device.type}: "
                "the slower references in plain torch are used there"
            )
        return False
    if torch.compiler.is_compiling():
        raise RuntimeError(f"torch.compile and export need the flowfuse extension: {REBUILD}")
    cause = "switched off by FLOWFUSE_DISABLE_EXTENSION" if DISABLED else "not built"
    announce(
        f"the flowfuse extension is {cause}: the slower references in plain torch are used; "
        + REBUILD
    )
    return False


def build_info() -> dict[str, object]:
    """What the operators run on.

    Returns:
        dict with `extension` (bool), `path` (str or None), `devices` (tuple of device types that
        have kernels), `torch` (version running), and of the library, None without it:
        `torch_target` (the LibTorch version whose ABI it was built for), `compiler`,
        `cpp_standard`, `cpu_capability` (instruction set chosen for this machine),
        `cpu_capabilities` (those compiled in).
    """
    info: dict[str, object] = {
        "extension": LIBRARY is not None,
        "path": None if LIBRARY is None else str(LIBRARY),
        "devices": KERNEL_DEVICES,
        "torch": torch.__version__,
        "torch_target": None,
        "compiler": None,
        "cpp_standard": None,
        "cpu_capability": None,
        "cpu_capabilities": None,
    }
    if LIBRARY is not None:
        for line in torch.ops.flowfuse.build_info().splitlines():
            key, _, value = line.partition("=")
            info[key] = value
        info["cpu_capabilities"] = tuple(str(info["cpu_capabilities"]).split(","))
    return info
