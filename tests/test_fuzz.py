"""Damaged and hostile files, drawn with a fixed seed: each is read, or refused in one line that names it."""

import io
import random
from collections.abc import Callable
from pathlib import Path

from plumbing.cli import UserError
from plumbing.images import decode_image, decode_photo, decode_raw

import numpy as np
import pytest
import torch
from PIL import Image
from test_checkpoint import contents

from checkpoint import load_checkpoint
from oxford_pet import image_path, read_columns, read_split, trimap_path
from trimap import decode_trimap


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Flip a bit, overwrite four bytes, or cut; mostly near the beginning, where the headers are."""
    at = int(rng.random() ** 2 * len(data))
    kind = rng.choice(("flip", "overwrite", "cut"))
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    return data[:at] + (rng.choice((b"\0\0\0\0", b"\xff\xff\xff\x7f")) + data[at + 4 :] if kind == "overwrite" else b"")


def is_read(read: Callable[[], object], begins: Path) -> bool:
    """Call ``read``; False if it raised a UserError, which has to be one line."""
    try:
        read()
    except UserError as error:
        message = str(error)
        assert message.startswith(str(begins)) and "\n" not in message and len(message) < 500 + len(str(begins)), (
            message
        )
        return False
    return True


def photos() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 4), dtype=np.uint8)
    trimap, colours, exif = Image.fromarray(noise[..., 0] % 3 + 1), Image.fromarray(noise), Image.Exif()
    exif[0x0112] = 6  # rotated
    files = []
    for kind, mode, options in (
        *(("JPEG", mode, {"exif": exif}) for mode in ("L", "RGB", "CMYK")),
        *(("PNG", mode, {"exif": exif}) for mode in ("1", "LA", "P", "RGBA")),
        *(("TIFF", "RGB", {"compression": kind}) for kind in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
        ("TIFF", "F", {}),
        ("WEBP", "RGBA", {}),
        ("BMP", "RGB", {}),
        ("GIF", "RGB", {"save_all": True, "append_images": [colours.convert("RGB")]}),
        ("PNG", None, {}),
    ):
        (colours.convert(mode) if mode else trimap).save(file := io.BytesIO(), kind, **options)
        files.append(file.getvalue())
    return files


@pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged tags
def test_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)  # more would take long
    path, rng, read = tmp_path / "x.jpg", random.Random(0), []
    decoders = (decode_image, decode_raw, decode_trimap, lambda path: decode_photo(path.read_bytes(), path))
    for data in photos() * 10:
        path.write_bytes(damaged(data, rng))
        read += [is_read(lambda decode=decode: decode(path), path) for decode in decoders]
    assert 0.1 < np.mean(read) < 0.9


def test_checkpoints(tiny_network: None, tmp_path: Path) -> None:
    path, rng, read = tmp_path / "x.pth", random.Random(0), []
    for state in (contents(), contents()["model"]):
        for is_zip in (True, False):
            torch.save(state, file := io.BytesIO(), _use_new_zipfile_serialization=is_zip)
            for _ in range(50):
                path.write_bytes(damaged(file.getvalue(), rng))
                read.append(is_read(lambda: load_checkpoint(path), path))
    assert 0.01 < np.mean(read) < 0.9


HOSTILE = ("..", ".", "/etc/x", "a/b", ".x", "\0", "\ufeffa_1", "a" * 300, "\udcff", "cat_1 1 1 1\ncat_1")


@pytest.mark.parametrize("name", HOSTILE)
def test_lists(name: str, tmp_path: Path) -> None:
    (tmp_path / "annotations" / "trimaps").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    for split in ("trainval", "valid", "test"):
        text = f"dog_1 1 1 1\n{name} 1 1 1\n".encode(errors="surrogateescape")
        (tmp_path / "annotations" / f"{split}.txt").write_bytes(text)

    def read() -> None:
        for listed in (
            *read_columns(tmp_path, "trainval"),
            *read_split(tmp_path, "train"),
            *read_split(tmp_path, "test"),
        ):
            for path in (image_path(tmp_path, listed), trimap_path(tmp_path, listed)):
                assert path.resolve().parent in (tmp_path / "images", tmp_path / "annotations" / "trimaps")

    is_read(read, tmp_path / "annotations")
