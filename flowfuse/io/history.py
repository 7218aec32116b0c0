"""The commands that wrote into a directory of results: one line each, none is ever replaced."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

HISTORY = "history.jsonl"


def record_call(
    directory: Path,
    program: str,
    arguments: Sequence[str] | None,
    settings: Mapping[str, Any],
    version: str,
) -> None:
    """Add a line to history.jsonl: when, what was typed and where, versions, and all settings.

    Args:
        directory: of the results; it must exist.
        program: the name of the command.
        arguments: what followed it; None takes those of the process.
        settings: as JSON can hold them; paths become text.
        version: of flowfuse.

    Raises:
        OSError: the file cannot be written.
    """
    given = sys.argv[1:] if arguments is None else arguments
    line = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([program, *given]),
        "directory": str(Path.cwd()),
        "versions": {
            "flowfuse": version,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "settings": settings,
    }
    # One write of one line: two processes that append do not mix theirs.
    with open(directory / HISTORY, "a", encoding="utf-8") as file:
        file.write(json.dumps(line, default=str) + "\n")
