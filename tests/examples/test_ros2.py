"""examples/ros2: the node against stand-ins for rclpy, which is on no package index."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

FILE = Path(__file__).resolve().parents[2] / "examples" / "ros2" / "flowfuse_node.py"
HEIGHT, WIDTH, STEP = 16, 24, 40_000


def stamp(t: int) -> SimpleNamespace:
    return SimpleNamespace(sec=t // 10**6, nanosec=t % 10**6 * 1000)


class Image:
    """sensor_msgs.msg.Image."""

    def __init__(self, **fields) -> None:
        self.header = SimpleNamespace(stamp=stamp(0), frame_id="")
        vars(self).update(fields)


class Publisher:
    def __init__(self) -> None:
        self.messages: list[Image] = []

    def publish(self, message: Image) -> None:
        self.messages.append(message)


class Node:
    """rclpy.node.Node, as far as the node uses it."""

    def __init__(self, name: str) -> None:
        self.callbacks, self.publishers, self.warnings = {}, {}, []
        self._parameters: dict[str, object] = {}
        self.destroyed = False

    def declare_parameter(self, name: str, value: object) -> None:
        self._parameters[name] = "cpu" if name == "device" else value

    def get_parameter(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(value=self._parameters[name])

    def create_publisher(self, kind: type, topic: str, depth: int) -> Publisher:
        return self.publishers.setdefault(topic, Publisher())

    def create_subscription(self, kind: type, topic: str, callback, qos) -> None:
        self.callbacks[topic] = callback

    def get_logger(self) -> SimpleNamespace:
        return SimpleNamespace(warning=self.warnings.append)

    def destroy_node(self) -> None:
        self.destroyed = True


@pytest.fixture
def node_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    modules = {
        "rclpy": SimpleNamespace(),
        "rclpy.node": SimpleNamespace(Node=Node),
        "rclpy.qos": SimpleNamespace(qos_profile_sensor_data=object()),
        "sensor_msgs": SimpleNamespace(),
        "sensor_msgs.msg": SimpleNamespace(Image=Image),
        "dvs_msgs": SimpleNamespace(),
        "dvs_msgs.msg": SimpleNamespace(EventArray=object),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("flowfuse_node", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def event_array(first: int, last: int, x: int = 3) -> SimpleNamespace:
    rng = np.random.default_rng(0)
    events = [
        SimpleNamespace(
            x=int(rng.integers(WIDTH)) if x < WIDTH else x, y=int(rng.integers(HEIGHT)),
            ts=stamp(t), polarity=bool(t % 2),
        )
        for t in range(first, last, 100)
    ]  # fmt: skip
    header = SimpleNamespace(stamp=stamp(first), frame_id="camera")
    return SimpleNamespace(header=header, height=HEIGHT, width=WIDTH, events=events)


def image(t: int, encoding: str = "mono8") -> Image:
    channels = 1 if encoding == "mono8" else 3
    pixels = np.random.default_rng(t).integers(0, 256, (HEIGHT, WIDTH * channels), np.uint8)
    padded = np.pad(pixels, ((0, 0), (0, 8)))  # rows may be longer than their pixels
    return Image(
        header=SimpleNamespace(stamp=stamp(t), frame_id="camera"), height=HEIGHT, width=WIDTH,
        encoding=encoding, step=padded.shape[1], data=padded.tobytes(),
    )  # fmt: skip


@pytest.mark.usefixtures("one_thread")
def test_flow_is_published(node_module: ModuleType) -> None:
    start = 1_700_000_000 * 10**6
    node = node_module.FlowfuseNode()
    take_events, take_image = node.callbacks["events"], node.callbacks["image"]
    take_image(image(start))  # before the size is known: passed over
    take_events(event_array(start, start + STEP))
    take_image(image(start + 10_000))
    take_image(image(start + 10_000 + STEP, "bgr8"))
    take_events(event_array(start + STEP, start + 3 * STEP))
    flow, uncertainty = node.publishers["flow"], node.publishers["uncertainty"]
    ends = time.monotonic() + 60
    while not uncertainty.messages and time.monotonic() < ends:
        time.sleep(0.01)
    node.destroy_node()
    assert node.destroyed and not node.warnings
    (message,) = flow.messages
    assert (message.encoding, message.step) == ("32FC2", WIDTH * 8)
    values = np.frombuffer(message.data, np.float32).reshape(HEIGHT, WIDTH, 2)
    assert np.isfinite(values).all() and values.any()
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1_700_000_000, 10_000_000)
    assert message.header.frame_id == "camera"
    assert uncertainty.messages[0].encoding == "32FC1"


def test_bad_messages_are_told_and_passed_over(node_module: ModuleType) -> None:
    node = node_module.FlowfuseNode()
    node.callbacks["events"](event_array(0, 10_000, x=WIDTH))
    assert "x[0] = 24 lies outside the sensor" in node.warnings[0]
    other = image(5_000)
    other.encoding = "16UC1"
    node.callbacks["image"](other)
    assert "expected an encoding of mono8" in node.warnings[1] and "'16UC1'" in node.warnings[1]
    node.destroy_node()


def test_images_of_every_encoding(node_module: ModuleType) -> None:
    red, blue = image(7, "rgb8"), image(7, "bgr8")
    a, b = node_module.image_array(red), node_module.image_array(blue)
    assert a.shape == b.shape == (HEIGHT, WIDTH, 3) and np.array_equal(a, b[:, :, ::-1])
    assert node_module.image_array(image(7)).shape == (HEIGHT, WIDTH)


def test_no_event_messages(node_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dvs_msgs.msg", None)
    with pytest.raises(ModuleNotFoundError, match="dvs_msgs, prophesee_event_msgs"):
        node_module.event_message()
