"""The check of external links, against a server of this machine."""

from __future__ import annotations

import importlib.util
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "scripts" / "check_links.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("check_links", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Handler(BaseHTTPRequestHandler):
    """/200 is there, /404 is not, /head-404 is there for GET alone, /403 wants no programs."""

    def do_GET(self) -> None:
        self.send_response(int(self.path[-3:]) if "head" not in self.path else 200)
        self.end_headers()

    def do_HEAD(self) -> None:
        self.send_response(int(self.path[-3:]))
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_links_end_where_the_sentence_goes_on(script):
    text = """See [a](https://a.org/x_(y)), <https://b.org/>, `https://c.org/z`, "https://d.org".
    The space http://www.w3.org/2000/svg and http://localhost:8000 are none; (https://e.org/f)."""
    expected = ["a.org/x_(y)", "b.org/", "c.org/z", "d.org", "e.org/f"]
    assert script.find_links(text) == [f"https://{link}" for link in expected]


def test_each_link_is_listed_with_its_documents(script, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("https://a.org/ https://a.org/\n")
    (tmp_path / "docs" / "page.md").write_text("https://b.org/, https://a.org/\n")
    (tmp_path / "other.md").write_text("https://untracked.org/\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "README.md", "docs"], cwd=tmp_path, check=True)
    page = "docs/page.md"
    assert script.collect(tmp_path) == {
        "https://a.org/": ["README.md", page],
        "https://b.org/": [page],
    }
    assert "https://dsec.ifi.uzh.ch" in script.collect()


def test_what_servers_say(script, server, monkeypatch):
    monkeypatch.setattr(script, "TIMEOUT", 10)
    assert script.ask(f"{server}/200") == (script.GOOD, "200")
    assert script.ask(f"{server}/head-404") == (script.GOOD, "200")
    assert script.ask(f"{server}/404") == (script.DEAD, "404 Not Found")
    assert script.ask(f"{server}/403") == (script.UNKNOWN, "403 Forbidden")
    assert script.ask("http://127.0.0.1:1/") == (script.UNKNOWN, "[Errno 111] Connection refused")


def test_what_is_reported(script):
    good, dead = ("a", ["x.md"], "good", "200"), ("b", ["x.md", "y.md"], "dead", "404 Not Found")
    unknown = ("c", ["y.md"], "unknown", "timed out")
    lines, code = script.report([good, dead, unknown])
    assert code == 1 and lines == [
        "dead: b (404 Not Found), in x.md, y.md",
        "unknown: c (timed out), in y.md",
        "1 good, 1 dead, 1 unknown",
    ]
    assert script.report([good, unknown])[1] == 0 and script.report([unknown])[1] == 2
