"""Which column of a table of events is which: stated, named by a header, or evident from values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import permutations

import numpy as np

SAMPLE = 2000  # rows that are looked at
_FEWEST = 16  # rows that make an order evident
_LEAST_SPAN = 1000  # of whole numbers that are taken for microseconds

_UNITS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}  # microseconds
_TIME_NAME = re.compile(
    r"(?:t|ts|times?|timestamps?|time_?stamps?)"
    r"[\s_(\[]*(s|secs?|seconds?|ms|milliseconds?|us|µs|microseconds?|ns|nanoseconds?)?[)\]]*"
)
_NAMES = {
    "x": ("x", "col", "column", "px"),
    "y": ("y", "row", "py"),
    "p": ("p", "pol", "polarity", "on", "sign"),
}


@dataclass(frozen=True)
class ColumnOrder:
    """The columns of a table.

    Attributes:
        names: one letter of t, x, y, p for each column, such as "txyp".
        microseconds: what one unit of t is; None where nothing states it.
    """

    names: str = "txyp"
    microseconds: float | None = None

    def __str__(self) -> str:
        return " ".join(self.names)

    def columns(self) -> list[int]:
        """The places of t, x, y and p."""
        return [self.names.index(name) for name in "txyp"]


def parse_columns(text: str) -> ColumnOrder:
    """Parse what a user states, such as "x,y,t_us,p".

    Args:
        text: x, y, p and one of t, t_s, t_ms, t_us, t_ns, in the order of the columns.

    Raises:
        ValueError: it is something else.
    """
    order = _from_names([name.strip() for name in text.lower().replace(",", " ").split()])
    if order is None:
        raise ValueError(
            f"columns must be x, y, p and one of t, t_s, t_ms, t_us, t_ns in some order, such as "
            f"'t,x,y,p', got {text!r}"
        )
    return order


def read_header(fields: list[str]) -> ColumnOrder | None:
    """Understand a line of names, such as "timestamp x y polarity"; None where that fails."""
    fields = [field.strip("\"' ").lower() for field in fields]
    order = _from_names(fields)
    names = "".join(field[:1] for field in fields)
    if order is None and sorted(names) == sorted("txyp"):
        time = _TIME_NAME.fullmatch(fields[names.index("t")])
        return ColumnOrder(names, _unit(time[1]) if time and time[1] else None)
    return order


def infer_order(rows: np.ndarray) -> tuple[ColumnOrder, bool]:
    """Find the order of columns from values.

    The time is sorted, and the polarity is in {0, 1} or {-1, 1}. x is taken to stand before y,
    which no value tells.

    Args:
        rows: [N, 4] numbers, the first of a table.

    Returns:
        The order, and whether values show it. Without ``microseconds``: :func:`infer_unit`.

    Raises:
        ValueError: several orders fit, and t x y p is none of them.
    """
    fits = [names for names in _orders() if _fits(rows, names)] if len(rows) >= _FEWEST else []
    if not fits or "txyp" in fits:
        return ColumnOrder(), "txyp" in fits
    if len(fits) > 1:
        shown = ", ".join(" ".join(names) for names in fits)
        raise ValueError(f"the columns may be {shown}; state them (columns), as 'x,y,t,p'")
    return ColumnOrder(fits[0]), True


def infer_unit(t: np.ndarray) -> tuple[float, str]:
    """How many microseconds one unit of t is, from its first values, and why.

    Whole numbers over a span of 1000 and more are microseconds, since a camera's events do not
    keep to whole seconds; all others are seconds.
    """
    if len(t) < _FEWEST:
        return 1e6, "there are too few lines to tell"
    if not (np.isfinite(t).all() and (t % 1 == 0).all()):
        return 1e6, "it has fractions"
    if t[-1] - t[0] < _LEAST_SPAN:
        return 1e6, f"its first {len(t)} values span less than {_LEAST_SPAN}"
    return 1.0, "it has whole numbers only"


def _orders() -> list[str]:
    orders = ["".join(names) for names in permutations("txyp")]
    return [names for names in orders if names.index("x") < names.index("y")]


def _fits(rows: np.ndarray, names: str) -> bool:
    t, x, y, p = (rows[:, names.index(name)] for name in "txyp")
    if not np.isfinite(rows).all() or (t[1:] < t[:-1]).any() or t[0] == t[-1] or (t < 0).any():
        return False
    used = set(np.unique(p).tolist())
    return (used <= {0, 1} or used <= {-1, 1}) and bool(((x > -1) & (y > -1)).all())


def _from_names(fields: list[str]) -> ColumnOrder | None:
    names, unit = "", None
    for field in fields:
        time = _TIME_NAME.fullmatch(field)
        if time:
            names += "t"
            unit = None if time[1] is None else _unit(time[1])
        else:
            names += next((name for name, known in _NAMES.items() if field in known), "?")
    return ColumnOrder(names, unit) if sorted(names) == sorted("txyp") else None


def _unit(name: str) -> float:
    short = {"m": "ms", "u": "us", "µ": "us", "n": "ns", "s": "s"}
    key = short["u" if name.startswith("micro") else name[0]]
    return _UNITS[key]
