"""What the browser gets, decoded here by the documented layout."""

from __future__ import annotations

import base64
import json
import zlib

import cv2
import numpy as np
import pytest
import torch

from flowfuse.events import Events
from flowfuse.result import Result
from flowfuse.viewer import payload
from flowfuse.viewer.page import write_page
from flowfuse.viewer.payload import encode_events, encode_map, encode_pair


def decode_map(found: dict, height: int, width: int) -> np.ndarray:
    """Codes [C, H, W], pixel by pixel."""
    data = np.frombuffer(zlib.decompress(base64.b64decode(found["data"])), np.uint8)
    planes = data.reshape(found["bytes"], found["channels"], height, width).astype(np.int64)
    folded = sum(plane << (8 * i) for i, plane in enumerate(planes))
    codes = np.zeros((found["channels"], height + 1, width + 1), np.int64)
    for c, y, x in np.ndindex(folded.shape):
        left, above, corner = codes[c, y + 1, x], codes[c, y, x + 1], codes[c, y, x]
        guess = sorted((left, above, left + above - corner))[1]
        code = int(folded[c, y, x])
        codes[c, y + 1, x + 1] = guess + (-(code + 1) // 2 if code % 2 else code // 2)
    return codes[:, 1:, 1:]


def decode_events(found: dict) -> list[list[tuple[int, bool]]]:
    data, at, bins = zlib.decompress(base64.b64decode(found["data"])), 0, []

    def number() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            at, digit = at + 1, data[at]
            value |= (digit & 127) << shift
            shift += 7
            if digit < 128:
                return value

    for _ in range(found["bins"]):
        place, pixels = -1, []
        for _ in range(number()):
            step = number()
            place += step // 2
            pixels.append((place, bool(step % 2)))
        bins.append(pixels)
    assert at == len(data)
    return bins


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (6, 9)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 300.0, 4000.0])
def test_maps_keep_every_step(size, scale):
    values = scale * np.random.default_rng(0).standard_normal((2, *size)).astype(np.float32)
    found = encode_map(values, 0.01)
    expected = np.rint(values.astype(np.float64) * 100)
    assert np.array_equal(decode_map(found, *size), expected)
    assert found["bytes"] == (1 if scale == 0 else found["bytes"]) and found["channels"] == 2


def test_printed_digits_are_those_of_the_number():
    values = np.array([[[1.234, -7.119, 0.25, np.nan]]], np.float32)
    codes = decode_map(encode_map(values, 0.01), 1, 4)[0, 0]
    assert [f"{code / 100:.2f}" for code in codes[:3]] == [f"{v:.2f}" for v in values[0, 0, :3]]
    assert codes[3] == 0


def test_events_by_hand():
    """Of 24 bins of 10 us: the first has two pixels, one of them with a majority of negatives."""
    events = Events(
        [3, 3, 3, 0, 1, 1], [0, 0, 0, 1, 1, 1], [100, 101, 105, 109, 339, 340], [1, 0, 0, 1, 1, 1]
    )
    found = encode_events(events, 100, 340, 2, 4)
    bins = decode_events(found)
    assert found["count"] == 5 and found["every"] == 1  # 340 is not in [100, 340)
    assert bins[0] == [(3, False), (4, True)] and bins[-1] == [(5, True)]
    assert not any(bins[1:-1])
    assert not any(decode_events(encode_events(events.slice_time(0, 0), 100, 340, 2, 4)))


def test_many_events_are_thinned_and_far_pixels_need_several_digits(monkeypatch):
    monkeypatch.setattr(payload, "MAX_EVENTS", 3)
    t = np.arange(8)
    events = Events(np.full(8, 999), np.full(8, 700), t, np.ones(8, int))
    found = encode_events(events, 0, 24, 800, 1000)
    assert (found["every"], found["count"]) == (3, 8)
    place = 700 * 1000 + 999
    assert [i for i, pixels in enumerate(decode_events(found)) if pixels == [(place, True)]] == [
        0, 3, 6,
    ]  # fmt: skip


def test_a_pair():
    torch.manual_seed(0)
    result = Result(
        5 * torch.randn(1, 3, 2, 4, 6), torch.randn(1, 2, 4, 6), torch.randn(1, 2, 4, 6),
        t0=0, t1=50, modalities=("frames",), as_torch=False,
    )  # fmt: skip
    valid = np.ones((4, 6), bool)
    valid[0] = False
    truth = np.full((2, 4, 6), np.nan, np.float32)
    truth[:, valid] = 1.5
    frame = np.full((4, 6, 3), (200, 100, 50), np.uint8)
    text = encode_pair(result, frame, Events.empty(4, 6), (truth, valid), index=7, colour_range=3.0)
    assert "\n" not in text and "NaN" not in text
    found = json.loads(text)
    assert (found["index"], found["width"], found["range"]) == (7, 6, 3.0)
    flow = decode_map(found["flow"], 4, 6) / 100
    bend = decode_map(found["bend"], 4, 6).reshape(2, 2, 4, 6) / 20
    points = np.stack([*(flow * (k / 3) + bend[k - 1] for k in (1, 2)), flow])
    assert np.abs(points - result.control_points).max() <= 0.025 + 0.005 + 1e-6
    assert np.array_equal(decode_map(found["valid"], 4, 6)[0], valid)
    assert np.unique(decode_map(found["ground_truth"], 4, 6)).tolist() == [0, 150]
    image = cv2.imdecode(np.frombuffer(base64.b64decode(found["frame"]), np.uint8), 1)
    assert np.abs(image[2, 3].astype(int) - (50, 100, 200)).max() <= 3  # JPEG; BGR
    bare = json.loads(encode_pair(result, None, Events.empty(4, 6), None, index=0, colour_range=1))
    assert bare["frame"] is None and "ground_truth" not in bare


def test_nothing_in_the_data_ends_its_element(tmp_path):
    part = tmp_path / "0.json"
    part.write_text('{"index":0}')
    metrics = {0: {"title": "</script>", "epe": float("nan")}}
    size = write_page(tmp_path / "index.html", "</script><b>", [part], metrics)
    text = (tmp_path / "index.html").read_text()
    assert size == len(text.encode())
    data = text.split("data-about>")[1].split("</script>")[0]
    assert json.loads(data) == {
        "title": "</script><b>", "metrics": {"0": {"title": "</script>", "epe": None}},
    }  # fmt: skip
    assert "src=" not in text and "href=" not in text.replace('href="data:,"', "")
