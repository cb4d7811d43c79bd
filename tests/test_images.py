import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from plumbing.cli import UserError
from plumbing.images import decode_image, decode_raw, in_threads, resize_image

import cv2
import numpy as np
import pytest
from PIL import Image

from predictor import load_photo

COLOURS = np.zeros((16, 24, 3), np.uint8)  # red and green above blue and grey
COLOURS[:8, :12], COLOURS[:8, 12:], COLOURS[8:, :12], COLOURS[8:, 12:] = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (128,) * 3,
)
GREY = np.where(np.arange(24) < 12, 40, 100).astype(np.uint8)[None].repeat(16, 0)


def save(array: np.ndarray, kind: str, mode: str | None = None, **options: object) -> Callable[[Path], None]:
    image = Image.fromarray(array)
    image = image.convert(mode, palette=Image.Palette.ADAPTIVE) if mode else image
    return lambda path: image.save(path, kind, **options)


def save_16_bit_colours(path: Path) -> None:
    bgr = np.ascontiguousarray(COLOURS[:, :, ::-1].astype(np.uint16) * 257)
    path.write_bytes(cv2.imencode(".png", bgr)[1].tobytes())


EXIF = Image.Exif()
EXIF[0x0112] = 6  # turn by 90 degrees
WAYS_TO_SAVE: dict[str, Callable[[Path], None]] = {
    "jpg": save(COLOURS, "JPEG", quality=100, subsampling=0),
    "progressive jpg": save(COLOURS, "JPEG", quality=100, subsampling=0, progressive=True),
    "EXIF-rotated jpg": save(COLOURS, "JPEG", quality=100, subsampling=0, exif=EXIF),
    "CMYK jpg": save(COLOURS, "JPEG", "CMYK", quality=100),
    "png": save(COLOURS, "PNG"),
    "palette png": save(COLOURS, "PNG", "P"),
    "palette png with transparency": save(COLOURS, "PNG", "P", transparency=bytes(range(200))),
    "RGBA png": save(np.dstack((COLOURS, np.full((16, 24), 9, np.uint8))), "PNG"),
    "16-bit png": save_16_bit_colours,
    "GIF": save(COLOURS, "GIF", "P"),
    "BMP": save(COLOURS, "BMP"),
    "grey jpg": save(GREY, "JPEG", quality=100),
    "grey png": save(GREY, "PNG"),
    "grey LA png": save(np.dstack((GREY, 255 - GREY)), "PNG"),
    "grey 16-bit png": save(GREY.astype(np.uint16) * 257, "PNG"),
    "grey 16-bit tiff": save(GREY.astype(np.uint16) * 257, "TIFF"),
}


@pytest.mark.parametrize("way", WAYS_TO_SAVE)
def test_every_kind_of_image_is_read_under_any_ending(tmp_path: Path, way: str) -> None:
    path = tmp_path / "Abyssinian_34.jpg"
    WAYS_TO_SAVE[way](path)
    image, expected = decode_image(path), GREY[:, :, None].repeat(3, 2) if way.startswith("grey") else COLOURS
    assert (image.shape, image.dtype) == ((16, 24, 3), np.uint8)
    for part in (np.s_[2:6, 2:10], np.s_[2:6, 14:22], np.s_[10:14, 2:10], np.s_[10:14, 14:22]):
        np.testing.assert_allclose(image[part].astype(int), expected[part].astype(int), atol=4)


def test_a_mask_of_one_bit_is_read_as_0_and_255(tmp_path: Path) -> None:
    save(GREY > 50, "PNG")(tmp_path / "mask.png")
    values = decode_raw(tmp_path / "mask.png")
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values, np.where(GREY > 50, 255, 0))


DEEP: dict[str, tuple[str, Callable[[Path], None]]] = {
    "float": ("32-bit numbers", save(GREY.astype(np.float32) / 255, "TIFF")),
    "int32": ("32-bit numbers", save(GREY.astype(np.int32), "TIFF")),
    "12 of 16 bit": ("16-bit numbers below 4096", save(GREY.astype(np.uint16) * 16, "PNG")),
    "12 of 16 bit in colour": (
        "16-bit numbers below 4096",
        lambda path: path.write_bytes(cv2.imencode(".png", COLOURS.astype(np.uint16) * 16)[1].tobytes()),
    ),
}


