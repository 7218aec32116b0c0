"""Download from a server on this machine: ranges, broken connections, wrong sizes, damage."""

from __future__ import annotations

import importlib.util
import io
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).resolve().parents[2] / "data_tools" / "download_dsec.py"
    spec = importlib.util.spec_from_file_location("download_dsec", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def no_waiting(tool, monkeypatch):
    monkeypatch.setattr(tool.time, "sleep", lambda seconds: None)


def pack(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return buffer.getvalue()


class Server:
    """Serves ``files`` and records requests; ``cut`` bytes end an answer, ``failures`` refuse."""

    def __init__(self):
        self.files, self.requests = {}, []
        self.cut, self.failures, self.ranges, self.stated = None, [], True, {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                outer.answer(self, body=False)

            def do_GET(self):
                outer.answer(self, body=True)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, handler, body):
        content = self.files.get(handler.path)
        wanted = handler.headers.get("Range")
        if body:
            self.requests.append((handler.path, wanted))
            if self.failures:
                handler.send_error(self.failures.pop(0))
                return
        if content is None:
            handler.send_error(404)
            return
        start = 0
        if wanted and self.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        handler.send_response(206 if start else 200)
        size = self.stated.get(handler.path, len(content)) if not body else len(content) - start
        handler.send_header("Content-Length", str(size))
        handler.end_headers()
        if body:
            part = content[start:]
            handler.wfile.write(part if self.cut is None else part[: self.cut])


@pytest.fixture
def server():
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


CALIBRATION = "/train/thun_00_a/thun_00_a_calibration.zip"


def run(tool, server, root, *argv):
    parts = () if "--parts" in argv else ("--parts", "calibration")
    return tool.main(
        [str(root), "--address", server.address, "--sequences", "thun_00_a", *parts, *argv]
    )


def test_everything_of_a_sequence_lands_in_its_place(tool, server, tmp_path, capsys):
    prefix = "/train/thun_00_a/thun_00_a_"
    server.files = {
        f"{prefix}events_left.zip": pack(events_dot_h5=b"events", rectify_map_dot_h5=b"map"),
        f"{prefix}images_rectified_left.zip": pack(a__b__000000_dot_png=b"image"),
        f"{prefix}image_timestamps.txt": b"1\n2\n",
        f"{prefix}image_exposure_timestamps_left.txt": b"1 2\n",
        f"{prefix}optical_flow_forward_event.zip": pack(**{"000002_dot_png": b"flow"}),
        f"{prefix}optical_flow_forward_timestamps.txt": b"1, 2\n",
        f"{prefix}calibration.zip": pack(cam_to_cam_dot_yaml=b"yaml"),
    }
    every = ("--parts", *tool.PARTS)
    assert run(tool, server, tmp_path, "--list", *every) == 0
    out = capsys.readouterr().out
    assert "thun_00_a_events_left.zip" in out and out.count("MB") == 8
    assert not list(tmp_path.iterdir()) and not server.requests
    assert run(tool, server, tmp_path, *every) == 0
    root = tmp_path / "thun_00_a"
    contents = {
        "events/left/events.h5": b"events",
        "events/left/rectify_map.h5": b"map",
        "images/left/rectified/000000.png": b"image",
        "images/timestamps.txt": b"1\n2\n",
        "images/left/exposure_timestamps.txt": b"1 2\n",
        "flow/forward/000002.png": b"flow",
        "flow/forward_timestamps.txt": b"1, 2\n",
        "calibration/cam_to_cam.yaml": b"yaml",
    }
    for name, content in contents.items():
        assert (root / name).read_bytes() == content
    assert not list((tmp_path / ".downloads").iterdir())
    asked = len(server.requests)
    assert run(tool, server, tmp_path, *every) == 0  # nothing is downloaded twice
    assert len(server.requests) == asked == 7
    assert "there already" in capsys.readouterr().out


def test_a_broken_connection_is_taken_up_where_it_broke(tool, server, tmp_path, capsys):
    content = pack(cam_to_cam_dot_yaml=bytes(range(256)) * 40)
    server.files = {CALIBRATION: content}
    server.cut = 4000
    assert run(tool, server, tmp_path) == 0
    ranges = [wanted for _, wanted in server.requests]
    assert ranges[:3] == [None, "bytes=4000-", "bytes=8000-"]
    found = tmp_path / "thun_00_a" / "calibration" / "cam_to_cam.yaml"
    assert found.read_bytes() == bytes(range(256)) * 40
    assert "4000 of" in capsys.readouterr().err or len(ranges) == 3


def test_an_interrupted_run_is_taken_up(tool, server, tmp_path):
    content = pack(cam_to_cam_dot_yaml=b"x" * 1000)
    server.files = {CALIBRATION: content}
    (tmp_path / ".downloads").mkdir()
    partial = tmp_path / ".downloads" / "thun_00_a_calibration.zip.part"
    partial.write_bytes(content[:300])
    assert run(tool, server, tmp_path, "--keep-archives") == 0
    assert server.requests == [(CALIBRATION, "bytes=300-")]
    archive = tmp_path / ".downloads" / "thun_00_a_calibration.zip"
    assert archive.read_bytes() == content


def test_a_server_without_ranges_starts_over(tool, server, tmp_path):
    content = pack(cam_to_cam_dot_yaml=b"x" * 1000)
    server.files, server.ranges = {CALIBRATION: content}, False
    (tmp_path / ".downloads").mkdir()
    partial = tmp_path / ".downloads" / "thun_00_a_calibration.zip.part"
    partial.write_bytes(b"y" * 300)
    assert run(tool, server, tmp_path) == 0
    assert (tmp_path / "thun_00_a/calibration/cam_to_cam.yaml").read_bytes() == b"x" * 1000


def test_passing_failures_are_retried_and_lasting_ones_are_not(tool, server, tmp_path, capsys):
    server.files = {CALIBRATION: pack(cam_to_cam_dot_yaml=b"x")}
    server.failures = [503, 429]
    assert run(tool, server, tmp_path / "a") == 0
    assert len(server.requests) == 3 and "503" in capsys.readouterr().err
    server.failures = [503] * 20
    assert run(tool, server, tmp_path / "b") == 1
    assert "the server answers 503" in capsys.readouterr().err.splitlines()[-1]
    server.files, server.failures = {}, []
    server.requests.clear()
    assert run(tool, server, tmp_path / "c") == 1
    assert "the server answers 404" in capsys.readouterr().err and not server.requests


def test_wrong_sizes_and_damage(tool, server, tmp_path, capsys):
    content = pack(cam_to_cam_dot_yaml=b"x" * 1000)
    server.files, server.stated = {CALIBRATION: content}, {CALIBRATION: len(content) - 10}
    assert run(tool, server, tmp_path) == 1
    error = capsys.readouterr().err
    assert f"{len(content)} bytes, but the server states {len(content) - 10}" in error
    assert not list((tmp_path / ".downloads").iterdir())
    server.stated = {}
    server.files = {CALIBRATION: b"no archive at all" * 9}
    assert run(tool, server, tmp_path) == 1
    assert "damaged" in capsys.readouterr().err
    assert not list((tmp_path / ".downloads").iterdir())
    assert not (tmp_path / "thun_00_a/calibration/.thun_00_a_calibration.zip.unpacked").exists()
    # Deflated data that begins with a kind of block that there is none of.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"x" * 1000)
    damaged = bytearray(buffer.getvalue())
    damaged[30 + len("a")] = 0xFF
    server.files = {CALIBRATION: bytes(damaged)}
    assert run(tool, server, tmp_path) == 1
    assert "damaged (Error -3" in capsys.readouterr().err
    server.files = {CALIBRATION: content}
    assert run(tool, server, tmp_path) == 0


def test_nothing_of_a_half_unpacked_archive_is_in_its_place(
    tool, server, tmp_path, capsys, monkeypatch
):
    server.files = {CALIBRATION: pack(cam_to_cam_dot_yaml=b"x" * 1000, other=b"y")}

    def copy(source, target, block):
        target.write(b"xxx")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tool.shutil, "copyfileobj", copy)
        assert run(tool, server, tmp_path) == 130
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "download_dsec: interrupted; the same command goes on from here"
    assert not (tmp_path / "thun_00_a").exists()
    downloads = tmp_path / ".downloads"
    assert [path.name for path in downloads.iterdir()] == ["thun_00_a_calibration.zip"]
    (downloads / "thun_00_a_calibration.zip.unpacking").mkdir()  # as a kill leaves it
    assert run(tool, server, tmp_path) == 0
    assert (tmp_path / "thun_00_a/calibration/cam_to_cam.yaml").read_bytes() == b"x" * 1000
    assert not list(downloads.iterdir())


def test_schedules_of_the_test_sequences_are_asked_for(tool, server, tmp_path, capsys):
    prefix = "/test/thun_01_a/thun_01_a_"
    server.files = {f"{prefix}calibration.zip": pack(cam_to_cam_dot_yaml=b"yaml")}
    argv = [str(tmp_path), "--address", server.address, "--split", "test", "--parts", "calibration"]
    argv += ["--sequences", "thun_01_a"]
    folder = tmp_path / "test_forward_optical_flow_timestamps"
    for action in (["--list"], []):
        assert tool.main([*argv, *action]) == 0
        said = capsys.readouterr().err
        assert said.startswith("download_dsec: warning: a submission needs the schedules")
        assert "(thun_01_a.csv is missing)" in said and said.count("\n") == 1
        assert "https://dsec.ifi.uzh.ch" in said and f"SEQ.csv into {folder}" in said
    assert (tmp_path / "thun_01_a/calibration/cam_to_cam.yaml").exists()
    rows = [f"{1000 * i},{1000 * i + 900},{10 * i}\n" for i in range(18)]
    folder.mkdir()
    for lines, fault in (
        (rows[:17], "thun_01_a.csv has 17 predictions, 18 expected"),
        ([*rows[:3], "x\n"], "thun_01_a.csv, line 4: from_timestamp_us"),
    ):
        (folder / "thun_01_a.csv").write_text("".join(lines))
        assert tool.main(argv) == 0
        assert fault in capsys.readouterr().err
    (folder / "thun_01_a.csv").write_text("".join(rows))
    assert tool.main(argv) == 0
    said = capsys.readouterr()
    assert "the schedules of these test sequences are there" in said.out and said.err == ""


def test_archives_stay_in_their_place(tool, server, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../../evil.txt", b"x")
    server.files = {CALIBRATION: buffer.getvalue()}
    assert run(tool, server, tmp_path / "a") == 0
    assert not list(tmp_path.glob("evil.txt"))
    assert (tmp_path / "a/thun_00_a/calibration/evil.txt").exists()


def test_faults_of_the_command(tool, server, tmp_path, capsys, monkeypatch):
    assert tool.main([str(tmp_path), "--sequences", "interlaken_00_c"]) == 1
    assert "interlaken_00_c: not in the train split, which has thun_00_a" in capsys.readouterr().err
    assert len(tool.FLOW_SEQUENCES) == 18 and len(tool.TEST_SEQUENCES) == 7
    server.files = {CALIBRATION: b"x" * 100}
    usage = tool.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(tool.shutil, "disk_usage", lambda path: usage._replace(free=10))
    assert run(tool, server, tmp_path) == 1
    assert "GB to download, but" in capsys.readouterr().err
    test = tool.build_parser().parse_args([str(tmp_path), "--split", "test"])
    assert not [item for item in tool.plan(test) if "flow" in item.name]
