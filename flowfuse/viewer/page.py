"""The page of the viewer, made from the payloads of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowfuse.io.atomic import atomic_path

PAGE = Path(__file__).parent / "page"


def write_page(
    path: Path, title: str, payloads: Sequence[Path], metrics: Mapping[int, Mapping[str, Any]]
) -> int:
    """Write the page, atomically; one payload at a time is in memory.

    Args:
        path: the file, index.html.
        title: what was estimated.
        payloads: files that each hold what :func:`~flowfuse.viewer.payload.encode_pair` gives, in
            the order of time.
        metrics: index of a pair -> its entry of metrics.json, for those that have one.

    Returns:
        Its size in bytes.

    Raises:
        OSError: it cannot be written.
    """
    parts = {name: (PAGE / name).read_text() for name in ("index.html", "viewer.css", "viewer.js")}
    head, tail = parts["index.html"].split("<!-- data -->")
    head = head.replace("/* style */", parts["viewer.css"])
    tail = tail.replace("/* script */", parts["viewer.js"])
    about = {"title": title, "metrics": {str(index): dict(m) for index, m in metrics.items()}}
    with atomic_path(path) as temporary:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(head)
            file.write(_element("about", _without_nan_text(about)))
            for payload in payloads:
                file.write(_element("pair", payload.read_text(encoding="utf-8")))
            file.write(tail)
        return temporary.stat().st_size


def _element(kind: str, text: str) -> str:
    # "</script>" in a title would end the element.
    safe = text.replace("</", "<\\/")
    return f'<script type="application/json" data-{kind}>{safe}</script>\n'


def _without_nan_text(content: Any) -> str:
    """JSON, in which NaN and infinity are null, as in metrics.json."""
    return json.dumps(json.loads(json.dumps(content), parse_constant=lambda name: None))
