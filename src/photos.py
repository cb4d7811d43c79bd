"""Photos of any format in, masks and cut-outs out, at the photo's own size, EXIF rotation applied."""

import errno
import glob
import hashlib
import json
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from plumbing.cli import UserError, plural, shell
from plumbing.files import atomic_write
from plumbing.images import PHOTO_SUFFIXES, decode_photo_and_profile, in_threads, read_bytes, resize_image

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from matting import matte
from predictor import Predictor
from report import draw_contact_sheet, overlay

SHEET, SHEET_PHOTOS = "contact_sheet.png", 24
PRODUCTS = ("mask", "overlay", "cutout", "probability")
BATCH = 8  # photos predicted together
STRIP = 256  # rows of a photo that are cut out together
PNG_HEADER = 33  # bytes: the signature and the chunk IHDR
MADE_BY = b"pet-segmentation\0"  # keyword of the text chunk that says what a result was made from
VERSION = 1  # of the drawing; raise it when other pixels come out of the same
SPECK = 0.05  # of the mask's area: smaller islands and holes are removed
MIXED = 2  # pixels: within this distance of the outline, colours may mix pet and background


@dataclass(frozen=True)
class PhotoOptions:
    """What to write for each photo, and where."""

    output: Path
    write: tuple[str, ...] = ("mask", "cutout")  # of PRODUCTS
    threshold: float = 0.5  # a pixel is pet above this probability
    largest_only: bool = False  # keep only the largest connected part of the mask
    matting: bool = False  # cut out with a soft alpha, by matting.py
    overwrite: bool = False
    recursive: bool = False  # search subfolders too


class Photo(NamedTuple):
    """A photo to predict."""

    file: Path
    target: Path  # below the output folder: what the names of its results begin with


class Job(NamedTuple):
    """A decoded photo and what to write of it."""

    photo: Photo
    rgba: np.ndarray  # (H, W, 4) uint8
    profile: bytes  # PNG chunk of its ICC profile; empty if it has none
    made_from: bytes  # PNG chunk of ``made_from_chunk``
    products: list[str]
    replaces: bool  # results that were made from something else


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
            unquoted = " ".join(inputs)
            guess = f"; did you mean --input {shell(unquoted)}?" if unquoted != text and Path(unquoted).exists() else ""
            raise UserError(f"--input {text}: {problem}{guess}")
        for part in found:
            names |= {file.resolve(): name for file, name in part.items()}
    # By casefold: on Windows and macOS, Cat.png and cat.png are one file.
    stems = Counter(str(name.with_suffix("")).casefold() for name in names.values())
    files_of: dict[str, Path] = {}  # by target
    photos = []
    for file, name in names.items():
        target = name if stems[str(name.with_suffix("")).casefold()] > 1 else name.with_suffix("")
        clash = files_of.setdefault(str(target).casefold(), file)
        if clash != file:
            raise UserError(f"{clash} and {file} have the same name: give each an --output of its own")
        photos.append(Photo(file, target))
    return photos


def photos_at(path: Path, recursive: bool) -> dict[Path, Path]:
    """The photos at a path, each with its name in the output. Skips a folder's hidden files and earlier results."""
    if not path.is_dir():
        return {path: Path(path.name)}
    results = tuple(f"_{product}.png" for product in PRODUCTS)
    below = glob.glob(f"{glob.escape(str(path))}/**", recursive=True)  # follows links to folders; rglob does not
    return {
        file: file.relative_to(path)
        for file in sorted(map(Path, below) if recursive else path.iterdir())
        if file.suffix.lower() in PHOTO_SUFFIXES and not file.name.startswith(".") and not file.name.endswith(results)
        if file.name != SHEET or not is_sheet(file)
    }


def is_sheet(path: Path) -> bool:
    """Whether a file is a contact sheet of this program."""
    return MADE_BY in path.read_bytes()[:200]


def result_path(photo: Photo, product: str, options: PhotoOptions) -> Path:
    target = options.output / photo.target
    return target.with_name(f"{target.name}_{product}.png")


