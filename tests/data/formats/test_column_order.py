"""The order of columns: stated, named, evident, or in doubt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfuse.data.formats.column_order import (
    ColumnOrder,
    infer_order,
    infer_unit,
    parse_columns,
    read_header,
)
from flowfuse.data.registry import open_event_file


def make_rows(count=50, seed=0):
    """[N, 4] of t (us), x, y, p."""
    rng = np.random.default_rng(seed)
    t = 1000 + np.cumsum(rng.integers(0, 90, count))
    columns = t, rng.integers(0, 40, count), rng.integers(0, 30, count), rng.integers(0, 2, count)
    return np.stack(columns, axis=1)


@pytest.mark.parametrize(
    ("text", "names", "unit"),
    [
        ("t,x,y,p", "txyp", None),
        ("X Y P T_us", "xypt", 1.0),
        ("p, t_ns, x, y", "ptxy", 1e-3),
        ("y,x,t_s,p", "yxtp", 1e6),
        ("t_ms,p,x,y", "tpxy", 1e3),
    ],
)
def test_stated_columns(text, names, unit):
    order = parse_columns(text)
    assert order == ColumnOrder(names, unit) and str(order) == " ".join(names)
    # The t-th, x-th, ... value of a row of their own names is that name.
    assert [names[column] for column in order.columns()] == list("txyp")


@pytest.mark.parametrize("text", ["", "t,x,y", "t,x,y,y", "t,x,y,p,q", "t,x,y,z", "t_min,x,y,p"])
def test_faults_of_stated_columns(text):
    with pytest.raises(ValueError, match="columns must be x, y, p and one of t, t_s"):
        parse_columns(text)


@pytest.mark.parametrize(
    ("line", "names", "unit"),
    [
        ("timestamp x y polarity", "txyp", None),
        ('"x" "y" "p" "t"', "xypt", None),
        ("x y Polarity timestamp_us", "xypt", 1.0),
        ("ts[ns] column row pol", "txyp", 1e-3),
        ("time(seconds) xpos ypos pol", "txyp", 1e6),
        ("tick xpos ypos pol", "txyp", None),
        ("Timestamp_Microseconds x y on", "txyp", 1.0),
        ("a b c d", None, None),
        ("t x y", None, None),
    ],
)
def test_headers(line, names, unit):
    expected = None if names is None else ColumnOrder(names, unit)
    assert read_header(line.split()) == expected


@pytest.mark.parametrize("names", ["txyp", "xytp", "xypt", "ptxy", "tpxy", "pxyt"])
@pytest.mark.parametrize("signed", [False, True])
def test_evident_orders(names, signed):
    rows = make_rows()
    if signed:
        rows[:, 3] = 2 * rows[:, 3] - 1
    order, evident = infer_order(rows[:, ["txyp".index(name) for name in names]])
    assert order.names == names and evident


def test_orders_in_doubt():
    rows = make_rows()
    rows[:, 1] = 1  # x could be the polarity
    with pytest.raises(ValueError, match=r"the columns may be .*; state them"):
        infer_order(rows[:, [1, 2, 3, 0]])
    assert infer_order(rows) == (ColumnOrder("txyp"), True)  # the usual order fits, too
    # Too few rows, or rows of which nothing is sorted, keep the usual order.
    assert infer_order(make_rows(5)[:, [1, 2, 0, 3]]) == (ColumnOrder("txyp"), False)
    assert infer_order(make_rows()[::-1][:, [1, 2, 0, 3]]) == (ColumnOrder("txyp"), False)


def test_units():
    t = make_rows()[:, 0].astype(float)
    assert infer_unit(t) == (1, "it has whole numbers only")
    assert infer_unit(t / 1e6) == (1e6, "it has fractions")
    assert infer_unit(t[:3]) == (1e6, "there are too few lines to tell")
    assert infer_unit(np.arange(50.0)) == (1e6, "its first 50 values span less than 1000")
    assert infer_unit(np.append(t, np.inf))[0] == 1e6


def write(path, rows, names, header="", form="{:d}"):
    lines = []
    for t, x, y, p in rows.tolist():
        values = {
            "t": form.format(t) if form == "{:d}" else f"{t / 1e6:.6f}",
            "x": x,
            "y": y,
            "p": p,
        }
        lines.append(",".join(str(values[name]) for name in names))
    path.write_text(header + "\n".join(lines) + "\n")


def columns_of(path, columns=None):
    file = open_event_file(path, columns)
    window = file.window(0, 10**9, 30, 40)
    return np.stack((window.t, window.x, window.y, window.p), axis=1), file


@pytest.mark.filterwarnings("error")
def test_text_with_a_header_or_stated_columns(tmp_path):
    rows, path = make_rows(), tmp_path / "events.csv"
    write(path, rows, "yxpt", "y,x,polarity,t_us\n")
    np.testing.assert_array_equal(columns_of(path)[0], rows)
    write(path, rows, "yxpt")
    np.testing.assert_array_equal(columns_of(path, "y,x,p,t_us")[0], rows)
    write(path, rows, "yxpt", "what,is,this,then\n")
    np.testing.assert_array_equal(columns_of(path, "y,x,p,t_us")[0], rows)
    write(path, rows, "ptxy", "p t x y\n", form="seconds")
    np.testing.assert_array_equal(columns_of(path)[0], rows)
    write(path, rows, "txyp", form="seconds")
    np.testing.assert_array_equal(columns_of(path)[0], rows)


def test_text_of_evident_columns_says_what_is_assumed(tmp_path):
    rows, path = make_rows(), tmp_path / "events.csv"
    write(path, rows, "xypt")  # as Prophesee's metavision_file_to_csv writes
    match = "taken as x y p t, which alone fits their values, and t is taken as microseconds"
    with pytest.warns(UserWarning, match=match) as caught:
        found, file = columns_of(path)
        _ = file.sensor_size
    assert len(caught) == 1
    np.testing.assert_array_equal(found, rows)
    write(path, rows, "xytp", form="seconds")
    with pytest.warns(UserWarning, match=r"taken as x y t p, which alone fits their values; state"):
        np.testing.assert_array_equal(columns_of(path)[0], rows)
    rows[:, 1] = 1
    write(path, rows, "xypt")
    with pytest.raises(ValueError, match=r"events.csv: the columns may be .*; state them"):
        columns_of(path)


def test_a_first_line_with_the_size(tmp_path):
    rows, path = make_rows(), tmp_path / "events.txt"
    write(path, rows, "txyp", "# of E2VID\n40 30\n", form="seconds")
    for _ in range(2):
        found, file = columns_of(path)
        assert file.sensor_size == (30, 40)
        np.testing.assert_array_equal(found, rows)
    path.write_text("40 30\n0.1 1 1\n")
    with pytest.raises(ValueError, match=r"line 1: 4 columns .* found 2"):
        columns_of(path)


def test_files_that_name_their_columns_take_no_others(tmp_path):
    np.savez(tmp_path / "a.npz", x=[1], y=[1], t=[1], p=[1])
    with pytest.raises(ValueError, match=r"columns are stated, but files of npz name their own"):
        open_event_file(tmp_path / "a.npz", "t,x,y,p")


@given(st.lists(st.lists(st.floats(), min_size=4, max_size=4), max_size=40))
def test_any_rows_have_an_order_or_are_in_doubt(rows):
    values = np.array(rows, np.float64).reshape(-1, 4)
    try:
        order, _ = infer_order(values)
    except ValueError as error:
        assert "the columns may be" in str(error)
        return
    assert sorted(order.names) == sorted("txyp")
    assert infer_unit(values[:, 0])[0] in (1.0, 1e6)
