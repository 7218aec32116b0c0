"""Averages over a set of scenes, with bootstrap intervals; sweeps over what scenes differ in.

Most measures are ratios of sums: numerator and divisor are kept per scene, and a set's value is the
sum of numerators over the sum of divisors. A flow measure is thus an average over all pixels of the
set, and the deviation error weighs a scene by how much of it deviates. Intervals hold 95 % of what
comes out when the scenes are drawn anew, with replacement; all rows are drawn alike, so that ratios
of rows are compared scene by scene.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from flowfuse.evaluation.metrics import Sums
from flowfuse.evaluation.thresholds import boundary_values, certain_values, quotient

RESAMPLES = 2000
FEWEST_SCENES = 10  # for an interval: drawn from fewer it is little more than least and largest
SEED = 20_011  # of all bootstraps: the same results give the same intervals
DISPLACEMENTS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, math.inf)  # px, limits of bins
EXPOSURES = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the interval between frames
LIGHTS = (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of full scale, linear


Histograms = dict[str, np.ndarray]


@dataclass(frozen=True)
class Interval:
    """A value with the limits of its 95 % interval; NaN where it is undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Facts:
    """What is known about a scene that results are looked at by.

    Attributes:
        name: what the scene is called.
        exposure: mean exposure of the two frames over the interval between them; NaN if unknown.
        light: mean level of the two frames in linear light, 1 = full scale.
    """

    name: str
    exposure: float
    light: float


class Tally:
    """Sums of every row (a method) in every scene of a set."""

    def __init__(self) -> None:
        self.facts: list[Facts] = []
        self._scenes: list[Mapping[str, Sums]] = []
        self._histograms: list[Mapping[str, Histograms]] = []

    def add(
        self,
        facts: Facts,
        rows: Mapping[str, Sums],
        histograms: Mapping[str, Histograms] | None = None,
    ) -> None:
        """Add a scene.

        Args:
            facts: of the scene.
            rows: row -> measure -> (numerator, divisor).
            histograms: row -> the same ones in every scene, for :func:`set_values`.
        """
        self.facts.append(facts)
        self._scenes.append(rows)
        self._histograms.append(histograms or {})

    def __len__(self) -> int:
        return len(self._scenes)

    @property
    def rows(self) -> list[str]:
        """The rows, in the order in which they came."""
        return list(dict.fromkeys(row for scene in self._scenes for row in scene))

    @property
    def measures(self) -> list[str]:
        """All measures that any row has."""
        return list(
            dict.fromkeys(
                name for scene in self._scenes for sums in scene.values() for name in sums
            )
        )

    def sums(self, row: str, measure: str) -> np.ndarray:
        """[N, 2]: numerator and divisor in each scene; zeros where a scene lacks the measure."""
        found = [scene.get(row, {}).get(measure, (0.0, 0.0)) for scene in self._scenes]
        return np.array(found, np.float64).reshape(-1, 2)

    def histograms(self, row: str) -> dict[str, np.ndarray]:
        """What scenes have of a row, stacked: name -> [N, ...]; empty if it has none."""
        found = [scene.get(row, {}) for scene in self._histograms]
        names = found[0] if found else {}
        return {name: np.stack([scene[name] for scene in found]) for name in names}

    def scenes_with(self, row: str, measure: str) -> int:
        """In how many scenes there is something that the measure counts."""
        return int((self.sums(row, measure)[:, 1] > 0).sum())

    def select(self, chosen: Iterable[bool]) -> Tally:
        """The tally of some of the scenes."""
        part = Tally()
        scenes = zip(self.facts, self._scenes, self._histograms, strict=True)
        for keep, scene in zip(chosen, scenes, strict=True):
            if keep:
                part.add(*scene)
        return part

    @staticmethod
    def pooled(tallies: Iterable[Tally]) -> Tally:
        """The scenes of several sets as one."""
        whole = Tally()
        for tally in tallies:
            for scene in zip(tally.facts, tally._scenes, tally._histograms, strict=True):
                whole.add(*scene)
        return whole


