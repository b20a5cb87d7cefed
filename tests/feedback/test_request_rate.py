"""How requests are spaced."""

from __future__ import annotations

from rlhf_lightning.feedback.request_rate import RequestRate


def test_requests_are_spaced_evenly() -> None:
    """20 a minute are 3 seconds apart."""
    now = [100.0]
    rate = RequestRate(20, clock=lambda: now[0])
    assert [rate.reserve() for _ in range(3)] == [0.0, 3.0, 6.0]
    now[0] = 101.0
    assert rate.reserve() == 8.0  # the fourth place is at 109


def test_an_idle_minute_is_not_made_up_for() -> None:
    now = [0.0]
    rate = RequestRate(60, clock=lambda: now[0])
    rate.reserve()
    now[0] = 50.0
    assert [rate.reserve() for _ in range(2)] == [0.0, 1.0]


def test_without_a_limit_nobody_waits() -> None:
    rate = RequestRate(None, clock=lambda: 0.0)
    assert [rate.reserve() for _ in range(100)] == [0.0] * 100
