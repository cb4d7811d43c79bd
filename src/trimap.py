"""The values of a trimap, and how they become a target and a weight; no other module knows them."""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from cli import UserError
from images import decode_raw

PET, BACKGROUND, BOUNDARY = 1, 2, 3
BOUNDARIES = ("pet", "background", "ignore")  # what the boundary band may count as


def target_and_weight(trimaps: Tensor, boundary: str) -> tuple[Tensor, Tensor]:
    """Split trimaps into the target (which pixels are pet) and the weight (which pixels count).

    Args:
        trimaps: (..., H, W) uint8: 1 pet, 2 background, 3 boundary.
        boundary: what a boundary pixel counts as, one of ``BOUNDARIES``.

    Returns:
        target and weight, bool, of the shape of ``trimaps``; the weight is false only where the boundary is ignored.
    """
    target = trimaps != BACKGROUND if boundary == "pet" else trimaps == PET
    weight = trimaps != BOUNDARY if boundary == "ignore" else torch.ones_like(target)
    return target, weight


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
