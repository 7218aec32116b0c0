"""The measures of many sets and rows as Markdown, and what JSON can hold of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

# Tables of a set: title -> (column, measure). Some have intervals beside.
FLOW = {
    "EPE px": "epe", "1PE %": "1pe", "2PE %": "2pe", "3PE %": "3pe", "F1-all %": "f1_all",
    "AE deg": "ae", "< 10 px": "epe_below_10", "10-40 px": "epe_10_to_40",
    "> 40 px": "epe_above_40",
}  # fmt: skip
PLACES = {
    "boundary": "epe_boundary", "interior": "epe_interior", "within 2 px": "epe_within_2",
    "within 5 px": "epe_within_5", "within 10 px": "epe_within_10", "elsewhere": "epe_beyond_10",
    "occluded": "epe_occluded", "visible": "epe_visible",
}  # fmt: skip
SIDES = {
    "behind: 2 px": "epe_behind_2", "behind: 5 px": "epe_behind_5",
    "behind: 10 px": "epe_behind_10", "in front: 2 px": "epe_front_2",
    "in front: 5 px": "epe_front_5", "in front: 10 px": "epe_front_10",
    "thin parts": "epe_thin", "grid": "grid",
}  # fmt: skip
PATH = {
    "TEPE px": "tepe", "line to own end": "tepe_line_own_end",
    "line to true end": "tepe_line_true_end", "deviation error": "deviation_error",
    "AUSE": "ause", "AUSE by magnitude": "ause_magnitude",
    "surest 80 % of each scene": "epe_certain", "bound of each scene": "epe_certain_limit",
    "surest 80 % of the set": "epe_certain_set", "bound of the set": "epe_certain_set_limit",
}  # fmt: skip
BOUNDARY = {
    "B_e precision": "boundary_event_precision", "B_e recall": "boundary_event_recall",
    "B_e F": "boundary_event_f", "B_e everywhere": "boundary_event_f_everywhere",
    "B_m precision": "boundary_motion_precision", "B_m recall": "boundary_motion_recall",
    "B_m F": "boundary_motion_f", "B_m everywhere": "boundary_motion_f_everywhere",
}  # fmt: skip
BOUNDARY_F = {"boundary_event_f", "boundary_motion_f"}
WITHOUT_TRUTH = {
    "photometric": "photometric", "event sharpness (FWL)": "sharpness", "mean u px": "mean_u",
    "mean abs v px": "mean_abs_v", "u of one sign %": "one_sign",
}  # fmt: skip
COMPARED = {
    "EPE": "epe", "boundary EPE": "epe_boundary", "interior EPE": "epe_interior",
    "thin EPE": "epe_thin",
}  # fmt: skip
COMPARED_WITHOUT_TRUTH = {"photometric": "photometric"}
EXPLAINED = """\
Values are pooled over all valid pixels of a set; brackets hold 95 % bootstrap intervals over \
scenes, those of ratios paired. `boundary`: EPE within 5 px of motion discontinuities, `interior`: \
elsewhere; within 2, 5, 10 px of B_m, or, where it is not known, of jumps of the ground truth \
by more than 1 px; occluded: not to be seen at the end. Behind and in front: EPE within 2, 5, 10 \
px of jumps of the ground truth, on the side that the other one hides and on the other; where \
occlusion is not known or does not tell, on the slower and on the faster side. Thin parts: in \
front, narrower than 8 px. Grid: mean gradient of u across every fourth column over that across \
the others, in flat moving regions; 1 = none. TEPE: EPE over times between the frames; beside it, \
that of straight lines to the row's own and to the true end. Deviation error: 0 = the true path, \
1 = a straight line; sums over the set, where the true path deviates by more than 1 px. AUSE: \
mean over scenes, 0 = the uncertainty ranks as the errors do. Surest 80 %: the EPE of the pixels \
that are called most certain, over that of all; of the set, the other 20 % are left out wherever \
they are; the bounds are those of the 80 % with the smallest errors. Boundaries: at the threshold \
that is best for the set, without thinning: precision, the share of what is found that has a true \
boundary within 2 px; recall, the share of the true ones that have one that is found (a true B_m \
is a band within 1.5 px of a border); F, their harmonic mean; everywhere, that of a map that says \
"boundary" at every pixel. DIS, Farneback and zero know no path: theirs is straight."""


def as_markdown(report: Mapping) -> str:
    """Format a report, as accuracy.py makes it or as its JSON holds it."""
    lines = [what_ran(report), "", EXPLAINED]
    if report["sets"]:
        lines += ["", "## EPE of all sets, px", "", *summary(report["sets"])]
        lines += ["", "## EPE fused / better single modality", "", *fusion_table(report["sets"])]
    for result in report["sets"]:
        lines += ["", f"## {result['name']}", "", result["what"], ""]
        lines += table(result["rows"], FLOW, with_interval={"epe"})
        if ratios := ratio_table(result["rows"], COMPARED):
            lines += ["", *ratios]
        for columns, limits in (
            (PLACES, set()),
            (SIDES, {"epe_thin"}),
            (PATH, {"tepe"}),
            (BOUNDARY, BOUNDARY_F),
        ):
            rows = {
                name: row
                for name, row in result["rows"].items()
                if _known(row["measures"], columns)
            }
            if rows:
                lines += ["", *table(rows, columns, with_interval=limits)]
        if result.get("seeds"):
            lines += ["", *seeds_table(result["seeds"])]
        if result["pictures"]:
            drawn = ", ".join(f"[{name}]({path})" for name, path in result["pictures"].items())
            lines += ["", f"Pictures, by EPE over that of zero flow: {drawn}."]
    for result in report["recordings"]:
        lines += ["", f"## {result['name']}", "", result["what"], ""]
        lines += table(result["rows"], WITHOUT_TRUTH, with_interval=set(), digits=4)
        lines += ["", *ratio_table(result["rows"], COMPARED_WITHOUT_TRUTH)]
    for name, sweep in report["sweeps"].items():
        lines += ["", f"## EPE by {name}", "", *sweep_table(sweep)]
    return "\n".join(lines) + "\n"


