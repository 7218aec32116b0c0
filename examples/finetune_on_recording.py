"""Finetunes `small` on a recording without ground truth, and says whether it helped.

    python examples/finetune_on_recording.py RECORDING OUT [options of flowfuse-train]

The last fifth of the frame pairs is only measured. The photometric error compares frame 1, moved
back along the flow, with frame 0: wrong flow can lower it, so look at the pictures, too.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from flowfuse.cli.train import main as train


def main(recording: str, out: str, *options: str) -> tuple[float, float]:
    """Train, and compare the held-out error before and after.

    Returns:
        Photometric error of the shipped and of the finetuned network.
    """
    code = train(["--self-supervised", recording, "-o", out, *options])
    if code:
        sys.exit(code)
    with open(Path(out) / "validation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    before, after = (float(row["photometric"]) for row in (rows[0], rows[-1]))
    verdict = "keep it" if after < before else "keep the shipped one"
    print(f"held-out photometric error: {before:.4f} before, {after:.4f} after: {verdict}")
    print(f"flowfuse-infer {recording} -o out --checkpoint {Path(out) / 'best.safetensors'}")
    return before, after


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
