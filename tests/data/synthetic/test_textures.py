from __future__ import annotations

import cv2
import numpy as np
import pytest

from flowfuse.data.synthetic.textures import (
    FAMILIES,
    GRIME,
    PATTERNS,
    _image_crop,
    images_of_split,
    make_texture,
)


def test_splits_share_no_pattern_and_use_all():
    train, test = FAMILIES["train"], FAMILIES["test"]
    assert not train.keys() & test.keys()
    assert train.keys() | test.keys() == PATTERNS.keys()
    for split, weights in FAMILIES.items():
        assert sum(weights.values()) == pytest.approx(1) and min(weights.values()) > 0
        assert GRIME[split] in weights


@pytest.mark.parametrize("split", FAMILIES)
def test_textures_use_the_patterns_of_their_split(split, monkeypatch):
    drawn = set()

    def record(name):
        draw = PATTERNS[name]
        return lambda *arguments: drawn.add(name) or draw(*arguments)

    for name in PATTERNS:
        monkeypatch.setitem(PATTERNS, name, record(name))
    rng = np.random.default_rng(0)
    for _ in range(80):
        texture = make_texture(rng, 24, 32, contrast=1.0, brightness=0.3, split=split)
        assert texture.shape == (24, 32) and texture.min() > 0
    # The least likely one is left out of 80 draws once in 5000 times.
    assert drawn == FAMILIES[split].keys()


def test_images_whose_names_opencv_cannot_open(tmp_path):
    path = tmp_path / "a\udcff.png"
    path.write_bytes(cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes())
    with pytest.raises(ValueError, match=r"a\\udcff.png': OpenCV opens only names that are UTF-8"):
        _image_crop(np.random.default_rng(0), 8, 8, (path,))


def test_every_fifth_image_is_for_tests(tmp_path):
    for i in range(11):
        cv2.imwrite(str(tmp_path / f"{i:02d}.png"), np.zeros((8, 8), np.uint8))
    train, test = (images_of_split(tmp_path, split) for split in ("train", "test"))
    assert [p.stem for p in test] == ["04", "09"]
    assert len(train) == 9 and not set(train) & set(test)


def test_too_few_images_for_tests_are_told(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8), np.uint8))
    assert len(images_of_split(tmp_path, "train")) == 1
    with pytest.raises(FileNotFoundError, match=r"holds 1 image\(s\).*at least 5 are needed"):
        images_of_split(tmp_path, "test")
