"""Soft edges for cut-outs, with fur and whiskers: closed-form matting and foreground colours, by pymatting."""

import cv2
import numpy as np

from predictor import box_around

SOLVED = 2**18  # pixels: larger crops are solved at this size, and the alpha is enlarged along the photo's edges
BAND = 0.02  # of the pet's diagonal: half the width of the band in which alpha is solved
RADIUS = 4  # pixels of the guided filter's window, at the solved size


def matte(rgba: np.ndarray, probs: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Cut the pet out with a soft alpha, and with the pet's own colours where they mix with the background's.

    Alpha is solved in a band along the mask's outline (Levin et al., "A Closed-Form Solution to Natural Image Matting",
    2008), wider where the network is unsure; colours follow Germer et al., "Fast Multi-Level Foreground Estimation".

    Args:
        rgba: (H, W, 4) uint8; its own transparency is kept.
        probs: (H, W) float32.
        mask: (H, W) bool.

    Returns:
        (H, W, 4) uint8.
    """
    from pymatting import estimate_alpha_cf, estimate_foreground_ml  # the first import compiles for half a minute

    result = np.zeros_like(rgba)
    if not mask.any():
        return result
    box = box_around(mask)
    image, mask, probs = rgba[box][..., :3] / 255.0, mask[box].astype(np.uint8), probs[box]
    height, width = mask.shape
    scale = min(1.0, (SOLVED / mask.size) ** 0.5)
    small = max(2, round(width * scale)), max(2, round(height * scale))  # of cv2: width first
    image_small, mask_small, probs_small = (
        cv2.resize(one, small, interpolation=cv2.INTER_AREA).clip(0, one.max()) for one in (image, mask * 255, probs)
    )
    inside, outside = ((mask_small > 127) == value for value in (True, False))
    reach = max(2, round(BAND * np.hypot(*small)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    is_pet = cv2.erode(inside.view(np.uint8), kernel) & (probs_small > 0.9)
    is_background = cv2.erode(outside.view(np.uint8), kernel) & (probs_small < 0.1)
    if not is_pet.any() or not is_background.any():  # too thin, or all of the photo
        alpha = inside.astype(np.float64)
    else:
        alpha = estimate_alpha_cf(image_small, np.where(is_pet, 1.0, np.where(is_background, 0.0, 0.5)))
    if scale < 1:
        alpha = enlarge(alpha, image_small, image)
    colours = estimate_foreground_ml(image, alpha)
    cutout = np.dstack((colours, alpha * rgba[box][..., 3] / 255))
    result[box] = np.round(cutout.clip(0, 1) * 255).astype(np.uint8)
    result[result[..., 3] == 0] = 0  # nothing of the background stays in the file
    return result


def enlarge(alpha: np.ndarray, image_small: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Enlarge alpha along the edges of the photo: the fast guided filter (He and Sun, 2015) on its grey values."""
    guide_small, guide = (cv2.cvtColor(one.astype(np.float32), cv2.COLOR_RGB2GRAY) for one in (image_small, image))
    alpha = alpha.astype(np.float32)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (2 * RADIUS + 1, 2 * RADIUS + 1))

    centre, alpha_mean = mean(guide_small), mean(alpha)
    slope = (mean(guide_small * alpha) - centre * alpha_mean) / (mean(guide_small**2) - centre**2 + 1e-4)
    offset = alpha_mean - slope * centre
    size = image.shape[1::-1]
    slope, offset = (cv2.resize(mean(one), size, interpolation=cv2.INTER_LINEAR) for one in (slope, offset))
    return (slope * guide + offset).clip(0, 1).astype(np.float64)
