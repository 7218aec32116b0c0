"""The written record of a run: log.csv, validation.csv and, where installed, TensorBoard."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowfuse.io.atomic import atomic_path

_log = logging.getLogger(__name__)


class Table:
    """A CSV file with one row per step, which continues exactly after an interruption.

    Args:
        path: the file. Rows after `last_step` are removed, so that the file is the one that an
            uninterrupted run would have written; 0 removes all.
        last_step: the step that the run resumes from.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self.path = path
        self.columns: list[str] = []
        kept = []
        if last_step > 0 and path.is_file():
            header, *rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")))) or [[]]
            # A killed writer may have left half a row at the end.
            rows = [row for row in rows if len(row) == len(header) and row[0].isdecimal()]
            kept = [row for row in rows if int(row[0]) <= last_step]
            self.columns = header if kept else []
        with atomic_path(path) as beside, open(beside, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([self.columns, *kept] if kept else [])
        self._file = open(path, "a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row.

        Args:
            step: the first column.
            values: the other columns, the same in each row.

        Raises:
            ValueError: other columns than the file has.
        """
        columns = ["step", *values]
        if not self.columns:
            self.columns = columns
            self._writer.writerow(columns)
        if columns != self.columns:
            raise ValueError(
                f"{self.path}: has columns {', '.join(self.columns)}; this version writes "
                f"{', '.join(columns)}: move the file away to go on"
            )
        self._writer.writerow([step, *(f"{value:.9g}" for value in values.values())])
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TrainingLog:
    """Writes scalars of a run to CSV files and, where it is installed, to TensorBoard.

    Args:
        directory: of the run.
        last_step: the step that the run resumes from; 0 for a new run.
        tensorboard: write TensorBoard event files too.
    """

    def __init__(self, directory: Path, last_step: int, tensorboard: bool) -> None:
        self.training = Table(directory / "log.csv", last_step)
        self.validation = Table(directory / "validation.csv", last_step)
        self._board = _open_board(directory / "tensorboard", last_step) if tensorboard else None

    def log_training(self, step: int, values: Mapping[str, float]) -> None:
        """Record the averages of the last steps."""
        self.training.append(step, values)
        self._draw("train", step, values)

    def log_validation(self, step: int, values: Mapping[str, float]) -> None:
        """Record the errors on held-out scenes."""
        self.validation.append(step, values)
        self._draw("validation", step, values)

    def close(self) -> None:
        """Close all files."""
        self.training.close()
        self.validation.close()
        if self._board is not None:
            self._board.close()

    def _draw(self, group: str, step: int, values: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)


def _open_board(directory: Path, last_step: int) -> Any | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _log.warning(
            "TensorBoard is not installed, so log.csv alone is written; "
            "`pip install tensorboard` adds it"
        )
        return None
    return SummaryWriter(str(directory), purge_step=last_step + 1)
