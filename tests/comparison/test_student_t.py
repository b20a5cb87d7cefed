"""Quantiles against the printed table of Student's t."""

from __future__ import annotations

import math

import pytest

from rlhf_lightning.comparison.student_t import quantile

# NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.6.7.2.
TABLE = {
    (1, 0.95): 6.314,
    (1, 0.975): 12.706,
    (2, 0.975): 4.303,
    (3, 0.975): 3.182,
    (4, 0.975): 2.776,
    (5, 0.995): 4.032,
    (10, 0.95): 1.812,
    (10, 0.975): 2.228,
    (30, 0.975): 2.042,
    (100, 0.975): 1.984,
}


@pytest.mark.parametrize(("place", "printed"), TABLE.items())
def test_quantiles_are_those_of_the_printed_table(place: tuple[int, float], printed: float) -> None:
    assert quantile(*place) == pytest.approx(printed, abs=0.0006)


def test_with_one_and_two_degrees_there_is_a_closed_form() -> None:
    assert quantile(1, 0.9) == pytest.approx(math.tan(math.pi * 0.4), rel=1e-7)
    # t = (2p - 1) sqrt(2 / (1 - (2p - 1)^2)), so for p = 0.8: 0.6 sqrt(2 / 0.64).
    assert quantile(2, 0.8) == pytest.approx(0.6 * math.sqrt(2 / 0.64), rel=1e-7)


def test_it_falls_towards_the_normal_quantile() -> None:
    values = [quantile(degrees) for degrees in (1, 1.5, 2, 7.25, 8, 1000)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(1.959964, abs=0.003)


def test_the_median_is_zero() -> None:
    assert quantile(3, 0.5) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("degrees", "level"), [(0.5, 0.9), (3, 1.0), (3, 0.2)])
def test_what_has_no_quantile_is_refused(degrees: float, level: float) -> None:
    with pytest.raises(ValueError, match="degrees="):
        quantile(degrees, level)
