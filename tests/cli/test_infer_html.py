"""The page of --html, in a browser without a screen."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest
from infer_cases import HEIGHT, WIDTH, files

import flowfuse
from flowfuse.cli.infer_options import MAX_VIEWED
from flowfuse.io.flow import read_flow

PAIR, X, Y = 1, 9, 12  # where numbers are compared


@pytest.fixture
def out(run, recording, tmp_path):
    arguments = ("--html", "--write", "control-points", "--max-pictures", "0", "--no-video")
    assert run(recording, *arguments) == 0
    return tmp_path / "out"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, service = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or service is None:
        pytest.skip("no browser: chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
        "--disable-quic", "--disable-background-networking", "--disable-component-update",
        "--window-size=900,700", f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    yield driver
    driver.quit()


class Page:
    """The page in the browser."""

    def __init__(self, driver, path) -> None:
        self.driver = driver
        driver.get(path.as_uri())
        self.wait("return document.body.dataset.drawn")

    def run(self, script: str):
        return self.driver.execute_script(script)

    def errors(self) -> list[str]:
        """What went wrong; the browser also gives advice about speed."""
        found = self.driver.get_log("browser")
        return [entry["message"] for entry in found if entry["level"] == "SEVERE"]

    def wait(self, script: str):
        deadline = time.monotonic() + 20
        while not (found := self.run(script)):
            assert time.monotonic() < deadline, (script, self.errors())
            time.sleep(0.02)
        return found

    def do(self, script: str) -> None:
        """Run what makes the page draw anew, and wait until it has."""
        before = self.run("return document.body.dataset.drawn")
        self.run(script)
        self.wait(f"return document.body.dataset.drawn > {before}")

    def go(self, position: float) -> None:
        self.do(
            f"const t = document.getElementById('time'); t.value = {position};"
            "t.dispatchEvent(new Event('input'))"
        )

    def pixels(self) -> list[int]:
        return self.run(
            "const c = document.getElementById('image');"
            "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
        )

    def hover(self, x: int, y: int) -> None:
        self.run(
            "const o = document.getElementById('overlay'), b = o.getBoundingClientRect();"
            "o.dispatchEvent(new PointerEvent('pointermove', {"
            f"clientX: b.left + ({x} + 0.5) * b.width / {WIDTH},"
            f"clientY: b.top + ({y} + 0.5) * b.height / {HEIGHT}}}))"
        )

    def table(self, name: str) -> dict[str, str]:
        rows = self.run(
            f"return [...document.querySelectorAll('#{name} tr')]"
            ".map((r) => [...r.children].map((c) => c.textContent))"
        )
        return {row[0]: row[1].strip() for row in rows}


def test_the_page_shows_what_the_files_hold(driver, out):
    page = Page(driver, out / "index.html")
    assert page.errors() == []
    assert "tau 0.50" in page.run("return document.getElementById('when').textContent")
    assert page.run("return document.querySelectorAll('input:disabled').length") == 0
    assert page.run("return performance.getEntriesByType('resource').map((e) => e.name)"
                    ".filter((name) => !name.startsWith('data:'))") == []  # fmt: skip
    assert page.run("return document.getElementById('problem').hidden")
    page.go(PAIR + 0.3)
    page.hover(X, Y)
    shown = page.table("numbers")
    result = flowfuse.load_result(out / "control_points" / f"{PAIR:06d}.npz")
    flow = read_flow(out / "flow" / f"{PAIR:06d}.flo")[0][:, Y, X]
    assert shown["x, y"] == f"{X}, {Y}"
    assert shown["flow to t1"] == f"{flow[0]:.2f}, {flow[1]:.2f} px".replace("-0.00", "0.00")
    assert shown["expected error"] == f"{result.uncertainty[Y, X]:.1f} px"
    assert shown["B_e, B_m"] == "{:.2f}, {:.2f}".format(*result.boundary[:, Y, X])
    assert shown["ground truth"] == "2.00, 1.00 px"
    moved = [float(part) for part in shown["displacement at tau"].split(" px")[0].split(", ")]
    assert np.abs(moved - result.at(0.3)[:, Y, X]).max() <= 0.05 + 0.05  # printed; steps
    page.hover(X, 2)  # there the ground truth is not valid
    assert page.table("numbers")["error"] == "unknown"
    pair = json.loads((out / "metrics.json").read_text())["pairs"][PAIR]
    metrics = page.table("metrics")
    assert metrics["EPE"] == f"{pair['flow']['epe']:.3f} px"
    assert metrics["EPE of zero flow"] == f"{pair['zero_flow']['epe']:.3f} px"
    assert metrics["photometric error"] == f"{pair['photometric_error']:.4f}"


def test_slider_layers_and_keys_change_the_picture(driver, out):
    page = Page(driver, out / "index.html")
    pictures = []
    for position in (0.2, 0.9, 1.9):
        page.go(position)
        pictures.append(page.pixels())
    for name in ("none", "velocity", "uncertainty", "boundary", "truth", "error"):
        page.do(f"document.querySelector('input[value={name}]').click()")
        pictures.append(page.pixels())
    page.do("document.getElementById('events').click()")
    pictures.append(page.pixels())
    assert len({tuple(picture) for picture in pictures}) == len(pictures)
    key = "dispatchEvent(new KeyboardEvent('keydown', {key: '%s'}))"
    page.do(key % "Home")
    assert "tau 0.00" in page.run("return document.getElementById('when').textContent")
    page.do(key % ".")
    page.do(key % "ArrowRight")
    told = page.run("return document.getElementById('when').textContent")
    assert told.startswith("pair 1 (2 of 3), tau 0.05")
    page.do(key % " ")  # plays
    page.wait("return !document.getElementById('when').textContent.includes('tau 0.05')")
    page.run(key % " ")
    theme = "return getComputedStyle(document.body).backgroundColor"
    before = page.run(theme)
    page.run(key % "d")
    assert page.run(theme) != before
    assert page.errors() == []


def test_a_browser_that_cannot_unpack_shows_frames_and_says_so(driver, out):
    hide = "Page.addScriptToEvaluateOnNewDocument"
    script = driver.execute_cdp_cmd(hide, {"source": "delete window.DecompressionStream"})
    try:
        page = Page(driver, out / "index.html")
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
    assert "cannot unpack the flow" in page.run("return problem.textContent")
    frame = np.array(page.pixels()).reshape(HEIGHT, WIDTH, 4)[..., 0]
    assert frame.std() > 20


def test_events_alone(driver, run, recording, tmp_path):
    quiet = ("--html", "--max-pictures", "0", "--no-video", "--end", "0.06")
    assert run(recording, "--every", "20ms", *quiet) == 0
    page = Page(driver, tmp_path / "out" / "index.html")
    assert page.table("metrics")["from"] == "events"
    # What is not there cannot be chosen; the events are shown in the place of the frame.
    disabled = "return [...document.querySelectorAll('input:disabled')].map((e) => e.value || e.id)"
    assert page.run(disabled) == ["truth", "error", "on"]
    assert page.run("return [events.checked, frame.checked, frame.disabled]") == [True, False, True]
    page.run("dispatchEvent(new KeyboardEvent('keydown', {key: '7'}))")
    assert page.run("return document.querySelector('input[name=layer]:checked').value") == "flow"
    assert page.errors() == []


def test_the_page_is_taken_up_and_made_again(run, recording, out, capsys):
    whole = (out / "index.html").read_bytes()
    assert files(out / "viewer") == [f"{index:06d}.json" for index in range(3)]
    (out / "viewer" / "000001.json").unlink()
    (out / "index.html").unlink()
    capsys.readouterr()
    assert run(recording, "--html", "--max-pictures", "0", "--no-video") == 0
    told = capsys.readouterr()
    assert "1 estimated, 2 were there already" in told.out and str(out / "index.html") in told.out
    assert (out / "index.html").read_bytes() == whole and told.err == ""


def test_many_intervals_are_spread(run, recording, tmp_path, capsys):
    quiet = ("--html", "--max-pictures", "0", "--no-video", "--start", "0.01", "--end", "0.07")
    assert run(recording, "--every", "2ms", *quiet) == 0
    assert f"shows {MAX_VIEWED} of 30, evenly spread" in capsys.readouterr().err
    names = files(tmp_path / "out" / "viewer")
    assert len(names) == MAX_VIEWED and names[0] == "000000.json" and names[-1] == "000029.json"
