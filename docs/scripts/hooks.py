"""What mkdocs does here beside its plugins.

Equations become MathML when the site is built, which browsers draw without a script.
Links of a page that lead out of docs/ lead to a copy of the file in the site, under repository/;
Markdown files are pages there. So a link is right on disk, and --strict checks it.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
COPIES = "repository"
SHOWN = (  # of the repository, beside docs/
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "benchmarks/results/*.md",
    "examples/**/*",
    "flowfuse/recipes/*.yaml",
    "flowfuse/weights/*.md",
    "tests/emulator/README.md",
)
_LINK = re.compile(r"(!?\[[^\]]*\]\()(?!\w+:|#)([^)\s#]+)")
_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository that pages link to."""
    for pattern in SHOWN:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and "__pycache__" not in name:
                uri = f"{COPIES}/{name}"
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links that lead out of docs/ to the copies in the site."""
    uri = page.file.src_uri
    copied = uri.startswith(f"{COPIES}/")
    # Where the page lies in the repository.
    folder = posixpath.dirname(uri.removeprefix(f"{COPIES}/") if copied else f"docs/{uri}")

    def turned(found: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, found[2]))
        inside = target.startswith("docs/")
        there = target.removeprefix("docs/") if inside else f"{COPIES}/{target}"
        return found[1] + posixpath.relpath(there, posixpath.dirname(uri) or ".")

    return _outside_code(markdown, lambda text: _LINK.sub(turned, text))


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make MathML of equations."""

    def drawn(found: re.Match) -> str:
        display = "block" if found[2] == "[" else "inline"
        return convert(html.unescape(found[3]).strip(), display=display)

    return _EQUATION.sub(drawn, content)


def _outside_code(markdown: str, change) -> str:
    """The same text, changed where it is neither a block of code nor code in a line."""
    parts = re.split(r"(^```.*?^```$|`[^`\n]+`)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if index % 2 else change(part) for index, part in enumerate(parts))
