"""benchmarks/reading.py: what it reads and writes; never how fast anything is."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import h5py
import numpy as np
import pytest

from flowfuse.data.registry import open_event_file

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
COUNT = 1_100_000  # 110 ms: one window of 100 ms, four of 25 ms
START = 54_000_000_000


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module; it and its neighbours import each other by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("reading")


@pytest.fixture(scope="module")
def file(script, tmp_path_factory) -> Path:
    return script.make_file(tmp_path_factory.mktemp("reading"), COUNT)


def test_the_file_has_the_layout_of_dsec(script, file):
    with h5py.File(file) as content:
        kinds = [content[f"events/{name}"].dtype for name in "xytp"]
        t, table = content["events/t"][()], content["ms_to_idx"][()]
    assert kinds == [np.uint16, np.uint16, np.uint32, np.uint8]
    assert len(t) == COUNT and abs(int(t[-1]) - 110_000) < 10
    np.testing.assert_array_equal(table, np.searchsorted(t, 1000 * np.arange(len(table))))
    before = file.stat().st_mtime_ns
    assert script.make_file(file.parent, COUNT) == file and file.stat().st_mtime_ns == before


def test_windows_lie_in_the_file(script):
    assert script.make_windows(COUNT, 25, "successive") == [
        (START + 25_000 * i, START + 25_000 * (i + 1)) for i in range(4)
    ]
    windows = script.make_windows(COUNT, 100, "random")
    assert len(windows) == 4 and windows == script.make_windows(COUNT, 100, "random")
    assert all(START <= a and b - a == 100_000 and b <= START + 110_000 for a, b in windows)
    with pytest.raises(ValueError, match="10000 events last 1000 us, less than a window of 25000"):
        script.make_windows(10_000, 25, "random")


def test_both_readers_find_the_same_events(script, file):
    plain, ours = script.PlainSlicer(file), open_event_file(file)
    for t0, t1 in [
        (START, START + 300),
        (START + 1500, START + 2000),
        (START + 108_100, START * 2),
    ]:
        t, x, y, p = plain.window(t0, t1)
        window = ours.window(t0, t1, script.HEIGHT, script.WIDTH)
        assert len(t)
        for found, expected in ((window.t, t), (window.x, x), (window.y, y), (window.p, p)):
            np.testing.assert_array_equal(found, expected)


def test_rows_and_their_ratios(script, monkeypatch):
    ticks = iter([0, 0, 0, 1, 0, 2, 0, 3, 0, 6])  # a round that is not timed, and two
    monkeypatch.setattr(script, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    case = script.Case("windows", 100, {script.OURS: lambda: 8, script.PLAIN: lambda: 8})
    ours, plain = script.measure(case, rounds=2)
    assert ours["time_ms"] == 2000 and plain["time_ms"] == 4000  # medians of 1, 3 and of 2, 6 s
    assert ours["events_per_second"] == 4 and ours["ratio_to_plain"] == 2
    assert ours["ratio_to_whole"] is None and ours["ratio_to_no_workers"] is None
    assert script.cells(ours)[:4] == ["windows", "flowfuse", "1e+02", "2000"]


def test_readers_that_differ_or_fail_are_failed_rows(script):
    case = script.Case("windows", 100, {script.OURS: lambda: 8, script.PLAIN: lambda: 9})
    for row in script.measure(case, rounds=1):
        assert "found different events" in row["error"] and row["time_ms"] is None

    def broken():
        raise OSError("disk on fire")

    case = script.Case("windows", 100, {script.OURS: lambda: 8, script.PLAIN: broken})
    ours, plain = script.measure(case, rounds=1)
    assert ours["error"] is None and ours["time_ms"] is not None and ours["ratio_to_plain"] is None
    assert plain["error"] == "OSError: disk on fire"
    assert "failed: OSError" in script.cells(plain)[-1]


def test_quick_run_writes_rows_and_table(script, file, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "WORKERS", (0, 1))
    monkeypatch.setattr(script.torch, "set_num_threads", lambda count: None)  # for other tests
    results, table = tmp_path / "rows.json", tmp_path / "rows.md"
    arguments = [str(file.parent), "--quick", "--events", str(COUNT)]
    assert script.main([*arguments, "--json", str(results), "--markdown", str(table)]) == 0
    report = json.loads(results.read_text())
    assert report["events"] == COUNT and report["file_bytes"] == file.stat().st_size
    rows = {(row["what"], row["reader"], row["file_events"]): row for row in report["rows"]}
    assert all(row["error"] is None and row["time_ms"] > 0 for row in rows.values())
    assert {key[2] for key in rows if key[0] == "opening"} == {COUNT // 100, COUNT}
    ours = rows["successive windows of 25 ms", "flowfuse", COUNT]
    assert abs(ours["read"] - 10**6) < 5000  # the first 100 of 110 ms
    assert ours["ratio_to_plain"] > 0 and ours["ratio_to_whole"] > 0
    assert (
        rows["random windows of 100 ms", "DataLoader, 0 workers", COUNT]["ratio_to_no_workers"] == 1
    )
    assert table.read_text() == script.as_markdown(report)
    lines = [line for line in table.read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows) and len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "folder"),
        (["/no/such/folder"], "/no/such/folder is not an existing directory"),
        ([".", "--events", "10"], "at least 1000000, got 10"),
        ([".", "--events", "many"], "got many"),
        ([".", "--json", "/no/such/folder/x.json"], "/no/such/folder"),
    ],
)
def test_bad_arguments_are_told_in_one_line(script, arguments, word, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("reading: ") and message.count("\n") == 1 and word in message
