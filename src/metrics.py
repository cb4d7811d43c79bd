"""Dice, IoU and boundary F-score; evaluate(), which scores a network on a split; bootstrap confidence intervals."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from plumbing import ranks

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from predictor import Predictor
from split import Split, images_and_trimaps
from trimap import target_and_weight

BOUNDARY_TOLERANCE = 0.0075  # of the boundary F-score, as a fraction of the image's diagonal
RESAMPLES = 10_000  # of the bootstrap


def overlap(pred: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection |P and T| and sum of areas |P| + |T| of each image, in pixels of weight true.

    From (N, 1, H, W) bool to (N,) float64 each (float32 on a device without float64).
    """
    dtype = torch.float32 if pred.device.type == "mps" else torch.float64
    pred, target = (pred & weight).flatten(1), (target & weight).flatten(1)
    return (pred & target).sum(1).to(dtype), (pred.sum(1) + target.sum(1)).to(dtype)


def dice_and_iou(intersection: Tensor, areas: Tensor) -> tuple[Tensor, Tensor]:
    """Dice = 2 |P and T| / (|P| + |T|) and IoU = |P and T| / |P or T|, from what ``overlap`` returns.

    Both are 1 if target and prediction are empty, and 0 if only one of them is.
    """
    empty = areas == 0
    dice = torch.where(empty, 1.0, 2 * intersection / areas)
    return dice, torch.where(empty, 1.0, intersection / (areas - intersection))


@dataclass
class Scores:
    """One entry per image, in the split's order; float64 unless stated."""

    dice: np.ndarray  # (n,)
    iou: np.ndarray  # (n,)
    empty_target: np.ndarray  # (n,) bool: the target has no foreground
    loss: float  # mean over the images; NaN without a criterion


def evaluate(
    predictor: Predictor,
    split: Split,
    batch_size: int,
    criterion: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    on_batch: Callable[[range, Tensor, Tensor], None] | None = None,
    between: Callable[[Iterator[Tensor]], Iterable[Tensor]] = iter,
) -> Scores:
    """Score a network on a split, image by image: batch size and number of ranks do not change the scores.

    The trimaps' boundary counts as in ``predictor.config``. Each rank scores its part of every batch.

    Args:
        criterion: the loss of logits, target and weight; the mean over a batch.
        on_batch: called with the images' indices in the split, their logits, (N, 1, S, S) float32, and their trimaps,
            (N, 1, S, S) uint8, both on the device.
        between: wraps the iterator of batches; may raise between two of them, to stop.
    """
    starts, order = range(0, len(split), batch_size), torch.arange(len(split))
    batches = between(split.batches(order, batch_size, predictor.device))
    bar = tqdm(batches, f"scoring {split.mode}", len(starts), unit=" batches", leave=False, disable=None)
    dtype = torch.float32 if predictor.device.type == "mps" else torch.float64
    scores = torch.zeros((4, len(split)), dtype=dtype, device=predictor.device)  # 0: of another rank's images
    for start, pixels in zip(starts, bar, strict=True):
        indices = range(start + ranks.rank(), start + len(pixels), ranks.world())
        if not indices:  # no image for this rank; keep looping: every batch synchronises the ranks
            continue
        images, trimaps = images_and_trimaps(pixels[ranks.rank() :: ranks.world()])
        logits = predictor.logits(images)
        target, weight = target_and_weight(trimaps, predictor.config.boundary)
        intersection, areas = overlap(logits > 0, target, weight)
        loss = criterion(logits, target, weight) if criterion else torch.full_like(areas[0], float("nan"))
        columns = (*dice_and_iou(intersection, areas), ~target.flatten(1).any(1), loss.expand_as(areas))
        scores[:, indices.start : indices.stop : indices.step] = torch.stack([column.to(dtype) for column in columns])
        if on_batch:
            on_batch(indices, logits, trimaps)
    dice, iou, empty, loss = ranks.all_sum(scores).cpu().numpy()  # one transfer from the device
    return Scores(dice, iou, empty.astype(bool), float(loss.mean()))


# ---------------------------------------------------------------------------------------------- shapes of masks


def boundary_f_score(pred: np.ndarray, target: np.ndarray) -> float:
    """F-score of the outline (Csurka et al., "What is a good evaluation measure for semantic segmentation?", 2013).

    Precision is the fraction of the predicted outline's pixels within ``BOUNDARY_TOLERANCE`` of the diagonal from the
    target's outline; recall is the reverse. An outline pixel is one of the mask with a 4-neighbour outside it; the
    image's border is no outline. Both masks are (H, W) bool. 1 if neither has an outline, 0 if only one has.
    """
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    outlines = [mask.astype(np.uint8) for mask in (pred, target)]
    outlines = [mask - cv2.erode(mask, cross) for mask in outlines]
    if not all(outline.any() for outline in outlines):
        return float(not any(outline.any() for outline in outlines))
    tolerance = BOUNDARY_TOLERANCE * np.hypot(*pred.shape)
    near = [cv2.distanceTransform(1 - outline, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= tolerance for outline in outlines]
    precision, recall = near[1][outlines[0] > 0].mean(), near[0][outlines[1] > 0].mean()
    return float(2 * precision * recall / max(precision + recall, 1e-12))


def perimeter(mask: np.ndarray) -> int:
    """The length of a mask's outline: how many pairs of neighbouring pixels differ. (H, W) bool."""
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())


def largest_part(mask: np.ndarray) -> float:
    """The fraction of a mask's pixels in its largest 8-connected part, 1 for an empty mask. (H, W) bool."""
    _, _, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    areas = statistics[1:, cv2.CC_STAT_AREA]  # without the background
    return float(areas.max() / areas.sum()) if len(areas) else 1.0


# ---------------------------------------------------------------------------------------------- bootstrap


def bootstrap(columns: np.ndarray) -> np.ndarray:
    """Means of resamples of the images, with replacement, the same for all columns; seeded.

    From (n, ...) float64, one row per image, to (RESAMPLES, ...).
    """
    rng, n, chunk = np.random.default_rng(0), len(columns), 100
    means = []
    for _ in range(RESAMPLES // chunk):
        drawn = rng.integers(0, n, (chunk, n)) + n * np.arange(chunk)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=chunk * n).reshape(chunk, n)  # how often each image was drawn
        means.append(counts @ columns.reshape(n, -1) / n)
    return np.concatenate(means).reshape(RESAMPLES, *columns.shape[1:])


def mean_ci(values: np.ndarray) -> dict[str, float]:
    """The mean of (n,) values, and ``low`` and ``high`` of its 95% bootstrap interval (percentiles)."""
    low, high = np.percentile(bootstrap(values), (2.5, 97.5))
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def paired_difference_ci(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """``mean_ci`` of a - b, two (n,) scores of the same images, and a ``verdict``: above, below or none.

    It is none if the interval includes 0, or for fewer than 6 images: differences of one sign have a chance of
    2 / 2^n (sign test), over 5% there.
    """
    ci = mean_ci(a - b)
    is_none = len(a) < 6 or ci["low"] <= 0 <= ci["high"]
    return {**ci, "verdict": "none" if is_none else "above" if ci["mean"] > 0 else "below"}
