"""What a run of ``flowfuse-infer`` has to say: errors against the ground truth, times, gaps."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowfuse import __version__
from flowfuse.cli.infer_figures import LEAST_MAGNITUDE
from flowfuse.cli.infer_options import InferenceConfig
from flowfuse.cli.infer_outputs import OutputDirectory
from flowfuse.data.recording import Recording
from flowfuse.estimator import Estimator
from flowfuse.evaluation.boundaries import DISTANCES
from flowfuse.evaluation.evaluate import ALL, Estimate, Evaluation, GroundTruth, PairSums
from flowfuse.evaluation.metrics import means, photometric_error, uncertainty_metrics
from flowfuse.evaluation.report import without_nan
from flowfuse.io.atomic import atomic_path
from flowfuse.io.images import as_gray
from flowfuse.runner import FEW_EVENTS, GAP_RATIO, Interval

ROWS = ("flow", "zero_flow")
PATH = ("tepe", "tepe_line_own_end", "tepe_line_true_end", "deviation_error")


class RunMetrics:
    """Collects, pair by pair, what metrics.json says.

    Beside every measure stands the one of zero flow: what estimating nothing would have given.

    Args:
        outlier_fraction: 1PE, 2PE and 3PE also ask for an error of this fraction of the true
            magnitude.

    Attributes:
        latest: the last pair's numbers, for a progress bar.
    """

    def __init__(self, outlier_fraction: float = 0.0) -> None:
        self.latest = ""
        self._outlier_fraction = outlier_fraction
        self._pairs: list[dict[str, Any]] = []
        self._sums: list[dict[float, PairSums]] = []
        # 1.0 is the flow from frame to frame; other tau are continuous flow
        self._evaluations: dict[float, Evaluation] = {}
        # Printed alone: the uncertainty is not written, and metrics.json tells of what is.
        self._ause: list[float] = []

    def add(
        self,
        recording: Recording,
        interval: Interval,
        flow: np.ndarray,
        flow_at: dict[float, np.ndarray],
        frames: tuple[np.ndarray | None, np.ndarray | None],
        *,
        uncertainty: np.ndarray | None = None,
    ) -> None:
        """Evaluate the flow of one pair, or of an interval with ground truth.

        Args:
            recording: asked for its ground truth.
            interval: of the pair.
            flow: [2, H, W] px, to its second frame.
            flow_at: tau -> [2, H, W] px.
            frames: both frames, uint8; a gray and a colour one are compared in gray. (None, None):
                there are none, and the photometric error is unknown.
            uncertainty: [H, W] px, of a pair that was estimated by this call.
        """
        frame0, frame1 = frames
        still = np.zeros_like(flow)
        errors = math.nan, math.nan
        if frame0 is not None and frame1 is not None:
            if frame0.ndim != frame1.ndim:
                frame0, frame1 = as_gray(frame0), as_gray(frame1)
            errors = (
                photometric_error(frame0, frame1, flow),
                photometric_error(frame0, frame1, still),
            )
        pair: dict[str, Any] = {
            "index": interval.index,
            "t0_us": interval.t0,
            "t1_us": interval.t1,
            "photometric_error": errors[0],
            "photometric_error_zero_flow": errors[1],
        }
        flows = {**flow_at, 1.0: flow}
        asked = {tau: recording.ground_truth_at(interval.index, tau) for tau in flows}
        measured: dict[float, PairSums] = {}
        known = {tau: answer for tau, answer in asked.items() if answer is not None}
        for tau in known:
            # With the flow to the second frame goes the path to it, as far as it is known.
            times = [tau] if tau < 1 else [*(other for other in known if other < 1), tau]
            path = np.stack([flows[time] for time in times])
            ground_truth = GroundTruth(
                np.stack([known[time][0] for time in times]),
                np.stack([known[time][1] for time in times]),
                tau=times,
            )
            evaluation = self._evaluations.setdefault(
                tau, Evaluation(outlier_fraction=self._outlier_fraction)
            )
            estimates = {"flow": Estimate(path), "zero_flow": Estimate(np.zeros_like(path))}
            found = evaluation.add(estimates, ground_truth)[ALL]
            measured[tau] = evaluation.latest
            if tau < 1:
                pair.setdefault("flow_at", {})[str(tau)] = found
                continue
            pair |= found
            true_flow, valid = known[tau]
            if uncertainty is not None and np.any(valid):
                ranked = uncertainty_metrics(flow, true_flow, uncertainty, valid)
                self._ause.append(ranked["ause"])
            if "tepe" in found["flow"]:
                pair["trajectory"] = {name: found["flow"][name] for name in PATH}
            told = f"EPE {found['flow']['epe']:.2f}, zero flow {found['zero_flow']['epe']:.2f} px"
            self.latest = told if math.isfinite(found["flow"]["epe"]) else ""
        self._pairs.append(pair)
        self._sums.append(measured)

    def extend(self, other: RunMetrics) -> None:
        """Add all that another has measured, pair by pair, as if it had been measured here."""
        self._ause += other._ause
        for pair, measured in zip(other._pairs, other._sums, strict=True):
            self._pairs.append(pair)
            self._sums.append(measured)
            for tau, sums in measured.items():
                self._evaluations.setdefault(tau, Evaluation()).add_sums(sums)

    @classmethod
    def merged(cls, parts: Sequence[RunMetrics]) -> RunMetrics:
        """Those of one recording that several processes measured, in the order of its pairs.

        Sums are taken pair by pair, so that the bits are those of one process.
        """
        both = [both for part in parts for both in zip(part._pairs, part._sums, strict=True)]
        fraction = parts[0]._outlier_fraction
        unsorted, result = cls(fraction), cls(fraction)
        both.sort(key=lambda entry: entry[0]["index"])
        unsorted._pairs, unsorted._sums = [pair for pair, _ in both], [sums for _, sums in both]
        unsorted._ause = [value for part in parts for value in part._ause]
        result.extend(unsorted)
        return result

    @property
    def pairs(self) -> dict[int, dict[str, Any]]:
        """The entries of metrics.json, by the index of their flow file."""
        return {pair["index"]: pair for pair in self._pairs}

    def averages(self) -> dict[str, Any]:
        """Average flow metrics per pixel and per frame, paths per pixel, the others per pair."""
        result: dict[str, Any] = {
            name: _mean([pair[name] for pair in self._pairs])
            for name in ("photometric_error", "photometric_error_zero_flow")
        }
        for tau, evaluation in self._evaluations.items():
            entry = {row: evaluation.summary(row) for row in ROWS}
            if tau < 1:
                result.setdefault("flow_at", {})[str(tau)] = entry
                continue
            result |= entry
            sums = evaluation.sums("flow")
            if "tepe" in sums:
                result["trajectory"] = means({name: sums[name] for name in PATH})
        return result

    def write(self, path: Path, checkpoint: str) -> bool:
        """Write metrics.json, atomically.

        Args:
            path: the file.
            checkpoint: what was evaluated.

        Returns:
            Whether there was any frame pair to say something about.
        """
        if not self._pairs:
            return False
        content = {
            "flowfuse": __version__,
            "checkpoint": checkpoint,
            "outlier_fraction": self._outlier_fraction,
            "average": self.averages(),
            "pairs": self._pairs,
        }
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(without_nan(content), indent=1, allow_nan=False) + "\n")
        return True

    def lines(self) -> list[str]:
        """Say the averages in a few lines."""
        if not self._pairs:
            return []
        average = self.averages()
        lines = []
        for name, entry in {
            **{f"EPE at tau = {tau}": e for tau, e in average.get("flow_at", {}).items()},
            **({"EPE": average} if "flow" in average else {}),
        }.items():
            found, zero = (entry[key]["per_pixel"] for key in ("flow", "zero_flow"))
            pairs = counted(entry["flow"]["frames"], "pair")
            if not entry["flow"]["valid_pixels"]:
                lines.append(f"{name}: unknown, the ground truth of {pairs} has no valid pixel")
                continue
            lines.append(
                f"{name}: {found['epe']:.3f} px, zero flow {zero['epe']:.3f} px "
                f"({found['3pe']:.1f} % off by more than 3 px; {pairs}, "
                "averaged per pixel)"
            )
        if "flow" in average and average["flow"]["valid_pixels"]:
            for name in ("per pixel", "per frame"):
                found = average["flow"][name.replace(" ", "_")]
                lines.append(
                    f"  {name}: EPE {found['epe']:.3f} px, 1PE {found['1pe']:.2f} %, "
                    f"2PE {found['2pe']:.2f} %, 3PE {found['3pe']:.2f} %, AE {found['ae']:.3f} deg"
                )
            if self._outlier_fraction:
                lines.append(
                    f"  1PE, 2PE and 3PE count errors of {100 * self._outlier_fraction:g} % of the "
                    "true magnitude and more"
                )
            lines.append(boundary_line(average["flow"]["per_pixel"]))
            if self._ause:
                pairs = counted(len(self._ause), "pair")
                lines.append(
                    f"  AUSE: {_mean(self._ause):.3f} (0: the uncertainty ranks the pixels as "
                    f"their errors do; of {pairs} estimated by this call)"
                )
        if "trajectory" in average:
            path = average["trajectory"]
            lines.append(
                f"TEPE (EPE between the frames): {path['tepe']:.3f} px, straight line to the true "
                f"end {path['tepe_line_true_end']:.3f} px"
            )
        if math.isnan(average["photometric_error"]):
            return lines
        lines.append(
            f"photometric error after warping: {average['photometric_error']:.4f}, "
            f"zero flow {average['photometric_error_zero_flow']:.4f} (of full range)"
        )
        return lines


def boundary_line(found: dict[str, float]) -> str:
    """The errors by the distance to motion discontinuities, and of what is hidden, if known."""
    near = {limit: found[f"epe_within_{limit}"] for limit in DISTANCES}
    if all(map(math.isnan, near.values())):
        line = "  no motion discontinuity in the ground truth"
    else:
        parts = [f"{error:.3f} px within {limit} px" for limit, error in near.items()]
        text = f"{', '.join(parts)}, {found[f'epe_beyond_{DISTANCES[-1]}']:.3f} px elsewhere"
        line = f"  EPE at motion discontinuities: {text}"
    if "epe_occluded" in found:
        line += f"; occluded {found['epe_occluded']:.3f}, visible {found['epe_visible']:.3f} px"
    return line


def counted(count: int, unit: str) -> str:
    """A number and its unit: "1 pair", "2 pairs"."""
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


def _mean(values: list[float]) -> float:
    """The mean of those that are defined; NaN without any."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


