import pytest

from flowfuse.training.schedule import learning_rate_at


def test_learning_rate_rises_and_falls():
    rates = [learning_rate_at(s, 100, 2.0, 0.1) for s in range(1, 101)]
    assert rates[:10] == pytest.approx([0.2 * s for s in range(1, 11)])
    assert max(rates) == rates[9] == 2.0 and sorted(rates[9:], reverse=True) == rates[9:]
    assert 0 < rates[-1] < 0.001
    assert learning_rate_at(1, 1, 2.0, 0.0) == 2.0