@pytest.mark.parametrize("decode", [decode_image, load_photo])
@pytest.mark.parametrize("kind", DEEP)
def test_numbers_of_unknown_range_are_refused(tmp_path: Path, decode: Callable[[Path], np.ndarray], kind: str) -> None:
    path = tmp_path / "scan.jpg"
    found, write = DEEP[kind]
    write(path)
    with pytest.raises(UserError, match=rf"scan\.jpg holds {found}, .*save all images as 8 bit, such as \(pixels \*"):
        decode(path)


def test_bytes_behind_the_end_of_a_jpeg_do_not_matter(tmp_path: Path) -> None:
    """Cameras append bytes; the original data set has such files."""
    path = tmp_path / "pet.jpg"
    save(COLOURS, "JPEG")(path)
    expected = decode_image(path)
    path.write_bytes(path.read_bytes() + b"trailing words")
    np.testing.assert_array_equal(decode_image(path), expected)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path),
    "larger than all": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 2**40),
}


@pytest.mark.parametrize("decode", [decode_image, decode_raw, load_photo])
@pytest.mark.parametrize("what", NO_FILES)
def test_what_is_no_file_of_sensible_size_is_not_read(
    tmp_path: Path, decode: Callable[[Path], np.ndarray], what: str
) -> None:
    path = tmp_path / "pet.jpg"
    NO_FILES[what](path)
    with pytest.raises(UserError, match=r"pet\.jpg (is not a regular file|cannot be read|has 1,099,511,627,776 bytes)"):
        decode(path)


@pytest.mark.parametrize("decode", [decode_image, decode_raw, load_photo])
def test_postscript_runs_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decode: Callable[[Path], np.ndarray]
) -> None:
    """Pillow decodes it by calling Ghostscript."""
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}:{os.environ['PATH']}")
    path = tmp_path / "pet.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(UserError, match=r"pet\.jpg is not"):
        decode(path)
    assert not (tmp_path / "was-run").exists()


WAYS_TO_BREAK: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3]),
    "without its last bytes": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>404 Not Found</html>"),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "stored values"])
@pytest.mark.parametrize("way", WAYS_TO_BREAK)
def test_broken_file_is_one_line_that_begins_with_its_path(tmp_path: Path, kind: str, way: str) -> None:
    path = tmp_path / "Bombay_7.jpg"
    noise = np.random.default_rng(0).integers(1, 256, (40, 50, 3), dtype=np.uint8)
    decode = decode_raw if kind == "stored values" else decode_image
    Image.fromarray(noise[:, :, 0] if decode is decode_raw else noise).save(path, "JPEG" if kind == "JPEG" else "PNG")
    decode(path)
    WAYS_TO_BREAK[way](path)
    with pytest.raises(UserError) as caught:
        decode(path)
    assert str(caught.value).startswith(f"{path} ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_giant_size_in_a_header_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "giant"
    save(GREY, kind)(path)
    data = path.read_bytes()
    size, code = (struct.pack(">II", 24, 16), ">II") if kind == "PNG" else (struct.pack(">HH", 16, 24), ">HH")
    at = data.index(size)
    giant = data[:at] + struct.pack(code, 60_000, 60_000) + data[at + len(size) :]
    if kind == "PNG":  # the header's checksum
        giant = giant[:29] + struct.pack(">I", zlib.crc32(giant[12:29])) + giant[33:]
    path.write_bytes(giant)
    with pytest.raises(UserError, match=r"giant has over 89,478,485 pixels"):
        decode_image(path)


@pytest.mark.parametrize(("height", "width"), [(47, 65), (21, 25)])
def test_resizing_is_centred(height: int, width: int) -> None:
    """So it commutes with flips."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 2)
    for side in (20, 31):
        for axis in (0, 1):
            flipped = resize_image(np.ascontiguousarray(np.flip(image, axis)), side, side)
            difference = flipped.astype(int) - np.flip(resize_image(image, side, side), axis)
            assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("transpose", [False, True])
def test_stripes_do_not_alias_where_the_other_side_grows(transpose: bool) -> None:
    stripes = np.zeros((200, 3000, 3), np.uint8)
    stripes[:, ::2] = 255
    if transpose:
        stripes = np.ascontiguousarray(stripes.transpose(1, 0, 2))
    assert resize_image(stripes, 256, 256).std() < 5


def test_threads_keep_the_order_and_run_little_ahead() -> None:
    begun = []

    def slow_at_first(item: int) -> int:
        begun.append(item)
        time.sleep(0.01 if item < 3 else 0)
        return item * 10

    results = in_threads(slow_at_first, range(300))
    assert [next(results) for _ in range(10)] == list(range(0, 100, 10))
    assert len(begun) < 100
    assert list(results) == list(range(100, 3000, 10))
