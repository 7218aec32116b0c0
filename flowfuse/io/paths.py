"""Paths that a caller gives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def as_path(name: str, value: Any) -> Path:
    """Take a path.

    Args:
        name: of the argument, for messages.
        value: a text, or what the system takes as a path.

    Raises:
        ValueError: it is none, such as None; naming the argument, what was found and what was
            expected.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"{name} must be a path, got {value!r}")
    return Path(value)
