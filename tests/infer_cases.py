"""What the tests of flowfuse-infer share beside their fixtures (cli/conftest.py)."""

from __future__ import annotations

from pathlib import Path

from flowfuse.model import ModelConfig

HEIGHT, WIDTH, FRAMES = 20, 28, 4
STEP = 40_000  # us between frames
FIRST = 5_000  # time of the first frame
SHIFT = (2.0, 1.0)  # ground truth, px per pair
CONFIG = ModelConfig(
    name="tiny", slices=2, stem_channels=8, channels=8, hidden=8, token_channels=8,
    boundary_channels=8, iterations=1, radius=1, levels=1, dilations=(1, 2),
)  # fmt: skip
QUIET = ("--max-pictures", "0", "--no-video")


def files(root: Path, pattern: str = "*") -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob(pattern) if p.is_file())
