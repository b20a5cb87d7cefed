"""Learning from which of two replies was preferred."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor) -> Tensor:
    """-log sigmoid(r(chosen) - r(rejected) - margin) per pair (Bradley and Terry 1952; margin: arXiv 2307.09288).

    Args:
        chosen: (batch,) rewards of the preferred replies.
        rejected: (batch,) rewards of the others.
        margin: (batch,), 0 where nobody said by how much.

    Returns:
        (batch,); ln 2 where the rewards are equal and the margin 0.
    """
    return -functional.logsigmoid(chosen - rejected - margin)


def centring_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r(chosen) + r(rejected))^2 per pair: pairs fix rewards only up to a constant, this fixes the constant near 0
    (arXiv 2312.09244).

    Returns:
        (batch,).
    """
    return (chosen + rejected) ** 2


def classification_loss(chosen_logits: Tensor, rejected_logits: Tensor, positive: int) -> Tensor:
    """Cross-entropy of telling chosen (the positive class) from rejected (the other), summed over the two replies.

    Args:
        chosen_logits: (batch, 2).
        rejected_logits: (batch, 2).
        positive: index of the positive class.

    Returns:
        (batch,).
    """
    batch = len(chosen_logits)
    positives = torch.full((batch,), positive, device=chosen_logits.device)
    negatives = 1 - positives
    return functional.cross_entropy(chosen_logits, positives, reduction="none") + functional.cross_entropy(
        rejected_logits, negatives, reduction="none"
    )