def set_values(weights: np.ndarray, histograms: Histograms) -> dict[str, np.ndarray]:
    """Measures of a row whose thresholds are those of the set: measure -> [R].

    Args:
        weights: [R, N].
        histograms: name -> [N, ...]: ``certain_set`` and ``certain_set_limit`` (errors by expected
            and by true error), ``event`` and ``motion`` (B_e and B_m), as far as a row has them.
    """
    found = {}
    for name in ("certain_set", "certain_set_limit"):
        if name in histograms:
            found[f"epe_{name}"] = certain_values(weights, histograms[name])
    for name in ("event", "motion"):
        if name in histograms:
            values = boundary_values(weights, histograms[name])
            found |= {f"boundary_{name}_{measure}": drawn for measure, drawn in values.items()}
    return found


def drawn_counts(count: int, *, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """How often each of ``count`` scenes is drawn: [1 + resamples, count]; once each, at first."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.concatenate((np.ones((1, count), drawn.dtype), drawn))


def ratios_of_sums(weights: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """The measure under each weighting of the scenes, NaN where the divisor is 0.

    Args:
        weights: [R, N].
        sums: [N, 2].

    Returns:
        [R].
    """
    return quotient(*(weights @ sums).T)


def interval(values: np.ndarray, scenes: int) -> Interval:
    """A value with its interval.

    Args:
        values: [1 + R], the value itself, then its resamples; undefined ones (NaN) are left out.
        scenes: how many scenes it rests on; of fewer than FEWEST_SCENES there is no interval.
    """
    value, drawn = values[0], values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value) or scenes < FEWEST_SCENES:
        return Interval(float(value), math.nan, math.nan)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(float(value), float(low), float(high))


def summarize(tally: Tally, references: Mapping[str, str], compared: Sequence[str]) -> dict:
    """Values with intervals of all rows of a set.

    Args:
        tally: the set, one scene or more.
        references: what ratios are taken to: name -> row.
        compared: the measures of which ratios are taken.

    Returns:
        row -> {"measures": {measure: interval}, "ratios": {reference: {measure: interval}},
        "scene_epe": [N] EPE of every scene (NaN without any)}; intervals as {"value", "low",
        "high"}.
    """
    weights = drawn_counts(len(tally))
    values = {
        row: {name: ratios_of_sums(weights, tally.sums(row, name)) for name in tally.measures}
        for row in tally.rows
    }
    for row, found in values.items():
        found |= set_values(weights, tally.histograms(row))

    def between(drawn: np.ndarray, row: str, name: str) -> dict[str, float]:
        scenes = tally.scenes_with(row, name) if name in tally.measures else len(tally)
        return asdict(interval(drawn, scenes))

    return {
        row: {
            "measures": {name: between(drawn, row, name) for name, drawn in found.items()},
            "ratios": {
                reference: {
                    name: between(quotient(found[name], values[other][name]), row, name)
                    for name in compared
                    if name in found
                }
                for reference, other in references.items()
            },
            "scene_epe": quotient(*tally.sums(row, "epe").T).tolist(),
        }
        for row, found in values.items()
    }


def fusion_ratio(tally: Tally, fused: str, single: Sequence[str]) -> dict[str, float] | None:
    """EPE with both modalities over that of the better single one: 1 = fusing costs nothing.

    Args:
        tally: the set.
        fused: the row with both.
        single: the rows with one each.

    Returns:
        "value", "low", "high": of the set, the better one chosen for the whole set; "pairs": the
        geometric mean of the ratios of single pairs. None where a row is missing.
    """
    if not {fused, *single} <= set(tally.rows):
        return None
    weights = drawn_counts(len(tally))
    both, *alone = (ratios_of_sums(weights, tally.sums(row, "epe")) for row in (fused, *single))
    found = interval(quotient(both, np.min(alone, axis=0)), tally.scenes_with(fused, "epe"))
    both, *alone = (quotient(*tally.sums(row, "epe").T) for row in (fused, *single))
    ratios = quotient(both, np.min(alone, axis=0))
    ratios = ratios[np.isfinite(ratios)]
    pairs = float(np.exp(np.log(ratios).mean())) if len(ratios) else math.nan
    return asdict(found) | {"pairs": pairs}


def compare_seeds(
    tally: Tally, groups: Mapping[str, Sequence[str]], compared: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Compare groups of checkpoints that differ in their seeds, the first one with the others.

    A group's error is the mean over its rows. Intervals are over scenes and seeds: both are drawn
    anew, for all groups alike, as row i of every group has seed i.

    Args:
        tally: the set.
        groups: name -> its rows, as many in each group.
        compared: measures.

    Returns:
        "first / other" -> measure -> ratio with its interval. Of two or three seeds the spread is
        known badly, of a single one not at all.
    """
    scenes = drawn_counts(len(tally))
    first, *others = groups
    drawn = drawn_counts(len(groups[first]), seed=SEED + 1)  # other draws than the scenes'
    found: dict[str, dict[str, dict[str, float]]] = {f"{first} / {other}": {} for other in others}
    for measure in compared:
        means = {}
        for name, rows in groups.items():
            each = [ratios_of_sums(scenes, tally.sums(row, measure)) for row in rows]
            means[name] = (drawn * np.stack(each, axis=1)).sum(axis=1) / drawn.sum(axis=1)
        count = tally.scenes_with(groups[first][0], measure)
        for other in others:
            ratio = interval(quotient(means[first], means[other]), count)
            found[f"{first} / {other}"][measure] = asdict(ratio)
    return found


def displacement_sums(error: np.ndarray, length: np.ndarray) -> Sums:
    """The endpoint error by bins of true displacement.

    Args:
        error: [N] px, of the valid pixels.
        length: [N] px, their true displacement.
    """
    edges = np.asarray(DISPLACEMENTS)
    place = np.searchsorted(edges, length, side="right") - 1
    totals = np.bincount(place, error, len(edges) - 1)
    counts = np.bincount(place, minlength=len(edges) - 1)
    return {
        displacement_measure(i): (float(totals[i]), int(counts[i])) for i in range(len(edges) - 1)
    }


def displacement_measure(index: int) -> str:
    """What the measure of a bin of displacement is called."""
    return f"epe_displacement_{index}"


def sweeps(tally: Tally) -> dict[str, dict]:
    """EPE by true displacement, by exposure and by light.

    Displacement is that of every pixel; exposure and light are those of the scene. As scenes differ
    in more than one thing, zero flow and DIS in the same bins are what a row is to be read against.

    Returns:
        "displacement", "exposure", "light" -> {"unit", "edges" [n + 1], "bins" [n] (their names),
        "scenes" [n] (how many have pixels in the bin), "rows": {row: [n] intervals}}.
    """

    def by_scene(values: Sequence[float], edges: Sequence[float]) -> list[tuple[Tally, str]]:
        # The last bin includes its upper limit: an exposure may last the whole interval.
        place = np.minimum(np.searchsorted(edges, values, side="right"), len(edges) - 1)
        known = np.isfinite(values)
        return [(tally.select(known & (place == i)), "epe") for i in range(1, len(edges))]

    bins = {
        "displacement": [(tally, displacement_measure(i)) for i in range(len(DISPLACEMENTS) - 1)],
        "exposure": by_scene([facts.exposure for facts in tally.facts], EXPOSURES),
        "light": by_scene([facts.light for facts in tally.facts], LIGHTS),
    }
    edges = {"displacement": DISPLACEMENTS, "exposure": EXPOSURES, "light": LIGHTS}
    units = {
        "displacement": "true displacement, px",
        "exposure": "exposure / frame interval",
        "light": "mean level of the frames, linear",
    }
    return {
        name: {
            "unit": units[name],
            "edges": list(edges[name]),
            "bins": [_bin_name(*limits) for limits in itertools.pairwise(edges[name])],
            "scenes": [part.scenes_with(tally.rows[0], measure) for part, measure in parts],
            "rows": {
                row: [asdict(_value_in(part, row, measure)) for part, measure in parts]
                for row in tally.rows
            },
        }
        for name, parts in bins.items()
    }


def _bin_name(low: float, high: float) -> str:
    return f"> {low:.3g}" if math.isinf(high) else f"{low:.2g} to {high:.2g}"


def _value_in(part: Tally, row: str, measure: str) -> Interval:
    if not len(part):
        return Interval(math.nan, math.nan, math.nan)
    values = ratios_of_sums(drawn_counts(len(part)), part.sums(row, measure))
    return interval(values, part.scenes_with(row, measure))