def made_from_chunk(data: bytes, predictor: str, options: PhotoOptions) -> bytes:
    """The PNG text chunk of all that a result's pixels depend on.

    Args:
        data: the photo's file.
        predictor: its fingerprint.
    """
    no_pixels = ("output", "write", "overwrite", "recursive")
    facts = {name: value for name, value in asdict(options).items() if name not in no_pixels}
    facts |= {"version": VERSION, "photo": hashlib.sha256(data).hexdigest(), "predictor": predictor}
    return png_chunk(b"tEXt", MADE_BY + json.dumps(facts).encode())


def prepare(photo: Photo, predictor: str, options: PhotoOptions) -> Job | None:
    """Read a photo; None if all its results are there and would come out the same.

    Raises:
        UserError: the photo cannot be read, or a file that is no result of this program has a result's name.
    """
    data = read_bytes(photo.file)
    made_from, products, replaces = made_from_chunk(data, predictor, options), [], False
    for product in options.write:
        path = result_path(photo, product, options)
        try:
            with open(path, "rb") as file:
                found = file.read(PNG_HEADER + len(made_from))[PNG_HEADER:]
        except FileNotFoundError:
            found = None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        if found is not None and not found[4:].startswith(b"tEXt" + MADE_BY) and not options.overwrite:
            raise UserError(f"{path} is there, and does not say what it was made from; --overwrite replaces it")
        if found != made_from or options.overwrite:
            products.append(product)
            replaces |= found not in (None, made_from)
    if not products:
        return None
    rgba, profile = decode_photo_and_profile(data, photo.file)
    return Job(photo, rgba, profile_chunk(profile), made_from, products, replaces)


# ---------------------------------------------------------------------------------------------- one photo


def clean_mask(probs: np.ndarray, options: PhotoOptions) -> np.ndarray:
    """Threshold probabilities, (H, W) float32, to a mask, (H, W) bool, without specks.

    Islands and holes below ``SPECK`` of the mask's area go; with ``largest_only``, all islands but the largest.
    """
    mask = probs > options.threshold
    smallest = SPECK * mask.sum()
    labels, areas, _ = connected_parts(mask, connectivity=8)
    mask &= (areas >= (areas.max() if options.largest_only else smallest))[labels]
    labels, areas, is_inside = connected_parts(~mask, connectivity=4)
    return mask | (is_inside & (areas < smallest))[labels]


def connected_parts(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each pixel's part (0 outside the mask), and each part's area and whether it is clear of the image's border."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=connectivity)
    x, y, width, height, areas = stats.T
    areas[0] = 0
    is_inside = (x > 0) & (y > 0) & (x + width < mask.shape[1]) & (y + height < mask.shape[0])
    return labels, areas, is_inside


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


def encode_png(array: np.ndarray, *chunks: bytes) -> bytes:
    """Encode (H, W), (H, W, 3) RGB or (H, W, 4) RGBA uint8 as PNG, at the fastest compression level.

    Args:
        chunks: further ones, of ``png_chunk``.
    """
    codes = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    array = cv2.cvtColor(array, codes[array.shape[2]]) if array.ndim == 3 else array
    png = cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    return b"".join((png[:PNG_HEADER], *chunks, png[PNG_HEADER:]))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def profile_chunk(profile: bytes) -> bytes:
    """The PNG chunk of an ICC profile; empty if that is empty."""
    return profile and png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))


def write_results(job: Job, probs: np.ndarray, options: PhotoOptions) -> int:
    """Write a photo's results; returns how many.

    Raises:
        OSError: the disk is full.
        UserError: a result cannot be written, for another reason.
    """
    photo, rgba, mask = job.photo, job.rgba, clean_mask(probs, options)
    draw = {
        "mask": lambda: mask.astype(np.uint8) * 255,
        "overlay": lambda: overlay(rgba[..., :3], mask),
        "cutout": lambda: matte(rgba, probs, mask) if options.matting else cut_out(rgba, mask),
        "probability": lambda: np.round(probs * 255).astype(np.uint8),
    }
    for product in job.products:
        path = result_path(photo, product, options)
        profile = job.profile if product in ("overlay", "cutout") else b""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(encode_png(draw[product](), job.made_from, profile))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
    return len(job.products)


# ---------------------------------------------------------------------------------------------- all photos