@dataclass
class RunReport:
    """What happened to the intervals of a run."""

    total: int = 0
    gaps: int = 0
    done: int = 0
    new: int = 0
    from_frames: int = 0
    skipped: int = 0
    unit: str = "pair"
    magnitude: float = LEAST_MAGNITUDE
    seconds: list[float] = field(default_factory=list)
    metrics: RunMetrics = field(default_factory=RunMetrics)
    event_counts: dict[int, int] = field(default_factory=dict)

    @classmethod
    def merged(cls, parts: Sequence[RunReport]) -> RunReport:
        """What several processes report of one recording, together; ``total`` and ``gaps`` open."""
        counts = {
            name: sum(getattr(part, name) for part in parts)
            for name in ("done", "new", "from_frames", "skipped")
        }
        return cls(
            **counts,
            unit=parts[0].unit,
            magnitude=max(part.magnitude for part in parts),
            seconds=[second for part in parts for second in part.seconds],
            metrics=RunMetrics.merged([part.metrics for part in parts]),
            event_counts={k: count for part in parts for k, count in part.event_counts.items()},
        )

    def describe_few_events(self) -> str | None:
        """Say which intervals had a handful of events; None: there is none."""
        few = {i: count for i, count in self.event_counts.items() if 0 < count < FEW_EVENTS}
        if not few:
            return None
        fewest = min(few, key=lambda index: few[index])
        return (
            f"{len(few)} of {counted(self.total, self.unit)} with fewer than {FEW_EVENTS} events "
            f"(the fewest: {self.unit} {fewest}, {few[fewest]}): events tell next to nothing of "
            "the motion there"
        )

    def summary(
        self,
        config: InferenceConfig,
        estimator: Estimator,
        recording: Recording,
        outputs: OutputDirectory,
    ) -> str:
        """Say it in a few lines."""
        unit = self.unit
        found = f"{counted(self.total, unit)} of {recording.width} x {recording.height} px"
        lines = [f"{found}: {self.new} estimated, {self.done} were there already"]
        from_frames = "without any event: flow from the frames alone"
        if "events" not in config.modalities:
            from_frames = "from the frames alone, as --frames-only asks"
        for count, text in (
            (self.skipped, "without any event: no flow, no file"),
            (self.from_frames, from_frames),
            (self.gaps, f"longer than {GAP_RATIO} x the median interval (frames missing)"),
        ):
            if count:
                lines.append(f"  {counted(count, unit)} {text}")
        lines += self.metrics.lines()
        if self.seconds:
            # The first call pays for allocations and thread start-up.
            seconds = self.seconds[1:] or self.seconds
            iterations = config.iterations or estimator.model.config.iterations
            lines.append(
                f"time per {unit}: {statistics.median(seconds):.3f} s (median of {len(seconds)}, "
                f"network and event slices; {estimator.device}, {torch.get_num_threads()} threads, "
                f"{iterations} iterations)"
            )
        return "\n".join(lines + outputs.lines())
