"""Decode image files of any kind to arrays, and resize them. Every error message begins with the file's path."""

import io
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbing.cli import UserError, cpu_cores

import cv2
import numpy as np

if TYPE_CHECKING:
    from PIL import Image  # imported where it is used: training from the cache decodes nothing

LARGEST_FILE = 2**29  # bytes of an image or a list
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # MPO is JPEG; no others: some run programs to decode
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".mpo", ".heic", ".heif"}


def decode_image(path: Path) -> np.ndarray:
    """Decode an image to RGB: grey, palette, RGBA, CMYK, 16 bit, GIF, ..., whatever its suffix.

    Ignores EXIF rotation: trimaps align with the stored pixels.

    Returns:
        (H, W, 3) uint8. Transparency is dropped.

    Raises:
        UserError: missing, truncated, not an image, or of unknown range.
    """
    with opened(read_bytes(path), path) as image:
        _raise_if_range_is_unknown(image, path)
        image.info.pop("transparency", None)  # Pillow warns when it converts a palette that has some
        return np.array(_to_mode(image, "RGB"))


def decode_raw(path: Path) -> np.ndarray:
    """Decode an image to its stored values; for a palette image, these are the indices.

    Returns:
        (H, W) or (H, W, channels), of the stored dtype; 1 bit becomes uint8 of 0 and 255.

    Raises:
        UserError: missing, truncated, or not an image.
    """
    with opened(read_bytes(path), path) as image:
        return np.array(image.convert("L") if image.mode == "1" else image)


def decode_photo(data: bytes, name: object) -> np.ndarray:
    """The pixels of ``decode_photo_and_profile``, (H, W, 4) uint8 RGBA."""
    return decode_photo_and_profile(data, name)[0]


def decode_photo_and_profile(data: bytes, name: object) -> tuple[np.ndarray, bytes]:
    """Decode a photo as a viewer shows it: EXIF rotation applied, the first frame of an animation.

    Args:
        data: the file's content: JPEG, MPO, PNG, WebP, TIFF, BMP, GIF, and HEIC if pillow-heif is installed.
        name: begins the error message.

    Returns:
        (H, W, 4) uint8 RGBA, opaque if the file has no transparency; the ICC profile that gives these numbers their
        colours, empty if there is none. CMYK and grey become RGB without their profiles, which are of no use to RGB.

    Raises:
        UserError: broken, of another format, of unknown range, or too many pixels for Pillow's limit.
    """
    from PIL import ImageOps

    formats = list(PHOTO_FORMATS)
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
        formats.append("HEIF")
    if data[4:8] == b"ftyp" and "HEIF" not in formats:
        raise UserError(f"{name} is not an image that can be read (HEIC needs: pip install pillow-heif)")
    with opened(data, name, formats) as image:
        _raise_if_range_is_unknown(image, name)
        profile = image.info.get("icc_profile") or b""
        pixels = np.array(_to_mode(ImageOps.exif_transpose(image), "RGBA"))
        return pixels, profile if profile[16:20] == b"RGB " else b""


def largest_side(path: Path) -> int:
    """The larger of an image file's height and width, in pixels; reads the header only. Raises as ``decode_image``."""
    with opened(path, path) as image:
        return max(image.size)


@contextmanager
def opened(data: bytes | Path, name: object, formats: Sequence[str] = PHOTO_FORMATS) -> Iterator["Image.Image"]:
    """Open an image, to be decoded in the block. Pillow's errors become UserErrors that begin with ``name``."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(data if isinstance(data, Path) else io.BytesIO(data), formats=formats) as image:
            yield image
    except UnidentifiedImageError:
        raise UserError(f"{name} is not an image that can be read; those are {', '.join(formats)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the warning is an error in photos.py
        limit = f"{Image.MAX_IMAGE_PIXELS:,} pixels; for photos, --pixel_limit MEGAPIXELS allows more"
        raise UserError(f"{name} has over {limit}") from None
    except (OSError, SyntaxError, ValueError, TypeError, struct.error) as error:
        reason = str(error).split(" (")[0]  # drops Pillow's byte count, so that equal damage gives equal messages
        raise UserError(f"{name} is broken: {reason}") from None


def _raise_if_range_is_unknown(image: "Image.Image", name: object) -> None:
    """Raise UserError for more than 8 bit, unless it is 16 bit of which at least 13 are used."""
    is_16_bit = ";16" in str(image.tile)  # colours too, though Pillow then decodes their upper bytes only
    if image.mode in ("I", "F"):
        found, scale = "32-bit numbers, whose black and white are not known", "255 / WHITE"
    elif is_16_bit and np.max(image.getextrema()[:3]) < (4096 if image.mode.startswith("I") else 16):
        found, scale = "16-bit numbers below 4096, which would be almost black", "255 / 4095"
    else:
        return
    raise UserError(f"{name} holds {found}; save all images as 8 bit, such as (pixels * {scale}).astype('uint8')")


def _to_mode(image: "Image.Image", mode: str) -> "Image.Image":
    """Convert to RGB or RGBA, 8 bit; of 16 bit, which Pillow would clip, the upper byte."""
    from PIL import Image

    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    return image if image.mode == mode else image.convert(mode)


def read_bytes(path: Path) -> bytes:
    """Read a file of at most ``LARGEST_FILE`` bytes.

    Raises:
        UserError: it is missing, cannot be read, is larger, or is a pipe or a device, which may never end.
    """
    try:
        kind = path.stat()
        if not stat.S_ISREG(kind.st_mode):
            raise UserError(f"{path} is not a regular file")
        if kind.st_size > LARGEST_FILE:
            raise UserError(f"{path} has {kind.st_size:,} bytes, more than {LARGEST_FILE:,}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, 3) to (height, width, 3): bilinear, or the mean over the area when shrinking to less than half.

    Down to half, two neighbours leave no pixel out, and OpenCV is much faster so. Bilinear resizing in a direction that
    shrinks more would alias, also where the other one grows.
    """
    if 2 * height < image.shape[0] or 2 * width < image.shape[1]:
        smaller = min(width, image.shape[1]), min(height, image.shape[0])
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def in_threads(function: Callable[[Any], Any], items: Iterable[Any], ahead: int = 64) -> Iterator[Any]:
    """Map a function over items in one thread per core, in order, up to ``ahead`` results ahead of the consumer.

    For decoding and encoding, which release Python's lock.
    """
    cv2.setNumThreads(1)  # threads within one image would only compete with these
    with ThreadPoolExecutor(cpu_cores()) as pool:
        waiting = []
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
