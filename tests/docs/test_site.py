"""The site: it is built without a broken link, needs no network, and its pictures and tables are
those of the code and of the results.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "docs" / "scripts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_nothing_is_loaded_from_the_network(site):
    loaded = r"<(?:script|img|link|source)\b[^>]*\b(?:src|href)=\"?(https?:)?//[^\s>]+"
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        found = [
            match[0] for match in re.finditer(loaded, text) if 'rel="canonical"' not in match[0]
        ]
        assert not found, f"{page}: {found}"
    assert (site / "assets" / "iframe-worker.js").is_file()  # the search, from the disk


def test_equations_are_drawn(site):
    text = (site / "method" / "fusion.html").read_text(encoding="utf-8")
    assert text.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') == 4
    for page in site.rglob("*.html"):
        assert "arithmatex" not in page.read_text(encoding="utf-8"), page


def test_files_of_the_repository_are_pages(site):
    speed = (site / "results" / "speed.html").read_text(encoding="utf-8")
    target = "repository/benchmarks/results/2026-11-22-model-cpu.html"
    assert f'href="../{target}"' in speed and (site / target).is_file()
    assert (site / "repository" / "examples" / "quickstart.ipynb").is_file()


def test_every_page_of_docs_is_in_the_navigation(site):
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f" {page.relative_to(ROOT / 'docs')}\n" in text, page


@pytest.mark.usefixtures("one_thread")
def test_the_figure_of_the_network_is_that_of_the_code(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["network_figure.py", "--check"])
    assert load("network_figure").main() == 0


def test_tables_have_the_numbers_of_the_results(monkeypatch, capsys):
    tables = load("tables")
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 0, capsys.readouterr().err
    real = tables.real()
    assert real[0][:3] == ["real events", "small", "small, frames only"] and len(real) == 6
    text = "a\n<!-- table: real -->\nold\n<!-- end -->\nb\n"
    filled = tables.filled(text)
    assert "old" not in filled and filled.startswith("a\n<!--") and filled.endswith("-->\nb\n")
    with pytest.raises(ValueError, match="no table has a column 'absent'"):
        tables.find([real], "absent")


@pytest.mark.usefixtures("one_thread")
def test_the_animation_is_drawn_from_the_sample(tmp_path, monkeypatch):
    import cv2

    animation = load("animation")
    monkeypatch.setattr(animation, "STEPS", 2)
    images = animation.pictures()
    assert len(images) == 6 and len({image.shape for image in images}) == 1
    animation.write(tmp_path / "a.webp", images)
    shipped = ROOT / "docs" / "images" / "flowfuse.webp"
    assert shipped.stat().st_size < 2 * 2**20
    for path, count in ((tmp_path / "a.webp", 6), (shipped, 3 * 14)):
        read, found = cv2.imreadanimation(str(path))
        assert read and len(found.frames) == count
        assert found.frames[0].shape[:2] == images[0].shape[:2]
