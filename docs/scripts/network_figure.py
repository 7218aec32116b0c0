"""Draws docs/images/network.svg: the parts of `small`, with the shapes of a run of it.

    python docs/scripts/network_figure.py [--check]

--check writes nothing; it fails where the picture is not that of the code.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import torch
from torch import Tensor

import flowfuse
from flowfuse.inputs import ModelInputs
from flowfuse.model import FlowFuse

PATH = Path(__file__).resolve().parents[1] / "images" / "network.svg"
HEIGHT, WIDTH = 480, 640
COLOURS = {"events": "#d9683c", "frames": "#3c7dd9", "both": "#6b5b95", "edge": "#3a9b6f"}


class Box(NamedTuple):
    """A part of the network on the picture.

    Attributes:
        x, y: middle of the box.
        title: its name.
        text: what it does or gives, one line or several.
        kind: a key of COLOURS.
    """

    x: int
    y: int
    title: str
    text: tuple[str, ...]
    kind: str


def record_shapes(name: str) -> tuple[dict[str, list[list[int]]], FlowFuse]:
    """Run a network on empty tensors and return the shape of what each module gives, by name."""
    model = flowfuse.load(name).model
    shapes: dict[str, list[list[int]]] = {}

    def keep(path: str):
        def hook(module, inputs, output) -> None:
            first = output if isinstance(output, Tensor) else output[0]
            if isinstance(first, Tensor):
                shapes.setdefault(path, []).append(list(first.shape))

        return hook

    for path, module in model.named_modules():
        if path:
            module.register_forward_hook(keep(path))
    config = model.config
    inputs = ModelInputs(
        torch.rand(1, config.slices + 1, config.bins, HEIGHT, WIDTH),
        torch.rand(1, 1, HEIGHT, WIDTH),
        torch.rand(1, 1, HEIGHT, WIDTH),
        torch.rand(1, 1, HEIGHT, WIDTH),
        torch.zeros(1, 2),
        torch.ones(1, 4),
    )
    given: dict[str, list[list[int]]] = {}

    def keep_given(module, inputs) -> None:
        given.setdefault("motion", []).append(list(inputs[0].shape))

    model.motion.register_forward_pre_hook(keep_given)
    with torch.no_grad():
        output = model(inputs)
    shapes["slices"], shapes["frames"] = [list(inputs.slices.shape)], [list(inputs.frame0.shape)]
    shapes["latents"] = [list(output.event_latent.shape), list(output.frame_latent.shape)]
    # All pairs' tokens side by side are what the motion encoder is given.
    batch, channels, height, width = given["motion"][0]
    shapes["tokens"] = [[batch, channels // (config.slices + 2), height, width]]
    for field in ("control_points", "boundary", "uncertainty", "coarse_points"):
        shapes[field] = [list(getattr(output, field).shape)]
    return shapes, model


def size(shape: list[int]) -> str:
    """A shape without the batch, such as "64 x 60 x 80"."""
    return " × ".join(map(str, shape[1:]))


def boxes(shapes: dict[str, list[list[int]]], model: FlowFuse) -> dict[str, Box]:
    """The parts, where they stand, and their shapes."""
    config = model.config
    window = config.levels * (2 * config.radius + 1) ** 2
    stem, frame, tokens = shapes["event_stem"][0], shapes["frames"][0], shapes["tokens"][0]
    event, image = shapes["latents"]
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    return {
        "events": Box(
            110,
            70,
            "events",
            (f"{config.slices + 1} voxel grids E", size(shapes["slices"][0])),
            "events",
        ),
        "frames": Box(110, 220, "frames", ("F₀, F₁", f"2 of {size(frame)}"), "frames"),
        "event_stem": Box(360, 70, "event stem", ("at 1/4", f"each {size(stem)}"), "events"),
        "frame_stem": Box(360, 220, "frame stem", ("at 1/4", f"each {size(stem)}"), "frames"),
        "trunk": Box(
            610, 145, "shared trunk", ("at 1/8", f"E: {size(event)}", f"F: {size(image)}"), "both"
        ),
        "correlations": Box(
            860,
            145,
            "correlations",
            (
                "⟨E₀,Eₖ⟩ ⟨F₀,F₁⟩ ⟨F₀,Eₖ⟩",
                f"{config.slices + 2} pairs, {window} values each",
                f"token of each: {size(tokens[-4:])}",
            ),
            "both",
        ),
        "localizer": Box(
            360,
            370,
            "boundary localizer",
            ("common gradient of both", f"Bₑ, Bₘ: {size(shapes['boundary'][0])}"),
            "edge",
        ),
        "first": Box(
            860, 10, "first estimate", ("matches around rest,", "a regressed trajectory"), "both"
        ),
        "evidence": Box(
            1110, 10, "evidence", ("error of each modality,", "the worse one fades"), "both"
        ),
        "gates": Box(
            860,
            370,
            "gates, propagation",
            ("boundaries guide motion,", f"dilations {', '.join(map(str, config.dilations))}"),
            "edge",
        ),
        "update": Box(
            1110,
            190,
            f"recurrent update, {config.iterations} ×",
            (f"motion {size(shapes['motion'][0])}", f"state {size(shapes['update'][0])}"),
            "both",
        ),
        "refinement": Box(
            1110, 370, "refinement", ("at 1/4: small windows,", "neighbours, B_m again"), "both"
        ),
        "steps": Box(
            1360,
            370,
            "Lucas-Kanade steps",
            (f"{config.gradient_steps} steps on the frames", "at 1/1"),
            "frames",
        ),
        "result": Box(
            1360,
            145,
            "result",
            (
                "Bezier control points",
                size(shapes["control_points"][0]),
                f"uncertainty {size(shapes['uncertainty'][0])}",
                f"{millions:.2f} M parameters in all",
            ),
            "both",
        ),
    }


ARROWS = (
    ("events", "event_stem"),
    ("frames", "frame_stem"),
    ("event_stem", "trunk"),
    ("frame_stem", "trunk"),
    ("trunk", "correlations"),
    ("correlations", "first"),
    ("correlations", "update"),
    ("correlations", "gates"),
    ("first", "evidence"),
    ("evidence", "update"),
    ("frames", "localizer"),
    ("frame_stem", "localizer"),
    ("localizer", "gates"),
    ("gates", "update"),
    ("update", "refinement"),
    ("refinement", "steps"),
    ("steps", "result"),
)
BOX = 214, 30  # width; height of the title and of all beside its lines


def box_height(box: Box) -> int:
    return BOX[1] + 17 * len(box.text)


def draw(parts: dict[str, Box]) -> str:
    """Make the SVG."""
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 -40 1490 470" '
        'font-family="Helvetica, Arial, sans-serif">',
        "<title>flowfuse: the network and the shapes of its tensors</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#777"/></marker></defs>',
        '<rect x="-10" y="-40" width="1490" height="470" fill="#ffffff"/>',
    ]
    for start, end in ARROWS:
        (x0, y0), (x1, y1) = ends(parts[start], parts[end])
        lines.append(
            f'<path d="M{x0},{y0} L{x1},{y1}" stroke="#777" stroke-width="1.4" fill="none" '
            'marker-end="url(#tip)"/>'
        )
    for box in parts.values():
        height = box_height(box)
        left, top, colour = box.x - BOX[0] // 2, box.y - height // 2, COLOURS[box.kind]
        lines.append(
            f'<rect x="{left}" y="{top}" width="{BOX[0]}" height="{height}" rx="6" '
            f'fill="#ffffff" stroke="{colour}" stroke-width="2"/>'
        )
        lines.append(
            f'<text x="{box.x}" y="{top + 20}" text-anchor="middle" font-size="15" '
            f'font-weight="bold" fill="{colour}">{escape(box.title)}</text>'
        )
        for row, text in enumerate(box.text):
            lines.append(
                f'<text x="{box.x}" y="{top + 38 + 17 * row}" text-anchor="middle" '
                f'font-size="13" fill="#333">{escape(text)}</text>'
            )
    return "\n".join([*lines, "</svg>", ""])


def ends(start: Box, end: Box) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where an arrow leaves one box and meets another: at their sides, else at top and bottom."""
    if abs(end.x - start.x) >= BOX[0]:
        side = 1 if end.x > start.x else -1
        return (
            (start.x + side * BOX[0] // 2, start.y),
            (end.x - side * BOX[0] // 2, end.y),
        )
    side = 1 if end.y > start.y else -1
    return (
        (start.x, start.y + side * box_height(start) // 2),
        (end.x, end.y - side * box_height(end) // 2),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    asked = parser.parse_args()
    text = draw(boxes(*record_shapes("small")))
    if asked.check:
        if PATH.read_text(encoding="utf-8") != text:
            print(f"{PATH}: not that of the code; run {Path(__file__).name}", file=sys.stderr)
            return 1
        return 0
    PATH.write_text(text, encoding="utf-8")
    print(PATH)
    return 0


if __name__ == "__main__":
    sys.exit(main())
