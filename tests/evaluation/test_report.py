"""Cells of the tables."""

import math

from flowfuse.evaluation.report import cell, without_nan


def test_cells() -> None:
    value = {"value": 1.234, "low": 1.0, "high": 1.5}
    assert cell(value, 2, limits=True) == "1.23 [1.00, 1.50]"
    assert cell(value, 1, limits=False) == "1.2"
    assert cell({"value": math.nan, "low": 0, "high": 0}, 2, limits=True) == ""
    assert cell({"value": None, "low": None, "high": None}, 2, limits=True) == ""
    assert cell({"value": 1.0, "low": None, "high": None}, 2, limits=True) == "1.00"
    assert cell({"value": 1.0, "low": 1.0, "high": 1.0}, 2, limits=True) == "1.00"
    assert cell(None, 2, limits=True) == ""


def test_without_nan() -> None:
    assert without_nan({"a": [1.5, math.nan, (math.inf, "x")], "b": 2}) == {
        "a": [1.5, None, [None, "x"]],
        "b": 2,
    }
