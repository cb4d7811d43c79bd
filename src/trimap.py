"""The values of a trimap, and how they become a target and a weight; no other module knows them."""

from pathlib import Path

from plumbing.cli import UserError
from plumbing.images import decode_raw

import cv2
import numpy as np
import torch
from torch import Tensor

PET, BACKGROUND, BOUNDARY = 1, 2, 3
INNER_BOUNDARY = 4  # in decoded pixels only: the part of the boundary band that is nearer to the pet
BOUNDARIES = ("pet", "background", "ignore", "middle")  # what the boundary band may count as


def target_and_weight(trimaps: Tensor, boundary: str) -> tuple[Tensor, Tensor]:
    """Split trimaps into the target (which pixels are pet) and the weight (which pixels count).

    Args:
        trimaps: (..., H, W) uint8: 1 pet, 2 background, 3 boundary, 4 boundary nearer to the pet.
        boundary: what a boundary pixel counts as, one of ``BOUNDARIES``; by ``middle``, 4 is pet and 3 background.

    Returns:
        target and weight, bool, of the shape of ``trimaps``; the weight is false only where the boundary is ignored.
    """
    target = trimaps != BACKGROUND if boundary == "pet" else trimaps == PET
    if boundary == "middle":
        target |= trimaps == INNER_BOUNDARY
    weight = trimaps < BOUNDARY if boundary == "ignore" else torch.ones_like(target)
    return target, weight


def split_boundary(trimap: np.ndarray) -> np.ndarray:
    """Split the boundary band along its middle line, where the fur ends: band pixels nearer to the pet become 4.

    A pixel at equal distances becomes 4. Without any pet the band stays 3; with pet but no background it becomes 4.

    Args:
        trimap: (H, W) uint8 of 1, 2 and 3, at its own size (resizing first would move the middle line).

    Returns:
        (H, W) uint8 of 1, 2, 3 and 4.
    """
    split = trimap.copy()
    if not (trimap == PET).any():
        return split
    # All outside this rectangle is background, so a margin of 1 holds the nearest background pixel of each pixel.
    x, y, width, height = cv2.boundingRect((trimap != BACKGROUND).view(np.uint8))
    window = split[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]
    to_pet, to_background = (
        cv2.distanceTransform((window != value).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for value in (PET, BACKGROUND)
    )
    # The last bit of OpenCV's distances differs from call to call, so equal ones need a tolerance.
    window[(window == BOUNDARY) & (to_pet < to_background + 1e-3)] = INNER_BOUNDARY
    return split


def without_split(trimaps: np.ndarray) -> np.ndarray:
    """Undo ``split_boundary``: 4 becomes 3 again, in an array of any shape."""
    return np.minimum(trimaps, BOUNDARY)


def decode_trimap(path: Path) -> np.ndarray:
    """Decode a trimap: (H, W) uint8 of 1 pet, 2 background, 3 boundary; a palette's indices are the values.

    Raises:
        UserError: missing, truncated, not an image, more than one channel, or values other than 1, 2 and 3.
    """
    trimap = decode_raw(path)
    is_integer = trimap.dtype.kind in "iu"
    if trimap.ndim != 2 or not (is_integer and trimap.min() >= PET and trimap.max() <= BOUNDARY):
        values = np.unique(trimap)
        shown = ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
        channels = f"{trimap.shape[2]} channels of " if trimap.ndim == 3 else ""
        raise UserError(
            f"{path} is not a trimap of 1 (pet), 2 (background), 3 (boundary): it has {channels}the values {shown}; "
            "tools/import_masks.py makes trimaps of other masks"
        )
    return trimap.astype(np.uint8, copy=False)


def resize_trimap(trimap: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W) to (height, width), nearest by pixel centres (cv2.INTER_NEAREST would shift by half a pixel)."""
    if trimap.shape == (height, width):
        return trimap
    return cv2.resize(trimap, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
