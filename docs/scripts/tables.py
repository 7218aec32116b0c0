"""Writes the tables of README.md and docs/results/index.md from files of benchmarks/results.

    python docs/scripts/tables.py [--check]

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. --check writes nothing; it fails
where a document has other numbers than the files. After new measurements, name their files below.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = ("README.md", "docs/results/index.md")

ACCURACY = "2026-12-01-small-accuracy.md"
SPEED = {  # machine: file; the first has the times that are shown
    "AMD Zen 5": "2026-12-01-model-cpu.md",
    "AMD Zen 4": "2026-11-29-model-zen4-avx512.md",
    "Intel AMX": "2026-11-29-model-xeon-amx.md",
}
ESTIMATES = {  # as shown: as in the files
    "small": "small fused",
    "small, frames only": "small frames only",
    "small, events only": "small events only",
    "small, frame 0 and events": "small frame 0 and events",
    "DIS": "DIS",
    "zero flow": "zero",
}
REAL = {
    "pan-tilt, frames 51 ms apart (18 pairs)": "pan_tilt/every_1",
    "pan-tilt, every 4th frame (4)": "pan_tilt/every_4",
    "pan-tilt, every 8th frame (2)": "pan_tilt/every_8",
    "pan-tilt, every 8th, twice as fast (1)": "pan_tilt/fast_every_8",
    "slider_depth (5)": "slider_depth",
}
SYNTHETIC = ("slow", "fast", "thin", "mixed", "blur", "dark", "driving", "alley_1", "rubberwhale")
NETWORKS = {  # as shown: as in the files
    "E-RAFT": "E-RAFT",
    "small": "small",
    "base (random weights; none are shipped)": "base",
}

Row = dict[str, str]


def read_tables(path: Path) -> list[list[Row]]:
    """The tables of a Markdown file: a list of rows each, by the names of the columns.

    Args:
        path: the file. The first column, which may have no name, is "".
    """
    tables: list[list[Row]] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for above, rule, index in zip(lines, lines[1:], range(len(lines)), strict=False):
        if not re.fullmatch(r"\|[-|: ]+\|", rule) or not above.startswith("|"):
            continue
        names = _cells(above)
        rows = []
        for line in lines[index + 2 :]:
            if not line.startswith("|"):
                break
            rows.append(dict(zip(names, _cells(line), strict=True)))
        tables.append(rows)
    return tables


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip()[1:-1].split("|")]


def find(tables: list[list[Row]], column: str) -> dict[str, Row]:
    """The rows of the first table that has a column, by what stands in its first column."""
    for rows in tables:
        if rows and column in rows[0]:
            first = next(iter(rows[0]))
            return {row[first]: row for row in rows}
    raise ValueError(f"no table has a column {column!r}")


def real() -> list[list[str]]:
    """EPE on real recordings: a row for each."""
    found = find(read_tables(RESULTS / ACCURACY), next(iter(REAL.values())))
    return [
        ["real events", *ESTIMATES],
        *(
            [label, *(found[row][name] for row in ESTIMATES.values())]
            for label, name in REAL.items()
        ),
    ]


def synthetic() -> list[list[str]]:
    """EPE on synthetic sets and images: a row for each estimate."""
    found = find(read_tables(RESULTS / ACCURACY), SYNTHETIC[0])
    return [
        ["synthetic, images", *SYNTHETIC],
        *([label, *(found[row][name] for name in SYNTHETIC)] for label, row in ESTIMATES.items()),
    ]


def speed() -> list[list[str]]:
    """Time, ratio to E-RAFT and memory of an estimate in float32."""
    measured = {
        machine: {row["network"]: row for row in find_rows(read_tables(RESULTS / name)[0])}
        for machine, name in SPEED.items()
    }
    first = next(iter(SPEED))
    short = " / ".join(name.removeprefix("AMD ") for name in SPEED)
    rows = [
        [
            "",
            "iterations",
            f"time, {first}",
            f"times as fast as E-RAFT: {short}",
            "at E-RAFT's 12 iterations, Zen 5",
            "extra memory",
        ]
    ]
    for label, name in NETWORKS.items():
        own = measured[first][name]
        ratios = [machine[name]["x E-RAFT"] for machine in measured.values()]
        rows.append(
            [
                label,
                own["iterations"],
                f"{float(own['ms'].split()[0]):.0f} ms",
                " / ".join(f"{float(ratio):.1f}" for ratio in ratios) if ratios[0] else "1",
                f"{float(own['x at its iterations']):.1f}" if ratios[0] else "1",
                f"{float(own['extra MiB']):.0f} MiB",
            ]
        )
    return rows


def find_rows(rows: list[Row]) -> list[Row]:
    """The whole estimates in float32 at 640 x 480 px."""
    wanted = {"size": "640 x 480", "scope": "estimate", "dtype": "float32"}
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


TABLES = {"real": real, "synthetic": synthetic, "speed": speed}


def as_markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def filled(text: str) -> str:
    """A document with its tables made anew."""

    def table(found: re.Match) -> str:
        return f"{found[1]}\n{as_markdown(TABLES[found[2]]())}\n<!-- end -->"

    return re.sub(r"(<!-- table: (\w+) -->)\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    asked = parser.parse_args()
    code = 0
    for name in DOCUMENTS:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        new = filled(text)
        if new != text and asked.check:
            print(f"{name}: other numbers than {RESULTS}; run {sys.argv[0]}", file=sys.stderr)
            code = 1
        elif new != text:
            path.write_text(new, encoding="utf-8")
            print(name)
    return code


if __name__ == "__main__":
    sys.exit(main())
