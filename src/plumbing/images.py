"""Decode image files of any kind to arrays, and resize them. Every error message begins with the file's path."""

import io
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from plumbing.cli import UserError, cpu_cores

import cv2
import numpy as np

LARGEST_FILE = 2**29  # bytes of an image or a list
LARGEST_PIXELS = 2**27  # of an image that OpenCV decodes; Pillow has its own limit, which is near
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # MPO is JPEG; no others: some run programs to decode
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".mpo", ".heic", ".heif"}


def decode_image(path: Path) -> np.ndarray:
    """Decode an image to RGB: grey, palette, RGBA, CMYK, 16 bit, GIF, ..., whatever its name ends in.

    An EXIF rotation is not applied, because the data set's trimaps lie on the pixels as they are stored.

    Returns:
        (H, W, 3) uint8. Transparency is dropped.

    Raises:
        UserError: missing, truncated, or not an image.
    """
    data = read_bytes(path)
    _, components = size_in_header(data)
    is_cmyk = b"Adobe" in data[:4096] and components == 4  # OpenCV ignores that Adobe inverts the channels
    if is_for_opencv(data) and not is_cmyk:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        with suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
            if image is not None:
                return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return _decode_with_pillow(data, path, "RGB")


def decode_raw(path: Path) -> np.ndarray:
    """Decode an image to the values that are stored; of a palette image, these are the indices.

    Returns:
        (H, W) or (H, W, channels), of the dtype that is stored.

    Raises:
        UserError: missing, truncated, or not an image.
    """
    data = read_bytes(path)
    if is_for_opencv(data):
        with suppress(cv2.error):
            values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if values is not None and values.ndim == 2 and values.dtype == np.uint8:  # OpenCV expands palettes to BGR
                return values
    return _decode_with_pillow(data, path, None)


def decode_photo(data: bytes, name: object) -> np.ndarray:
    """Decode a photo as a viewer shows it: EXIF rotation applied, the first frame of an animation.

    Args:
        data: the file's content: JPEG, MPO, PNG, WebP, TIFF, BMP, GIF, and HEIC where pillow-heif is installed.
        name: begins the error's message.

    Returns:
        (H, W, 4) uint8 RGBA; opaque where the file knows no transparency.

    Raises:
        UserError: broken, of another format, or with more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    formats = list(PHOTO_FORMATS)
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
        formats.append("HEIF")
    return _decode_with_pillow(data, name, "RGBA", formats)


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


def is_for_opencv(data: bytes) -> bool:
    """Whether a JPEG or PNG has its end mark and a sensible size.

    OpenCV 4 fills what a truncated file lacks with grey, silently, at whatever size its header claims.
    """
    if not 0 < size_in_header(data)[0] <= LARGEST_PIXELS:
        return False
    if data.startswith(b"\xff\xd8"):
        return data.rstrip(b"\0").endswith(b"\xff\xd9")
    at = 8  # a chunk that claims to go on behind the file's end would have OpenCV reserve gigabytes
    while at + 12 <= len(data) and data[at + 4 : at + 8] != b"IEND":
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return at + 12 <= len(data)


def size_in_header(data: bytes) -> tuple[int, int]:
    """The number of a PNG's or a JPEG's pixels, and of a JPEG's colour components (ITU T.81, B.2.2); 0 if unknown."""
    if data.startswith(b"\x89PNG"):
        return int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big"), 0
    at = 2
    while data.startswith(b"\xff\xd8") and at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, components = struct.unpack(">HHB", data[at + 5 : at + 10])
            return height * width, components
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 0


def _decode_with_pillow(
    data: bytes, name: object, mode: str | None, photo_formats: Sequence[str] | None = None
) -> np.ndarray:
    """Decode strictly and slowly; mode None keeps the stored values, photo formats are shown as by a viewer."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=photo_formats or PHOTO_FORMATS) as image:
            if mode is None:
                return np.array(image)
            if photo_formats:
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bit: Pillow would clip, so take the upper byte
                image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
            return np.array(image.convert(mode))
    except UnidentifiedImageError:
        is_heic = photo_formats and data[4:8] == b"ftyp" and "HEIF" not in photo_formats
        heic = " (HEIC needs: pip install pillow-heif)" if is_heic else ""
        raise UserError(f"{name} is not an image that can be read{heic}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit, more = 2 * Image.MAX_IMAGE_PIXELS, ""
        if photo_formats:
            limit, more = Image.MAX_IMAGE_PIXELS, "; --pixel_limit MEGAPIXELS allows more"
        raise UserError(f"{name} has over {limit:,} pixels{more}") from None
    except (OSError, SyntaxError, ValueError, TypeError, struct.error) as error:
        reason = str(error).split(" (")[0]  # without Pillow's count of bytes: the same for all files broken alike
        raise UserError(f"{name} is broken: {reason}") from None


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, 3) to (height, width, 3): bilinear, or the mean over the area when shrinking to less than half.

    Down to half, two neighbours leave no pixel out, and OpenCV is much faster so.
    """
    if image.shape[:2] == (height, width):
        return image
    skips = 2 * height < image.shape[0] or 2 * width < image.shape[1]
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks and skips else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=interpolation)


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
