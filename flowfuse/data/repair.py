"""Event files whose times go back: told by name, continued, repaired, or one part of them read."""

from __future__ import annotations

import warnings

from flowfuse.data.formats.base import EventFile, UnsortedError
from flowfuse.data.formats.order import FEW, MOST_DROPPED, Order
from flowfuse.data.formats.spool import SpooledEvents


def put_in_order(
    file: EventFile,
    *,
    repair: bool = False,
    part: int | None = None,
    size: tuple[int, int] | None = None,
) -> EventFile:
    """Return the file, or what can be made of it where its times go back.

    A clock that overflowed is continued, with a warning. The rest is an error, unless asked for:

    Args:
        file: opened unchecked.
        repair: drop single events that are out of order or off the sensor; a warning counts them.
        part: the one to read, from 1 on, of a file whose clock was reset, or that was joined.
        size: (height, width) of the sensor, px, where it is known.

    Raises:
        UnsortedError: the times go back; says where, why, and what can be done.
        ValueError: there is no such part.
    """
    if not repair and part is None:
        try:
            file.check_order()
            _ = file.time_range
        except UnsortedError as error:
            return _continued(file, error)
        return file
    events = SpooledEvents(file.path, file.stream(), size or file.sensor_size)
    order = events.find_order()
    if order.wraps:
        warnings.warn(f"{file.path}: {order.describe_wraps()}", stacklevel=4)
    if len(order.parts) > 1 and part is None:
        raise UnsortedError(f"{file.path}: times must be sorted: {order.describe_faults()}")
    first, end = _rows(file, order, part)
    if order.dropped and not (repair and order.is_repairable):
        raise UnsortedError(f"{file.path}: times must be sorted: {order.describe_faults()}")
    sensor = size or file.sensor_size
    done = events.repair(order, first, end, sensor if repair else None)
    if repair and sensor and done.off_sensor > max(FEW, MOST_DROPPED * (end - first)):
        raise ValueError(
            f"{file.path}: {done.off_sensor} of {end - first} events are off the sensor of "
            f"{sensor[1]} x {sensor[0]} px, too many for accidents: is its size right?"
        )
    if repair:
        told = []
        if done.out_of_order:
            told.append(f"{done.out_of_order} out of order (the first: {done.fault})")
        if done.off_sensor:
            row, x, y = done.off
            told.append(f"{done.off_sensor} off the sensor (the first: event {row}, {x:g}, {y:g})")
        if done.before_zero:
            told.append(f"{done.before_zero} with negative times")
        dropped = f"dropped {', '.join(told)}" if told else "found nothing to drop"
        warnings.warn(f"{file.path}: --repair {dropped}, of {order.count} events", stacklevel=4)
    return events


def find_parts(file: EventFile) -> Order:
    """Look at all times of a file, opened unchecked; see :class:`Order`."""
    return SpooledEvents(file.path, file.stream()).find_order()


def _rows(file: EventFile, order: Order, part: int | None) -> tuple[int, int]:
    if part is None:
        return 0, order.count
    if not 1 <= part <= len(order.parts):
        raise ValueError(
            f"{file.path}: part {part} was asked for, but the file has {len(order.parts)} part(s)"
        )
    chosen = order.parts[part - 1]
    return chosen.first, chosen.end


def _continued(file: EventFile, error: UnsortedError) -> EventFile:
    """The events of a file whose clock overflowed; else an error that says what is wrong."""
    try:
        events = SpooledEvents(file.path, file.stream(), file.sensor_size)
    except NotImplementedError:
        raise error from None
    order = events.find_order()
    if not order.is_sorted:
        faults = order.describe_faults()
        if faults in str(error):
            raise error
        raise UnsortedError(f"{error}; {faults}") from error
    if not order.wraps:
        raise error
    warnings.warn(f"{file.path}: {order.describe_wraps()}", stacklevel=5)
    events.repair(order, 0, order.count, None)
    return events
