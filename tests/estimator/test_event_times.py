"""Events at other times than those asked for."""

from __future__ import annotations

import pytest
from estimator_cases import FLAT, GOOD, T0, T1, wanted_events


@pytest.mark.parametrize(
    ("factor", "told"),
    [
        (1000, "4000 would, were their times in nanoseconds: all times are microseconds"),
        (0.001, "would, were their times in milliseconds"),
        (100, "is it one clock"),
    ],
)
def test_events_at_other_times_are_warned_of(estimator, factor, told):
    with pytest.warns(UserWarning, match=f"lie in .*{told}"):
        estimator(FLAT, FLAT, wanted_events(factor=factor), **GOOD)


def test_next_to_none_of_the_events_in_the_interval(estimator):
    few = wanted_events(4000, 1, T0 + 10 * (T1 - T0), T0 + 20 * (T1 - T0))
    with pytest.warns(UserWarning, match="0 of the 4000 events given lie in"):
        estimator(FLAT, FLAT, few, **GOOD)


@pytest.mark.filterwarnings("error")
def test_events_of_the_interval_are_not_warned_of(estimator):
    for start in (T0, T0 - 5 * (T1 - T0)):
        estimator(FLAT, FLAT, wanted_events(start=max(0, start)), **GOOD)
    estimator(FLAT, FLAT, wanted_events(0), **GOOD)
