"""Photos of any format in, masks and cut-outs out, at the photo's own size, EXIF rotation applied."""

import glob
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from plumbing.cli import UserError, plural
from plumbing.files import atomic_write
from plumbing.images import PHOTO_SUFFIXES, decode_photo, in_threads, read_bytes

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from predictor import Predictor
from report import overlay

PRODUCTS = ("mask", "overlay", "cutout", "probability")
BATCH = 8  # photos predicted together
STRIP = 256  # rows of a photo that are cut out together
MIXED = 2  # pixels: within this distance of the outline, colours may mix pet and background


@dataclass(frozen=True)
class PhotoOptions:
    """What to write for each photo, and where."""

    output: Path
    write: tuple[str, ...] = ("mask", "cutout")  # of PRODUCTS
    threshold: float = 0.5  # a pixel is pet above this probability
    largest_only: bool = False  # keep only the largest connected part of the mask
    overwrite: bool = False
    recursive: bool = False  # search subfolders too


class Photo(NamedTuple):
    """A photo to predict."""

    file: Path
    target: Path  # below the output folder: what the names of its results begin with


# ---------------------------------------------------------------------------------------------- which photos


def find_photos(inputs: Sequence[str], options: PhotoOptions) -> list[Photo]:
    """Find photos by file, folder (by their endings), or pattern such as ``*.png``.

    Subfolders are mirrored in the output. Photos with the same stem keep their ending: ``a.jpg_mask.png``.

    Raises:
        UserError: an input names no photo, or two photos would be written under one name.
    """
    names: dict[Path, Path] = {}  # by file, its name in the output
    for text in inputs:
        matches = [text] if Path(text).exists() else sorted(glob.glob(text, recursive=True))
        found = [photos_at(Path(match), options.recursive) for match in matches]
        if not any(found):
            hint = "" if options.recursive else " (--recursive searches subfolders too)"
            problem = f"no photo in this folder{hint}" if found else "no such file or folder, and no file matches it"
            raise UserError(f"--input {text}: {problem}")
        for part in found:
            names |= {file.resolve(): name for file, name in part.items()}
    stems = Counter(name.with_suffix("") for name in names.values())
    files_of: dict[Path, Path] = {}  # by target
    for file, name in names.items():
        target = name if stems[name.with_suffix("")] > 1 else name.with_suffix("")
        if target in files_of:
            raise UserError(f"{files_of[target]} and {file} have the same name: give each an --output of its own")
        files_of[target] = file
    return [Photo(file, target) for target, file in files_of.items()]


def photos_at(path: Path, recursive: bool) -> dict[Path, Path]:
    """The photos at a path, each with its name in the output. Skips a folder's hidden files and earlier results."""
    if not path.is_dir():
        return {path: Path(path.name)}
    results = tuple(f"_{product}.png" for product in PRODUCTS)
    return {
        file: file.relative_to(path)
        for file in sorted(path.rglob("*") if recursive else path.iterdir())
        if file.suffix.lower() in PHOTO_SUFFIXES and not file.name.startswith(".") and not file.name.endswith(results)
    }


def result_path(photo: Photo, product: str, options: PhotoOptions) -> Path:
    target = options.output / photo.target
    return target.with_name(f"{target.name}_{product}.png")


def missing_results(photo: Photo, options: PhotoOptions) -> list[str]:
    """The products to write for a photo: all with ``overwrite``, else those without a file."""
    return [name for name in options.write if options.overwrite or not result_path(photo, name, options).exists()]


# ---------------------------------------------------------------------------------------------- one photo


def clean_mask(probs: np.ndarray, options: PhotoOptions) -> np.ndarray:
    """Threshold probabilities, (H, W) float32, to a mask, (H, W) bool."""
    mask = probs > options.threshold
    if options.largest_only and mask.any():
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
        mask = labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    return mask


