"""Events in one array of four columns, which are found by what they hold: what .h5 and .npz share.

Not every table is in the order t x y p: v2e and EVIMO write it so, MVSEC as x y t p.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from flowfuse.data.formats import column_order
from flowfuse.data.formats.column_order import ColumnOrder
from flowfuse.data.formats.columns import Columns


class TableColumn:
    """A column of an array [N, 4], read when it is indexed."""

    def __init__(self, table: Any, column: int) -> None:
        self._table, self._column = table, column
        self.shape = table.shape[:1]
        self.dtype = table.dtype
        self.chunks = getattr(table, "chunks", None)

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        return np.asarray(self._table[rows, self._column])


class PixelColumn(TableColumn):
    """Coordinates: whole numbers become int32, whatever the table is made of."""

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        values = super().__getitem__(rows)
        if values.dtype.kind == "f" and (values % 1 == 0).all() and (abs(values) < 1 << 31).all():
            return values.astype(np.int32)
        return values


class TimeColumn(TableColumn):
    """Times: int64 microseconds."""

    def __init__(self, table: Any, column: int, microseconds: float) -> None:
        super().__init__(table, column)
        self._unit = microseconds
        self.dtype = np.dtype(np.int64)

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        values = super().__getitem__(rows)
        if values.dtype.kind != "f" and self._unit == 1:
            return values.astype(np.int64)
        if not np.isfinite(values).all():
            raise ValueError(f"t must be finite, got NaN or infinity in {rows}")
        return np.rint(values.astype(np.float64) * self._unit).astype(np.int64)


def table_columns(table: Any, order: ColumnOrder | None) -> tuple[Columns, list[str]]:
    """The columns of an array of events.

    Args:
        table: [N, 4] numbers, indexed and not loaded.
        order: of the columns; None: as values show it. Without ``microseconds``, t is in
            microseconds where the table has whole numbers, else in seconds.

    Returns:
        The columns, t in int64 microseconds; and what was assumed, to be told.

    Raises:
        ValueError: values do not show the order.
    """
    rows = np.asarray(table[: column_order.SAMPLE], np.float64)
    told = []
    if order is None:
        order, evident = column_order.infer_order(rows)
        if not evident and len(rows):
            raise ValueError(
                f"the order of its columns does not show in the first {len(rows)} rows; state "
                "them (columns), as 't,x,y,p'"
            )
        if order.names != "txyp":
            told.append(f"the columns are taken as {order}, which alone fits their values")
    place, unit = order.names.index, order.microseconds
    if unit is None and table.dtype.kind == "f":
        unit, reason = column_order.infer_unit(rows[:, place("t")])
        if unit == 1:
            told.append(f"t is taken as microseconds, since {reason}")
    columns = Columns(
        x=PixelColumn(table, place("x")),
        y=PixelColumn(table, place("y")),
        t=TimeColumn(table, place("t"), 1.0 if unit is None else unit),
        p=TableColumn(table, place("p")),
    )
    return columns, told


def tell(path: Any, told: list[str]) -> None:
    """Warn of what was assumed of a file."""
    for text in told:
        warnings.warn(f"{path}: {text}; state the columns, as 't_s,x,y,p'", stacklevel=6)