def summary(sets: Sequence[Mapping]) -> list[str]:
    """EPE of every row on every set: what a reader looks for first."""
    lines = head(["", *(result["name"] for result in sets)])
    for name in dict.fromkeys(name for result in sets for name in result["rows"]):
        rows = [result["rows"].get(name, {"measures": {}}) for result in sets]
        values = [row["measures"].get("epe") for row in rows]
        lines.append(line([name, *(cell(value, 2, limits=False) for value in values)]))
    return lines


def seeds_table(comparisons: Mapping[str, Mapping]) -> list[str]:
    """Ratios of groups of seeds, below 1 the first is better."""
    lines = head(["mean over seeds", *COMPARED])
    for name, found in comparisons.items():
        cells = [cell(found[measure], 3, limits=True) for measure in COMPARED.values()]
        lines.append(line([name, *cells]))
    return lines


def fusion_table(sets: Sequence[Mapping]) -> list[str]:
    """What fusing costs on every set; last the geometric mean of the pairs' ratios."""
    lines = head(["", "set", "pairs"])
    for result in sets:
        for label, found in result["fusion"].items():
            if found is not None:
                cells = [cell(found, 3, limits=True), f"{found['pairs']:.3f}"]
                lines.append(line([f"{label}, {result['name']}", *cells]))
    return lines


def what_ran(report: Mapping) -> str:
    """The facts of a run in one line."""
    facts = report["machine"]
    checkpoints = ", ".join(f"`{label}` ({path})" for label, path in report["checkpoints"].items())
    return (
        f"{checkpoints}; {facts.get('gpu') or facts['processor']}, torch "
        f"{report['versions']['torch']}, {report['precision']}, commit "
        f"{report['commit'] or 'unknown'}, {report['date']}."
    )


def table(
    rows: Mapping[str, Mapping],
    columns: Mapping[str, str],
    *,
    with_interval: set[str],
    digits: int = 2,
) -> list[str]:
    """A table of measures; those that no row has are left out."""
    used = {
        title: measure
        for title, measure in columns.items()
        if any(_known(row["measures"], {title: measure}) for row in rows.values())
    }
    lines = head(["", *used])
    for name, row in rows.items():
        cells = [
            cell(row["measures"].get(measure), digits, limits=measure in with_interval)
            for measure in used.values()
        ]
        lines.append(line([name, *cells]))
    return lines


def ratio_table(rows: Mapping[str, Mapping], compared: Mapping[str, str]) -> list[str]:
    """Measures of every row over those of the references; what no row has is left out."""
    columns = {
        f"{title} / {reference}": (reference, measure)
        for title, measure in compared.items()
        for reference, ratios in next(iter(rows.values()))["ratios"].items()
        if cell(ratios.get(measure), 3, limits=False)
    }
    if not columns:
        return []
    lines = head(["", *columns])
    for name, row in rows.items():
        cells = [
            cell(row["ratios"][reference].get(measure), 3, limits=True)
            for reference, measure in columns.values()
        ]
        lines.append(line([name, *cells]))
    return lines


def sweep_table(sweep: Mapping) -> list[str]:
    """A sweep with its bins as columns."""
    lines = head([sweep["unit"], *sweep["bins"]])
    lines.append(line(["scenes", *map(str, sweep["scenes"])]))
    for name, cells in sweep["rows"].items():
        lines.append(line([name, *(cell(value, 2, limits=True) for value in cells)]))
    return lines


def cell(value: Mapping[str, float] | None, digits: int, *, limits: bool) -> str:
    """An interval as "1.23 [1.10, 1.40]", or empty where it is undefined (NaN, or JSON's null)."""
    if value is None or not _defined(value["value"]):
        return ""
    text = f"{value['value']:.{digits}f}"
    if not limits or not _defined(value["low"]) or value["low"] == value["high"]:
        return text
    return f"{text} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def _defined(value: float | None) -> bool:
    return value is not None and value == value


def _known(measures: Mapping[str, Mapping], columns: Mapping[str, str]) -> bool:
    return any(cell(measures.get(name), 2, limits=False) for name in columns.values())


def head(titles: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [line(titles), "|---" * len(titles) + "|"]


def line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(text.replace("|", "/") for text in cells) + " |"


def without_nan(value: object) -> object:
    """The same with None for NaN and infinity, which JSON has no words for."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