def cut_out(rgba: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Cut the pet out, with a soft edge of a pixel or two and no halo of background colours.

    Pixels near the outline mix pet and background. They take the mean colour of the pet's interior nearby.

    Args:
        rgba: (H, W, 4) uint8; its own transparency is kept.
        mask: (H, W) bool.

    Returns:
        (H, W, 4) uint8.
    """
    result = np.zeros_like(rgba)
    margin = 4 * MIXED
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    columns = slice(max(0, left - margin), left + width + margin)
    for row in range(max(0, top - margin), top + height + margin, STRIP):  # strips: a large photo needs little memory
        first = max(0, row - margin)
        strip = _cut_out_strip(rgba[first : row + STRIP + margin, columns], mask[first : row + STRIP + margin, columns])
        result[row : row + STRIP, columns] = strip[row - first : row - first + STRIP]
    return result


def _cut_out_strip(rgba: np.ndarray, mask: np.ndarray) -> np.ndarray:
    alpha = cv2.GaussianBlur(mask.astype(np.uint8) * 255, (5, 5), 0.8)
    inside = cv2.erode(mask.astype(np.uint8), np.ones((2 * MIXED + 1, 2 * MIXED + 1), np.uint8)).astype(np.float32)
    window = (4 * MIXED + 1, 4 * MIXED + 1)
    weight = cv2.boxFilter(inside, -1, window)
    edge = (alpha > 0) & (inside == 0) & (weight > 1e-6)  # parts too thin to have an inside keep their colours
    result = np.dstack((rgba[..., :3], cv2.multiply(alpha, rgba[..., 3], scale=1 / 255)))
    for channel in range(3):
        nearby = cv2.boxFilter(rgba[..., channel] * inside, -1, window)
        result[edge, channel] = (nearby[edge] / weight[edge] + 0.5).astype(np.uint8)
    result[alpha == 0] = 0  # nothing of the background stays in the file
    return result


def encode_png(array: np.ndarray) -> bytes:
    """Encode (H, W), (H, W, 3) RGB or (H, W, 4) RGBA uint8 as PNG, at the fastest compression level."""
    codes = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    array = cv2.cvtColor(array, codes[array.shape[2]]) if array.ndim == 3 else array
    return cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def write_results(photo: Photo, rgba: np.ndarray, probs: np.ndarray, options: PhotoOptions) -> int:
    """Write a photo's missing results; returns how many."""
    mask = clean_mask(probs, options)
    draw = {
        "mask": lambda: mask.astype(np.uint8) * 255,
        "overlay": lambda: overlay(rgba[..., :3], mask),
        "cutout": lambda: cut_out(rgba, mask),
        "probability": lambda: np.round(probs * 255).astype(np.uint8),
    }
    missing = missing_results(photo, options)
    for product in missing:
        path = result_path(photo, product, options)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(encode_png(draw[product]()))
    return len(missing)


# ---------------------------------------------------------------------------------------------- all photos


def read_photos(photos: Iterable[Photo]) -> Iterator[tuple[Photo, np.ndarray | UserError]]:
    """Decode photos to (H, W, 4) uint8 in threads, in order. A photo that cannot be read gives its error."""

    def read(photo: Photo) -> tuple[Photo, np.ndarray | UserError]:
        try:
            return photo, decode_photo(read_bytes(photo.file), photo.file)
        except UserError as error:
            return photo, error

    return in_threads(read, photos, ahead=1)


def predict_photos(predictor: Predictor, photos: list[Photo], options: PhotoOptions) -> int:
    """Predict photos and write their results. Photos that cannot be read are named and skipped.

    Returns:
        How many could not be read.
    """
    todo = [photo for photo in photos if missing_results(photo, options)]
    if len(todo) < len(photos):
        print(f"{plural(len(photos) - len(todo), 'photo')} done already; --overwrite redoes them")
    started, written, errors = time.monotonic(), 0, 0
    bar = tqdm(read_photos(todo), "photos", len(todo), unit=" photos", leave=False, disable=None)
    batch: list[tuple[Photo, np.ndarray]] = []

    def finish() -> int:
        probs = predictor.predict([rgba[..., :3] for _, rgba in batch], BATCH)
        jobs = ((photo, rgba, prob, options) for (photo, rgba), prob in zip(batch, probs, strict=True))
        count = sum(in_threads(lambda job: write_results(*job), jobs, ahead=1))
        batch.clear()
        return count

    for photo, rgba in bar:
        if isinstance(rgba, UserError):
            bar.write(f"error: {rgba}", file=sys.stderr)
            errors += 1
            continue
        batch.append((photo, rgba))
        if len(batch) == BATCH or sum(one.nbytes for _, one in batch) > 2**26:
            written += finish()
    if batch:
        written += finish()
    seconds = time.monotonic() - started
    done = len(todo) - errors
    rate = f" ({done / seconds:.1f} photos/s)" if done else ""
    print(f"wrote {plural(written, 'file')} of {plural(done, 'photo')} to {options.output} in {seconds:.1f} s{rate}")
    if errors:
        print(f"{plural(errors, 'photo')} could not be read")
    return errors


def cut_out_stream(predictor: Predictor, options: PhotoOptions) -> None:
    """Read one photo from standard input, and write its cut-out as PNG to standard output."""
    rgba = decode_photo(sys.stdin.buffer.read(), "standard input")
    mask = clean_mask(predictor(rgba[..., :3]), options)
    sys.stdout.buffer.write(encode_png(cut_out(rgba, mask)))
    sys.stdout.buffer.flush()


def set_pixel_limit(megapixels: float) -> None:
    """Have Pillow refuse larger photos: a small file can decode to more than fits in memory."""
    Image.MAX_IMAGE_PIXELS = int(megapixels * 1e6)
    warnings.simplefilter("error", Image.DecompressionBombWarning)
