"""Draws docs/images/demo.png and docs/images/viewer.png from the recording and model that ship.

    python docs/scripts/pictures.py [FOLDER]

It runs flowfuse-infer; the second picture needs Chromium and its driver on the PATH. Pictures of
the worst scenes, such as accuracy-mixed.jpg, come from `benchmarks/accuracy.py -o OUT`:

    python docs/scripts/pictures.py --shrink OUT/mixed-worst.png docs/images/accuracy-mixed.jpg
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

import flowfuse
from flowfuse.cli.infer import main as infer

FOLDER = Path(__file__).resolve().parents[1] / "images"
PAIR = 2  # of the shipped recording; its pictures are in demo.png
WIDTH = 1100  # px, of demo.png
SHRUNK_WIDTH, QUALITY = 1200, 82
PAGE = 1180, 805  # px, of the browser
POSITION, POINT = 1.7, (-150, 60)  # pair and tau; px from the middle of the image
PATIENCE = 300.0  # s


def estimate(folder: Path) -> None:
    """Write pictures and the viewer of the shipped recording."""
    sample = str(flowfuse.sample_recording())
    options = ["--times", "0.25,0.5,0.75", "--html", "--no-video", "--device", "cpu"]
    if infer([sample, "-o", str(folder), *options]):
        raise SystemExit("flowfuse-infer failed")


def draw_demo(pictures: Path) -> np.ndarray:
    """All pictures of one pair: events beside boundaries, flow, flow at some times."""

    def load(kind: str) -> np.ndarray:
        picture = cv2.imread(str(pictures / f"{PAIR:06d}_{kind}.png"))
        if picture is None:
            raise SystemExit(f"{pictures}: no picture of kind {kind}")
        return picture

    events, boundary = load("events"), load("boundary")
    events = scale(events, round(events.shape[1] * boundary.shape[0] / events.shape[0]))
    rows = [np.hstack([events, boundary]), load("flow"), load("times")]
    return np.vstack([scale(row, WIDTH) for row in rows])


def scale(picture: np.ndarray, width: int) -> np.ndarray:
    """The same at another width, px."""
    height = round(picture.shape[0] * width / picture.shape[1])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def draw_viewer(page: Path, path: Path) -> None:
    """A picture of the page in a browser, with events, arrows and the numbers of a pixel."""
    from selenium import webdriver
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    driver = shutil.which("chromedriver")
    if driver is None:
        raise SystemExit("chromedriver is missing: apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        for flag in ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars", "no-first-run"):
            options.add_argument(f"--{flag}")
        options.add_argument(f"--user-data-dir={profile}")
        options.add_argument(f"--window-size={PAGE[0]},{PAGE[1]}")
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            browser.get(page.resolve().as_uri())
            wait(browser)
            browser.execute_script(
                "document.getElementById('strength').value = 0.6;"
                "document.getElementById('events').click();"
                f"const t = document.getElementById('time'); t.value = {POSITION};"
                "t.dispatchEvent(new Event('input'))"
            )
            wait(browser)
            image = browser.find_element(By.ID, "overlay")
            ActionChains(browser).move_to_element_with_offset(image, *POINT).perform()
            wait(browser)
            browser.save_screenshot(str(path))
        finally:
            browser.quit()


def wait(browser) -> None:
    """Wait until the page has drawn, and not drawn again for a second."""
    deadline, drawn = time.monotonic() + PATIENCE, None
    while time.monotonic() < deadline:
        before, drawn = drawn, browser.execute_script("return document.body.dataset.drawn")
        if drawn and drawn == before:
            return
        time.sleep(1)
    raise SystemExit(f"the viewer drew nothing in {PATIENCE:g} s: {browser.get_log('browser')}")


def shrink(source: Path, target: Path) -> None:
    """Write a picture of a report as a small one."""
    picture = cv2.imread(str(source))
    if picture is None:
        raise SystemExit(f"{source}: cannot be read as a picture")
    cv2.imwrite(str(target), scale(picture, SHRUNK_WIDTH), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def main(arguments: list[str]) -> None:
    """Draw what is asked for."""
    if arguments[:1] == ["--shrink"]:
        if len(arguments) != 3:
            raise SystemExit(__doc__)
        shrink(Path(arguments[1]), Path(arguments[2]))
        return
    folder = Path(arguments[0]) if arguments else FOLDER
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        estimate(out)
        demo = draw_demo(out / "pictures")
        cv2.imwrite(str(folder / "demo.png"), demo, [cv2.IMWRITE_PNG_COMPRESSION, 9])
        draw_viewer(out / "index.html", folder / "viewer.png")


if __name__ == "__main__":
    main(sys.argv[1:])
