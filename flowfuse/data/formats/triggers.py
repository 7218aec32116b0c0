"""Times of frames from the trigger inputs of an event camera."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from flowfuse.data.formats.base import EventFile, StatedTimes

_SPEC = re.compile(r"triggers(?::(rising|falling))?(?::(\d+))?")
_EDGES = {"rising": 1, "falling": 0}


def is_trigger_spec(text: str) -> bool:
    """Whether frame times are asked of the triggers: "triggers[:rising|falling][:INPUT]"."""
    return text == "triggers" or text.startswith("triggers:")


def trigger_times(file: EventFile, spec: str) -> StatedTimes:
    """The times of the triggers of an event file.

    Args:
        file: of a camera with trigger inputs.
        spec: "triggers[:rising|falling][:INPUT]". Without an edge or an input there must be one
            kind of it only.

    Raises:
        ValueError: there is no trigger of this kind, several kinds fit, the times do not increase,
            or files of this format hold none.
    """
    asked = _SPEC.fullmatch(spec)
    if asked is None:
        raise ValueError(
            f"frame times {spec!r}: expected a file, or triggers[:rising|falling][:INPUT]"
        )
    found = file.triggers()
    there = _described(found) or "none"
    if asked[2] is not None:
        found = found[found["id"] == int(asked[2])]
    if asked[1] is not None:
        found = found[found["p"] == _EDGES[asked[1]]]
    if not len(found):
        raise ValueError(f"{file.path}: no trigger for {spec!r}, the file has {there}")
    for field, example in (("p", "triggers:rising"), ("id", f"triggers:rising:{found['id'][0]}")):
        if len(np.unique(found[field])) > 1:
            raise ValueError(
                f"{file.path}: {spec!r} leaves open which triggers are those of the frames, the "
                f"file has {there}; say so, as {example!r}"
            )
    times = found["t"].astype(np.int64)
    if (np.diff(times) <= 0).any():
        index = int(np.argmax(np.diff(times) <= 0)) + 1
        raise ValueError(
            f"{file.path}: the times of triggers must increase, found {times[index]} us after "
            f"{times[index - 1]} us"
        )
    return StatedTimes(times, f"{spec} of {Path(file.path)}")


def _described(triggers: np.ndarray) -> str:
    kinds = [
        f"{int(((triggers['id'] == number) & (triggers['p'] == edge)).sum())} {name} at input "
        f"{number}"
        for number in np.unique(triggers["id"])
        for name, edge in _EDGES.items()
    ]
    return ", ".join(kind for kind in kinds if not kind.startswith("0 "))
