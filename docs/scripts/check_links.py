"""Ask for every external link of the documents, and list those that lead nowhere.

    python docs/scripts/check_links.py

It needs the network, so `make links` calls it by hand. Links between pages are checked without it,
by `make docs`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("*.md", "*.cff", "*.ipynb", "*.toml", "mkdocs.yml", "docs/*.py")
GOOD, DEAD, UNKNOWN = "good", "dead", "unknown"
GONE = (404, 410)  # others, such as 403 and 429, are of servers that want no programs
TIMEOUT = 20  # seconds
# Names of XML namespaces, which nobody opens, and places of one machine.
_PASSED_OVER = re.compile(r"https?://(www\.w3\.org/(2000|1998|1999)/|localhost|127\.)")
_LINK = re.compile(r"https?://[^\s<>\"'`\\{}|^\[\]]+")


def find_links(text: str) -> list[str]:
    """The links of a text, without what belongs to the sentence around them."""
    found = []
    for link in _LINK.findall(text):
        while link[-1] in ".,;:!?*" or (link[-1] == ")" and link.count(")") > link.count("(")):
            link = link[:-1]
        if not _PASSED_OVER.match(link):
            found.append(link)
    return found


def collect(root: Path = ROOT) -> dict[str, list[str]]:
    """Link -> the documents that have it, of what git keeps."""
    listed = subprocess.run(
        ["git", "ls-files", *DOCUMENTS], cwd=root, check=True, capture_output=True, text=True
    )
    found: dict[str, list[str]] = {}
    for name in listed.stdout.splitlines():
        for link in dict.fromkeys(find_links((root / name).read_text(encoding="utf-8"))):
            found.setdefault(link, []).append(name)
    return found


def ask(link: str) -> tuple[str, str]:
    """Ask a server for a link.

    Returns:
        GOOD, DEAD or UNKNOWN, and what was said.
    """
    said = ""
    for method in ("HEAD", "GET"):  # some servers answer the first wrongly
        request = Request(link, method=method, headers={"User-Agent": "Mozilla/5.0 (links)"})
        try:
            with urlopen(request, timeout=TIMEOUT) as answer:
                return GOOD, str(answer.status)
        except HTTPError as error:
            said, gone = f"{error.code} {error.reason}", error.code in GONE
        except (URLError, HTTPException, OSError) as error:
            return UNKNOWN, str(getattr(error, "reason", error))
    return (DEAD if gone else UNKNOWN), said


def report(answers: Iterable[tuple[str, list[str], str, str]]) -> tuple[list[str], int]:
    """Lines to print, and the exit code: 1 where a link is dead, 2 where nothing could be asked.

    Args:
        answers: link, documents, and what :func:`ask` returned.
    """
    answers = list(answers)
    count = {state: sum(a[2] == state for a in answers) for state in (GOOD, DEAD, UNKNOWN)}
    lines = [
        f"{state}: {link} ({said}), in {', '.join(names)}"
        for link, names, state, said in answers
        if state != GOOD
    ]
    lines.append(", ".join(f"{number} {state}" for state, number in count.items()))
    return lines, 1 if count[DEAD] else 2 if answers and not count[GOOD] else 0


def main() -> int:
    """Check all; returns the exit code."""
    links = sorted(collect().items(), key=lambda item: urlsplit(item[0]))
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(ask, [link for link, _ in links]))
    lines, code = report(
        (link, names, *answer) for (link, names), answer in zip(links, said, strict=True)
    )
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
