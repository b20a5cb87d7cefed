"""Means, paired and unpaired differences, by hand."""

from __future__ import annotations

import math

import pytest

from rlhf_lightning.comparison.records import Delta, Estimate, Values, difference, estimate, values_by_cell

T2 = 4.3026527297  # t(0.975) with two degrees of freedom


def seeds(**values: float) -> Values:
    """Figures of a group that averages over nothing: `seeds(s1=0.5, s2=0.7)`."""
    return {((), int(name[1:])): value for name, value in values.items()}


def test_the_mean_of_three_seeds() -> None:
    # s = 1, standard error 1 / sqrt(3).
    found = estimate(seeds(s1=1.0, s2=2.0, s3=3.0))
    assert (found.mean, found.count) == (2.0, 3)
    assert found.low == pytest.approx(2.0 - T2 / math.sqrt(3))
    assert found.high == pytest.approx(2.0 + T2 / math.sqrt(3))


def test_one_seed_has_a_mean_and_no_interval() -> None:
    assert estimate(seeds(s4=0.25)) == Estimate(0.25, None, None, 1)


def test_a_seed_counts_once_however_many_cells_it_has() -> None:
    # Seed 1: (0 + 2) / 2 = 1; seed 2: 3. Two seeds: mean 2, s = sqrt(2), half = 12.7062 * sqrt(2) / sqrt(2).
    found = estimate({(("none",), 1): 0.0, (("lora",), 1): 2.0, (("none",), 2): 3.0})
    assert (found.mean, found.count) == (2.0, 2)
    assert found.high == pytest.approx(2.0 + 12.7062047364)


def test_a_difference_is_paired_over_the_seeds_that_both_have() -> None:
    # Differences 0.5, 1, 0.5: mean 2/3, variance 1/12, standard error sqrt(1/36) = 1/6. Seeds 4 and 9 have no partner.
    found = difference(seeds(s1=1.0, s2=2.0, s3=3.0, s4=100.0), seeds(s1=0.5, s2=1.0, s3=2.5, s9=-7.0))
    assert found is not None
    assert (found.method, found.count) == ("paired", 3)
    assert found.mean == pytest.approx(2 / 3)
    assert found.low == pytest.approx(2 / 3 - T2 / 6)
    assert found.high == pytest.approx(2 / 3 + T2 / 6)
    assert not found.is_clear


def test_pairing_finds_what_lies_under_the_spread_of_the_seeds() -> None:
    found = difference(seeds(s1=10.1, s2=20.2, s3=30.1), seeds(s1=10.0, s2=20.0, s3=30.0))
    assert found is not None
    assert not found.is_clear  # 0.1333 +- 4.3027 * 0.0333
    steady = difference(seeds(s1=10.1, s2=20.12, s3=30.1), seeds(s1=10.0, s2=20.0, s3=30.0))
    assert steady is not None
    assert steady.is_clear


def test_pairs_within_a_seed_are_of_the_same_cell() -> None:
    # The mean of all would be 2.5 - 0 in seed 1; only the cell that both have counts: 1 - 0.
    group = {(("none",), 1): 1.0, (("lora",), 1): 4.0, (("none",), 2): 3.0}
    found = difference(group, {(("none",), 1): 0.0, (("none",), 2): 2.0})
    assert found == Delta(1.0, 1.0, 1.0, 2, "paired")


def test_without_common_seeds_the_interval_is_welchs() -> None:
    # Both variances are 2, so each mean's squared error is 1: degrees (1 + 1)^2 / (1 + 1) = 2, error sqrt(2).
    found = difference(seeds(s1=5.0, s2=7.0), seeds(s3=0.0, s4=2.0))
    assert found is not None
    assert (found.mean, found.count, found.method) == (5.0, 2, "unpaired")
    assert found.high == pytest.approx(5.0 + T2 * math.sqrt(2.0))


def test_welchs_degrees_weigh_both_sides() -> None:
    # Squared errors 2/2 = 1 and 1/3: degrees (4/3)^2 / (1 + (1/9)/2) = 32/19. By scipy, t.ppf(0.975, 32/19) = 5.176232.
    found = difference(seeds(s1=1.0, s2=3.0), seeds(s3=0.0, s4=1.0, s5=2.0))
    assert found is not None
    assert found.high == pytest.approx(1.0 + 5.176232 * math.sqrt(4 / 3), rel=1e-5)


def test_two_constant_sides_differ_for_sure() -> None:
    assert difference(seeds(s1=1.0, s2=1.0), seeds(s3=0.5, s4=0.5)) == Delta(0.5, 0.5, 0.5, 2, "unpaired")


def test_one_seed_gives_a_difference_and_no_interval() -> None:
    assert difference(seeds(s1=1.0), seeds(s1=0.25)) == Delta(0.75, None, None, 1, "no interval")
    assert difference(seeds(s1=1.0), seeds(s2=0.5, s3=0.5)) == Delta(0.5, None, None, 1, "no interval")


def test_one_pair_beside_other_seeds_is_the_difference_of_that_pair() -> None:
    assert difference(seeds(s1=1.0), seeds(s1=0.25, s2=9.0)) == Delta(0.75, None, None, 1, "no interval")


def test_without_figures_there_is_no_difference() -> None:
    assert difference({}, seeds(s1=1.0)) is None
    assert difference(seeds(s1=1.0), {}) is None


def test_repeats_of_a_seed_are_averaged() -> None:
    assert values_by_cell([((), 1, 0.0), ((), 1, 1.0), ((), 2, 3.0)]) == {((), 1): 0.5, ((), 2): 3.0}
