"""A node of ROS 2 that publishes the optical flow of an event camera and a frame camera.

See README.md beside it for topics and parameters.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from flowfuse import Result, Stream, StreamSettings, load

EVENT_PACKAGES = ("dvs_msgs", "prophesee_event_msgs")  # their EventArray has one layout
CHANNELS = {"mono8": 1, "8UC1": 1, "rgb8": 3, "bgr8": 3, "8UC3": 3}


def event_message() -> Any:
    """The class of event messages, of whichever package is there."""
    for name in EVENT_PACKAGES:
        try:
            return importlib.import_module(f"{name}.msg").EventArray
        except ImportError:
            continue
    raise ModuleNotFoundError(
        f"no package with EventArray is installed: {', '.join(EVENT_PACKAGES)}"
    )


def microseconds(stamp: Any) -> int:
    """A stamp of ROS as flowfuse has times."""
    return stamp.sec * 1_000_000 + stamp.nanosec // 1000


def image_array(message: Any) -> np.ndarray:
    """An image message as uint8 [H, W] or [H, W, 3] RGB.

    Raises:
        ValueError: another encoding.
    """
    channels = CHANNELS.get(message.encoding)
    if channels is None:
        known = ", ".join(CHANNELS)
        raise ValueError(f"image: expected an encoding of {known}; got {message.encoding!r}")
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    pixels = rows[:, : message.width * channels].reshape(message.height, message.width, channels)
    if channels == 1:
        return pixels[:, :, 0]
    return pixels if message.encoding == "rgb8" else pixels[:, :, ::-1].copy()


def float_image(values: np.ndarray, encoding: str, header: Any) -> Image:
    """A float32 array [H, W] or [H, W, 2] as an image message."""
    message = Image()
    message.header = header
    message.height, message.width = values.shape[:2]
    message.encoding, message.is_bigendian = encoding, 0
    message.step = values[0].nbytes
    message.data = np.ascontiguousarray(values, "<f4").tobytes()
    return message


class FlowfuseNode(Node):
    """Pushes messages into a stream, whose own thread publishes the results."""

    def __init__(self) -> None:
        super().__init__("flowfuse")
        defaults = {
            "checkpoint": "small",
            "device": "auto",
            "interval": "frames",
            "policy": "latest",
            "offset": "0",
        }
        for name, value in defaults.items():
            self.declare_parameter(name, value)
        self._estimator = load(self._text("checkpoint"), self._text("device"))
        self._stream: Stream | None = None
        self._frame_id = ""
        self._flow = self.create_publisher(Image, "flow", 10)
        self._uncertainty = self.create_publisher(Image, "uncertainty", 10)
        sensor = qos_profile_sensor_data
        self.create_subscription(event_message(), "events", self._take_events, sensor)
        self.create_subscription(Image, "image", self._take_image, sensor)

    def _text(self, name: str) -> str:
        return str(self.get_parameter(name).value)

    def _take_events(self, message: Any) -> None:
        if self._stream is None:
            # The first message tells the size of the sensor.
            self._stream = Stream(
                self._estimator,
                height=message.height,
                width=message.width,
                interval=self._text("interval"),
                policy=self._text("policy"),
                settings=StreamSettings(offset=self._text("offset")),
            )
            self._stream.start(self._publish)
        self._frame_id = message.header.frame_id
        events = message.events
        count = len(events)
        columns = (
            np.fromiter((e.x for e in events), np.int32, count),
            np.fromiter((e.y for e in events), np.int32, count),
            np.fromiter((microseconds(e.ts) for e in events), np.int64, count),
            np.fromiter((e.polarity for e in events), np.uint8, count),
        )
        try:
            self._stream.push_events(*columns)
        except ValueError as error:  # one bad message must not end the node
            self.get_logger().warning(str(error))

    def _take_image(self, message: Any) -> None:
        if self._stream is None:
            return
        try:
            self._stream.push_frame(image_array(message), microseconds(message.header.stamp))
        except ValueError as error:
            self.get_logger().warning(str(error))

    def _publish(self, result: Result) -> None:
        header = Image().header
        header.frame_id = self._frame_id
        header.stamp.sec, rest = divmod(result.t0, 1_000_000)
        header.stamp.nanosec = rest * 1000
        self._flow.publish(float_image(result.flow.transpose(1, 2, 0), "32FC2", header))
        self._uncertainty.publish(float_image(result.uncertainty, "32FC1", header))

    def destroy_node(self) -> None:
        """End the stream's thread first."""
        if self._stream is not None:
            self._stream.close()
        super().destroy_node()


def main() -> None:
    """Run the node until ROS or Ctrl-C ends it."""
    rclpy.init()
    node = FlowfuseNode()
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
