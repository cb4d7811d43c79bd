"""Masks as run-length encodings in a CSV file, as Kaggle's competitions take them."""

import csv
import io
from pathlib import Path

from plumbing.files import atomic_write
from plumbing.images import decode_raw, in_threads

import numpy as np


def encode_rle(mask: np.ndarray) -> str:
    """Encode a mask, (H, W) bool, as ``start length start length ...``; pixels are counted from 1, down the columns."""
    edges = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False, append=False)).reshape(-1, 2)
    return " ".join(f"{start + 1} {end - start}" for start, end in edges)


def write_rle(path: Path, masks: dict[str, Path]) -> None:
    """Write one row ``id,mask`` for each mask file; the mask of an empty one is empty.

    Args:
        masks: PNG files of 0 and 255, by the id of their image.
    """
    rows = in_threads(lambda file: encode_rle(decode_raw(file) > 0), masks.values())
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("id", "mask"), *zip(masks, rows, strict=True)])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
    print(f"wrote {path}: {len(masks)} masks, run-length encoded")
