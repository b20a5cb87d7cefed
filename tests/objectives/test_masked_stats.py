"""Moments over real tokens, with NaN standing where no token is."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.objectives.masked_stats import (
    correlation,
    masked_mean,
    masked_sum,
    masked_variance,
    masked_whiten,
    sequence_sums,
)

NAN = float("nan")
VALUES = torch.tensor([[1.0, 2.0, NAN], [6.0, NAN, NAN]])
MASK = torch.tensor([[True, True, False], [True, False, False]])
NOTHING = torch.zeros_like(MASK)

# Real tokens 1, 2, 6: sum 9, mean 3, squared distances 4 + 1 + 9 = 14, population variance 14 / 3.


def test_sum_mean_and_variance_read_real_tokens_only() -> None:
    assert masked_sum(VALUES, MASK).item() == 9.0
    assert masked_mean(VALUES, MASK).item() == 3.0
    assert masked_variance(VALUES, MASK).item() == pytest.approx(14.0 / 3.0)


def test_the_mean_weighs_tokens_not_rows() -> None:
    # The mean of the rows' means would be (1.5 + 6) / 2 = 3.75.
    assert masked_mean(VALUES, MASK).item() == 3.0


def test_sequence_sums_are_per_row() -> None:
    assert sequence_sums(VALUES, MASK).tolist() == [3.0, 6.0]


def test_an_empty_mask_gives_zero_and_not_nan() -> None:
    assert masked_sum(VALUES, NOTHING).item() == 0.0
    assert masked_mean(VALUES, NOTHING).item() == 0.0
    assert masked_variance(VALUES, NOTHING).item() == 0.0
    assert masked_whiten(VALUES, NOTHING).tolist() == [[0.0] * 3] * 2


def test_whitened_tokens_have_mean_0_and_variance_1() -> None:
    whitened = masked_whiten(VALUES, MASK)
    spread = math.sqrt(14.0 / 3.0)
    expected = torch.tensor([[-2.0 / spread, -1.0 / spread, 0.0], [3.0 / spread, 0.0, 0.0]])
    torch.testing.assert_close(whitened, expected)
    assert masked_mean(whitened, MASK).item() == pytest.approx(0.0, abs=1e-6)
    assert masked_variance(whitened, MASK).item() == pytest.approx(1.0, abs=1e-6)


def test_whitening_without_shift_keeps_the_mean() -> None:
    whitened = masked_whiten(VALUES, MASK, shift_mean=False)
    spread = math.sqrt(14.0 / 3.0)
    expected = torch.tensor([[3.0 - 2.0 / spread, 3.0 - 1.0 / spread, 0.0], [3.0 + 3.0 / spread, 0.0, 0.0]])
    torch.testing.assert_close(whitened, expected)
    assert masked_mean(whitened, MASK).item() == pytest.approx(3.0, abs=1e-6)


def test_equal_values_whiten_to_zero() -> None:
    assert masked_whiten(torch.full((2, 3), 5.0), MASK).tolist() == [[0.0] * 3] * 2


def test_padding_does_not_change_whitening() -> None:
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 4])[:, None]
    padded = torch.cat([values, torch.full((4, 5), 1e6)], dim=1)
    padded_mask = torch.cat([mask, torch.zeros(4, 5, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(masked_whiten(padded, padded_mask)[:, :6], masked_whiten(values, mask))


def test_no_gradient_flows_from_outside_the_mask() -> None:
    values = torch.tensor([[1.0, 2.0, 7.0]], requires_grad=True)
    masked_mean(values, torch.tensor([[True, True, False]])).backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0.5, 0.5, 0.0]]


def test_correlation_by_hand() -> None:
    # Deviations -1, 0, 1 and -2, 1, 1: 3 / sqrt(2 * 6).
    one, other = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 3.0, 3.0])
    assert correlation(one, other).item() == pytest.approx(3.0 / math.sqrt(12.0))
    assert correlation(one, -other).item() == pytest.approx(-3.0 / math.sqrt(12.0))
    assert correlation(one, 5.0 * one - 2.0).item() == pytest.approx(1.0)


def test_the_correlation_is_that_of_torch_and_of_no_variation_0() -> None:
    one, other = 1000.0 + torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert correlation(one, other).item() == pytest.approx(torch.corrcoef(torch.stack([one, other]).double())[0, 1])
    assert correlation(one, torch.full((50,), 3.0)).item() == 0.0
    assert correlation(one[:1], other[:1]).item() == 0.0
