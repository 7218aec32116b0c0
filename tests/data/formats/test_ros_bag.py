"""ROS bags, written by the package that reads them; skipped where it is absent."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
from container_cases import FRAME_TIMES, HEIGHT, START, WIDTH, check, images, make_events

from flowfuse.data.opening import open_recording
from flowfuse.data.registry import open_event_file
from flowfuse.events import Events


@pytest.fixture(scope="module")
def events():
    return make_events()


# The definitions of dvs_msgs, without comments.

EVENT = "uint16 x\nuint16 y\n{time} ts\nbool polarity\n"
ARRAY = "std_msgs/Header header\nuint32 height\nuint32 width\ndvs_msgs/Event[] events\n"


class BagWriter:
    """Writes messages in the layout of one version of ROS."""

    def __init__(self, path, version):
        pytest.importorskip("rosbags")
        from rosbags import rosbag1, rosbag2
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore

        self.version = version
        store = Stores.ROS1_NOETIC if version == 1 else Stores.ROS2_HUMBLE
        self.types = get_typestore(store)
        time = "time" if version == 1 else "builtin_interfaces/Time"
        for text, name in ((EVENT.format(time=time), "Event"), (ARRAY, "EventArray")):
            self.types.register(get_types_from_msg(text, f"dvs_msgs/msg/{name}"))
        self.bag = rosbag1.Writer(path) if version == 1 else rosbag2.Writer(path, version=9)
        self.bag.open()
        self.topics = {}

    def make(self, kind, **fields):
        return self.types.types[kind](**fields)

    def time(self, microseconds):
        seconds, rest = divmod(int(microseconds), 10**6)
        return self.make("builtin_interfaces/msg/Time", sec=seconds, nanosec=1000 * rest + 7)

    def header(self, microseconds, name):
        number = {"seq": 3} if self.version == 1 else {}
        stamp = self.time(microseconds)
        return self.make("std_msgs/msg/Header", stamp=stamp, frame_id=name, **number)

    def write(self, topic, kind, time, **fields):
        if topic not in self.topics:
            self.topics[topic] = self.bag.add_connection(topic, kind, typestore=self.types)
        message = self.make(kind, **fields)
        encode = self.types.serialize_ros1 if self.version == 1 else self.types.serialize_cdr
        self.bag.write(self.topics[topic], 1000 * int(time) + 5_000_000, encode(message, kind))

    def write_events(self, events, topic="/dvs/events"):
        made = [
            self.make("dvs_msgs/msg/Event", x=x, y=y, ts=self.time(t), polarity=bool(p))
            for x, y, t, p in zip(
                events.x.tolist(), events.y.tolist(), events.t, events.p, strict=True
            )
        ]
        time = int(events.t[-1]) if len(events) else START
        # Names of every length: what follows is aligned behind them.
        header = self.header(time, "camera"[: len(events) % 5])
        fields = {"header": header, "height": HEIGHT, "width": WIDTH, "events": made}
        self.write(topic, "dvs_msgs/msg/EventArray", time, **fields)

    def write_image(self, time, image, encoding="mono8", topic="/dvs/image_raw", width=None):
        height, width = image.shape[0], width or image.shape[1]
        rows = image.reshape(height, -1)
        step = rows.shape[1] + 3  # rows may have gaps behind them
        data = np.pad(rows, ((0, 0), (0, 3))).ravel()
        fields = {"height": height, "width": width, "encoding": encoding, "is_bigendian": 0}
        header = self.header(time, "camera")
        fields |= {"header": header, "step": step, "data": data}
        self.write(topic, "sensor_msgs/msg/Image", time, **fields)


def write_bag(path, version, events):
    writer = BagWriter(path, version)
    ends = [0, 1, 3, 400, 400, 650, 900]  # messages of one, no and many events
    for first, last in pairwise(ends):
        part = slice(first, last)
        columns = (getattr(events, name)[part] for name in "xytp")
        writer.write_events(Events(*columns, height=HEIGHT, width=WIDTH))
    for time, image in zip(FRAME_TIMES, images(), strict=True):
        writer.write_image(time, image)
    writer.bag.close()
    return path


@pytest.mark.parametrize("version", [1, 2])
def test_bag(tmp_path, events, version):
    path = write_bag(tmp_path / ("a.bag" if version == 1 else "a"), version, events)
    recording = open_recording(path)
    check(recording, events)
    assert recording.frame_times.tolist() == FRAME_TIMES and recording.exposures is None
    for index in (0, 2, 1):
        np.testing.assert_array_equal(recording.frame(index), images()[index])
    assert open_event_file(path).coordinate_extent() == (HEIGHT, WIDTH)


def test_images_of_bags(tmp_path):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    writer = BagWriter(tmp_path / "a.bag", 1)
    for index, (encoding, image) in enumerate(
        [("rgb8", colour), ("bgr8", colour[..., ::-1]), ("yuv411", colour[..., 0])]
    ):
        writer.write_image(START + index, np.ascontiguousarray(image), encoding)
    writer.bag.close()
    recording = open_recording(tmp_path / "a.bag")
    assert not recording.has_events
    for index in (0, 1):
        np.testing.assert_array_equal(recording.frame(index), colour)
    with pytest.raises(ValueError, match=r"image 2: encoding 'yuv411', expected one of mono8"):
        recording.frame(2)
    writer = BagWriter(tmp_path / "b.bag", 1)
    data = cv2.imencode(".png", colour[..., ::-1])[1].ravel()
    header = writer.header(START, "c")
    kind = "sensor_msgs/msg/CompressedImage"
    writer.write("/image/compressed", kind, START, header=header, format="png", data=data)
    writer.bag.close()
    np.testing.assert_array_equal(open_recording(tmp_path / "b.bag").frame(0), colour)


@pytest.mark.parametrize("mosaic", ["rggb", "bggr", "gbrg", "grbg"])
def test_mosaics_of_bags(tmp_path, mosaic):
    """Of one colour everywhere, the letters of the first two rows say which value is where."""
    colour = {"r": 200, "g": 120, "b": 40}
    values = np.array(
        [[colour[mosaic[0]], colour[mosaic[1]]], [colour[mosaic[2]], colour[mosaic[3]]]]
    )
    image = np.tile(values, (HEIGHT // 2, WIDTH // 2))
    writer = BagWriter(tmp_path / "a.bag", 1)
    writer.write_image(START, image.astype(np.uint8), f"bayer_{mosaic}8")
    deep = np.ascontiguousarray(257 * image, np.uint16)
    writer.write_image(START + 1, deep.view(np.uint8), f"bayer_{mosaic}16", width=WIDTH)
    writer.bag.close()
    recording = open_recording(tmp_path / "a.bag")
    for index, scale in ((0, 1), (1, 257)):
        frame = recording.frame(index)
        assert frame.shape == (*image.shape, 3)
        for channel, value in enumerate(colour.values()):
            assert (frame[..., channel] == scale * value).all()


def test_packed_colours_of_bags(tmp_path):
    gray = np.full((HEIGHT, WIDTH), 128, np.uint8)  # of U and V: no colour
    luma = np.full((HEIGHT, WIDTH), 235, np.uint8)
    writer = BagWriter(tmp_path / "a.bag", 1)
    for index, pair in enumerate(((gray, luma), (luma, gray))):
        data = np.stack(pair, axis=-1)
        writer.write_image(START + index, data, ("yuv422", "yuv422_yuy2")[index])
    writer.bag.close()
    recording = open_recording(tmp_path / "a.bag")
    for index in (0, 1):
        assert recording.frame(index).min() >= 254 and recording.frame(index).shape[2] == 3


def test_deep_images_of_bags(tmp_path):
    deep = images().astype(np.uint16) * 4
    deep[0, 0, 0] = 1023
    writer = BagWriter(tmp_path / "a.bag", 1)
    for time, image in zip(FRAME_TIMES, deep, strict=True):
        writer.write_image(time, image.view(np.uint8), "mono16", width=WIDTH)
    writer.bag.close()
    with pytest.warns(UserWarning, match=r"image 0 and the other .* up to 1023: 10 bits are"):
        recording = open_recording(tmp_path / "a.bag")
    np.testing.assert_array_equal(recording.frame(2), np.rint(deep[2] * (65535 / 1023)))


@pytest.mark.parametrize("version", [1, 2])
def test_a_bag_without_known_topics_lists_them(tmp_path, version):
    path = tmp_path / ("a.bag" if version == 1 else "a")
    writer = BagWriter(path, version)
    writer.write("/camera/name", "std_msgs/msg/String", START, data="hello")
    writer.bag.close()
    message = (
        r"/camera/name \(std_msgs/msg/String, 1 messages\); expected .*dvs_msgs/msg/EventArray"
    )
    with pytest.raises(ValueError, match=message):
        open_recording(path)


def test_images_with_one_stamp(tmp_path):
    writer = BagWriter(tmp_path / "a.bag", 1)
    for time, image in zip((START, START, START + 9), images(), strict=True):
        writer.write_image(time, image)
    writer.bag.close()
    with pytest.raises(ValueError, match=r"image 1 has .* --repair leaves out 1 of 3 frames"):
        open_recording(tmp_path / "a.bag")
    with pytest.warns(UserWarning, match="left out 1 of 3 frames"):
        recording = open_recording(tmp_path / "a.bag", repair=True)
    np.testing.assert_array_equal(recording.frame(1), images()[2])


def test_the_images_beside_the_events_are_taken(tmp_path, events):
    writer = BagWriter(tmp_path / "a.bag", 1)
    few = events.slice_time(START, START + 3000)
    writer.write_events(few, "/b/left/events")
    writer.write_image(START, images()[0], topic="/a/image_raw")
    writer.write_image(START, images()[1], topic="/b/left/image_raw")
    writer.bag.close()
    with pytest.warns(UserWarning, match="topic /b/left/image_raw is taken, of /a/image_raw, /b"):
        recording = open_recording(tmp_path / "a.bag")
    np.testing.assert_array_equal(recording.frame(0), images()[1])


def test_faults_of_bags(tmp_path, events):
    path = write_bag(tmp_path / "a.bag", 1, events)
    data = path.read_bytes()
    for content in (b"", data[:300], b"hello" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a.bag: not a readable ROS bag, is it truncated"):
            open_recording(path)
    writer = BagWriter(tmp_path / "b.bag", 1)
    writer.write_events(events.slice_time(START + 2000, START + 3000))
    writer.write_events(events.slice_time(START + 1000, START + 2500))
    writer.bag.close()
    with pytest.raises(ValueError, match="must be sorted by time; the message recorded at"):
        open_recording(tmp_path / "b.bag")
    with pytest.raises(ValueError, match=r"a topic of sensor_msgs.* expected, found /dvs/events"):
        open_recording(frames=tmp_path / "b.bag")
