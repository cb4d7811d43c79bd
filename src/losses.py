"""Losses on logits. Each takes logits, target and weight, (N, 1, H, W), and returns a scalar.

To add one, write it here, add it to ``LOSSES``, and name it in a recipe (recipes.py).
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def mean_over_images(values: Tensor, weight: Tensor) -> Tensor:
    """Average values, (N, 1, H, W), over each image's pixels of weight 1, then over the images of the batch."""
    weight = weight.float().flatten(1)
    return ((values.flatten(1) * weight).sum(1) / weight.sum(1).clamp_min(1)).mean()


def bce_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Binary cross-entropy per pixel; arguments and result as in ``bce_dice_loss``."""
    bce = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    return mean_over_images(bce, weight)


def mse_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Squared error of the sigmoid per pixel (report lab3); arguments and result as in ``bce_dice_loss``."""
    return mean_over_images((logits.float().sigmoid() - target.float()).square(), weight)


def bce_dice_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Binary cross-entropy per pixel plus soft Dice per image (V-Net, Milletari et al., 2016, without the squares).

    Args:
        logits: (N, 1, H, W), any float dtype; computed in float32.
        target, weight: (N, 1, H, W) bool, from ``trimap.target_and_weight``.

    Returns:
        A scalar, the mean over the images of the batch.
    """
    bce = bce_loss(logits, target, weight)
    logits, target, weight = logits.float().flatten(1), target.float().flatten(1), weight.float().flatten(1)
    probs, target = logits.sigmoid() * weight, target * weight
    smooth = 1.0  # never divides by 0; an empty prediction of an empty target costs nothing
    dice = (2 * (probs * target).sum(1) + smooth) / (probs.sum(1) + target.sum(1) + smooth)
    return bce + (1 - dice).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "bce_dice": bce_dice_loss,
    "bce": bce_loss,
    "mse": mse_loss,
}
