"""Losses on logits, and the one place where a trimap becomes what the network should say."""

import torch
import torch.nn.functional as F
from torch import Tensor

from augment import BACKGROUND, BOUNDARY, PET

BOUNDARIES = ("pet", "background", "ignore")  # what the boundary band of a trimap counts as


def truth_and_weight(trimaps: Tensor, boundary: str) -> tuple[Tensor, Tensor]:
    """Which pixels are pet, and which count at all.

    Args:
        trimaps: (N, 1, H, W) uint8: 1 pet, 2 background, 3 boundary.
        boundary: one of ``BOUNDARIES``.

    Returns:
        truth and weight, (N, 1, H, W) bool each; weight is false only where the boundary is ignored.
    """
    truth = trimaps != BACKGROUND if boundary == "pet" else trimaps == PET
    weight = trimaps != BOUNDARY if boundary == "ignore" else torch.ones_like(truth)
    return truth, weight


def mean_over_pictures(values: Tensor, weight: Tensor) -> Tensor:
    """The mean over the pictures of a batch of each picture's mean over the pixels that count; both (N, 1, H, W)."""
    weight = weight.float().flatten(1)
    return ((values.flatten(1) * weight).sum(1) / weight.sum(1).clamp_min(1)).mean()


def bce_loss(logits: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Binary cross-entropy per pixel; arguments and result as of ``bce_dice_loss``."""
    bce = F.binary_cross_entropy_with_logits(logits.float(), truth.float(), reduction="none")
    return mean_over_pictures(bce, weight)


def mse_loss(logits: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Squared error of the sigmoid per pixel (report lab3); arguments and result as of ``bce_dice_loss``."""
    return mean_over_pictures((logits.float().sigmoid() - truth.float()).square(), weight)


def bce_dice_loss(logits: Tensor, truth: Tensor, weight: Tensor, dice_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy per pixel plus soft Dice per picture (V-Net, Milletari et al., 2016, without the squares).

    Args:
        logits: (N, 1, H, W), any float dtype; computed in float32.
        truth, weight: (N, 1, H, W) bool, from ``truth_and_weight``.
        dice_weight: how much the Dice term counts beside the cross-entropy's 1.

    Returns:
        A scalar, the mean over the pictures of the batch.
    """
    bce = bce_loss(logits, truth, weight)
    logits, truth, weight = logits.float().flatten(1), truth.float().flatten(1), weight.float().flatten(1)
    probs, truth = logits.sigmoid() * weight, truth * weight
    smooth = 1.0  # a pixel's worth: an empty truth that is predicted empty costs nothing, and nothing divides by 0
    dice = (2 * (probs * truth).sum(1) + smooth) / (probs.sum(1) + truth.sum(1) + smooth)
    return bce + dice_weight * (1 - dice).mean()


LOSSES = {"bce_dice": bce_dice_loss, "bce": bce_loss, "mse": mse_loss}
