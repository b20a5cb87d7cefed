"""Losses of preference learning."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor, probability: Tensor | float = 1.0) -> Tensor:
    """-p log sigmoid(d - margin) - (1 - p) log sigmoid(-d - margin) per pair, d = r(chosen) - r(rejected).

    With p = 1, -log sigmoid(d - margin) (Bradley and Terry 1952; margin: arXiv 2307.09288). A soft label p < 1, as a
    judge gives it, makes it the cross-entropy to that label (arXiv 2212.08073, section 4.1), least where
    sigmoid(d) = p if the margin is 0.

    Args:
        chosen: (batch,) rewards of the preferred responses.
        rejected: (batch,) rewards of the others.
        margin: (batch,), 0 where there is none.
        probability: (batch,), that `chosen` is the better one; 1 where that is taken as certain.

    Returns:
        (batch,); ln 2 where the rewards are equal and the margin 0.
    """
    difference = chosen - rejected
    preferred, other = functional.logsigmoid(difference - margin), functional.logsigmoid(-difference - margin)
    return -probability * preferred - (1.0 - probability) * other


def centering_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r(chosen) + r(rejected))^2 per pair: pairs fix rewards only up to a constant, this fixes the constant near 0
    (arXiv 2312.09244).

    Returns:
        (batch,).
    """
    return (chosen + rejected) ** 2


def classification_loss(
    chosen_logits: Tensor, rejected_logits: Tensor, positive: int, probability: Tensor | float = 1.0
) -> Tensor:
    """Cross-entropy of telling chosen (the positive class) from rejected (the other), summed over the two responses.

    Args:
        chosen_logits: (batch, 2).
        rejected_logits: (batch, 2).
        positive: index of the positive class.
        probability: (batch,), that `chosen` is the better one: of the classes, it is the positive one so far.

    Returns:
        (batch,).
    """
    likely = torch.as_tensor(probability, device=chosen_logits.device).expand(len(chosen_logits))
    classes = torch.stack([1.0 - likely, likely], dim=1)  # of the preferred response: (other, positive)
    classes = classes if positive == 1 else classes.flip(1)
    return functional.cross_entropy(chosen_logits, classes, reduction="none") + functional.cross_entropy(
        rejected_logits, classes.flip(1), reduction="none"
    )
