"""Stands in for the module that takes over evaluate.py's metrics."""

from typing import Any

import numpy as np

from evaluate import RESAMPLES, dice_and_iou, difference, overlap
from evaluate import estimate as mean_ci

__all__ = ["RESAMPLES", "dice_and_iou", "mean_ci", "overlap", "paired_difference_ci"]


def paired_difference_ci(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    result = difference(a, b)
    return {**result, "verdict": result.pop("called")} if "called" in result else result