def or_error(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, or the UserError that it raises: one photo's error stops no others."""
    try:
        return function(*arguments)
    except UserError as error:
        return error


def predict_photos(predictor: Predictor, photos: list[Photo], options: PhotoOptions) -> int:
    """Predict photos and write their results. Photos that fail are named, and all others done.

    Returns:
        How many failed.
    """
    started, counts, fingerprint = time.perf_counter(), Counter(), predictor.fingerprint()
    jobs = in_threads(lambda photo: or_error(prepare, photo, fingerprint, options), photos, ahead=1)
    bar = tqdm(jobs, "photos", len(photos), unit=" photos", leave=False, disable=None)
    batch: list[Job] = []

    def fail(error: UserError) -> None:
        bar.write(f"error: {error}", file=sys.stderr)
        counts["failed"] += 1

    def finish() -> None:
        probs = predictor.predict([job.rgba[..., :3] for job in batch], BATCH)
        pairs = zip(batch, probs, strict=True)
        results = in_threads(lambda pair: or_error(write_results, *pair, options), pairs, ahead=1)
        for job, result in zip(batch, results, strict=True):
            if isinstance(result, UserError):
                fail(result)
            else:
                counts.update(done=1, files=result, replaced=job.replaces)
        batch.clear()

    for job in bar:
        if isinstance(job, UserError):
            fail(job)
        elif job is None:
            counts["same"] += 1
        else:
            batch.append(job)
        if len(batch) == BATCH or sum(one.rgba.nbytes for one in batch) > 2**26:
            finish()
    if batch:
        finish()
    seconds, done = time.perf_counter() - started, counts["done"]
    rate = f" ({done / seconds:.1f} photos/s)" if done else ""
    wrote = f"wrote {plural(counts['files'], 'file')} of {plural(done, 'photo')}"
    print(f"{wrote} to {options.output} in {seconds:.1f} s{rate}")
    if counts["same"]:
        print(f"{plural(counts['same'], 'photo')} done already; --overwrite redoes them")
    if counts["replaced"]:
        print(f"{plural(counts['replaced'], 'photo')} had results of another photo, network or option; replaced")
    if counts["failed"]:
        print(f"{plural(counts['failed'], 'photo')} failed")
    return counts["failed"]


def write_contact_sheet(photos: list[Photo], options: PhotoOptions) -> None:
    """Write ``contact_sheet.png``: the first photos beside their cut-outs, on a chequerboard. Another's file stays."""
    path, tiles = options.output / SHEET, []
    if path.exists() and not is_sheet(path):
        print(f"note: {path} is not of this program, and stays")
        return
    for photo in photos[:SHEET_PHOTOS]:
        with suppress(UserError):  # a photo that failed was named
            rgba, _ = decode_photo_and_profile(read_bytes(result_path(photo, "cutout", options)), photo.file)
            image = decode_photo_and_profile(read_bytes(photo.file), photo.file)[0][..., :3]
            scale = min(1.0, 256 / max(rgba.shape[:2]))
            size = [max(1, round(side * scale)) for side in rgba.shape[:2]]
            small = resize_image(rgba, *size).astype(np.float32)
            rows, columns = np.indices(size) // 8 % 2
            board = np.where(rows ^ columns, 255, 205)[..., None]
            shown = board + (small[..., :3] - board) * (small[..., 3:] / 255)
            tiles.append((photo.target.name, [resize_image(image, *size), shown.round().astype(np.uint8)]))
    if tiles:
        sheet = draw_contact_sheet(tiles, columns=min(3, len(tiles)), labels=("photo", "cut-out"))
        with atomic_write(path) as file:
            file.write(encode_png(sheet, png_chunk(b"tEXt", MADE_BY)))
        print(f"wrote {path}")


def cut_out_stream(predictor: Predictor, options: PhotoOptions) -> None:
    """Read one photo from standard input, and write its cut-out as PNG to standard output."""
    rgba, profile = decode_photo_and_profile(sys.stdin.buffer.read(), "standard input")
    probs = predictor(rgba[..., :3])
    mask = clean_mask(probs, options)
    cutout = matte(rgba, probs, mask) if options.matting else cut_out(rgba, mask)
    sys.stdout.buffer.write(encode_png(cutout, profile_chunk(profile)))
    sys.stdout.buffer.flush()


def set_pixel_limit(megapixels: float) -> None:
    """Have Pillow refuse larger photos: a small file can decode to more than fits in memory."""
    Image.MAX_IMAGE_PIXELS = int(megapixels * 1e6)
    warnings.simplefilter("error", Image.DecompressionBombWarning)
