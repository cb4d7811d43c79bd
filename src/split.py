"""A split of the data set: decoded once to one array, cached, and read batch by batch on any device."""

import hashlib
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from plumbing.cache import cached_array
from plumbing.cli import UserError, shell
from plumbing.images import decode_image, in_threads, largest_side, resize_image

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from oxford_pet import evenly_spaced, find_root, image_path, read_split, trimap_path
from trimap import decode_trimap, resize_trimap, split_boundary, target_and_weight, without_split


@dataclass
class Split:
    """A decoded, cached split.

    Attributes:
        root: the data set's own folder.
        mode: train, valid or test.
        names: of the samples, in the order of the pixels.
        pixels: (n, S, S, 4) uint8: red, green, blue, trimap (``split_boundary``); on the device, or a memory map.
        fingerprint: CRC-32 of names, images and trimaps as in the files; independent of the folder.
    """

    root: Path
    mode: str
    names: list[str]
    pixels: Tensor
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def source_side(self) -> int:
        """The largest height or width of the images as stored, in pixels."""
        return max(in_threads(lambda name: largest_side(image_path(self.root, name)), self.names))

    def to(self, device: torch.device) -> "Split":
        """Move the pixels to a device if they fit into half of its free memory; else ``batches`` transfers them."""
        room = torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else math.inf
        if device.type == "mps":
            room = min(2**31, torch.mps.recommended_max_memory() / 2)  # its indices have 32 bits
        return replace(self, pixels=self.pixels.to(device)) if self.pixels.numel() < room else self

    def batches(self, order: Tensor, size: int, device: torch.device) -> Iterator[Tensor]:
        """Yield samples in the given order as pixels (N, S, S, 4) uint8 on a device.

        Pixels that are elsewhere are fetched ahead by threads, so the device does not wait for the disk.

        Args:
            order: (n,) int64, indices of samples, on the CPU.
            size: of a batch; the last one may be smaller.
        """
        if self.pixels.device.type == device.type or not len(order):
            yield from (self.pixels[part] for part in order.to(device).split(size) if len(part))
            return

        def fetch(part: Tensor) -> Tensor:
            pixels = self.pixels[part]
            return pixels.pin_memory() if device.type == "cuda" else pixels

        for pixels in in_threads(fetch, order.split(size), ahead=1):
            yield pixels.to(device, non_blocking=True)


def images_and_trimaps(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Split (N, S, S, 4) uint8 pixels into images (N, 3, S, S) float32, 0 to 255, and trimaps (N, 1, S, S) uint8."""
    pixels = pixels.permute(0, 3, 1, 2)  # (N, 4, S, S)
    return pixels[:, :3].float(), pixels[:, 3:]


def load_split(data_path: str | Path, mode: str, image_size: int, limit: int | None = None) -> Split:
    """Decode a split to ``image_size``, once: the pixels are kept in ``.cache/`` of the data set's folder.

    They are decoded anew when the name, size or modification time of an image or trimap changes.

    Args:
        limit: keep only so many samples, evenly spaced.

    Raises:
        UserError: no data set there, an empty list, or a file that is missing or cannot be read.
    """
    root = find_root(data_path)
    names = evenly_spaced(read_split(root, mode), limit)
    if not names:
        raise UserError(f"the {mode} split of {root} is empty")
    pixels, fingerprint = cached_array(
        root / ".cache",
        f"{mode}-{len(names)}x{image_size}",
        _hash_files(root, names),
        (len(names), image_size, image_size, 4),
        lambda: decode_all(root, names, image_size),
        partial(_fingerprint, names),
    )
    return Split(root, mode, names, torch.from_numpy(pixels), fingerprint)


def targets_lost(split: Split, boundary: str, look_at: int = 200) -> tuple[int, int | None]:
    """How many targets have foreground in their files and none at the split's size, of those without (at most 200).

    Returns:
        Their number, and the smallest of 2, 4 and 8 times the size at which none is lost; None if there is none.
    """
    empty = [not target_and_weight(pixels[..., 3], boundary)[0].any() for pixels in split.pixels]
    names = evenly_spaced([name for name, is_empty in zip(split.names, empty, strict=True) if is_empty], look_at)
    trimaps = [split_boundary(decode_trimap(trimap_path(split.root, name))) for name in names]

    def lost_at(side: int | None) -> int:
        resized = [resize_trimap(trimap, side, side) if side else trimap for trimap in trimaps]
        return sum(not target_and_weight(torch.from_numpy(trimap), boundary)[0].any() for trimap in resized)

    never_there, side = lost_at(None), split.pixels.shape[1]
    enough = next((side * factor for factor in (2, 4, 8) if lost_at(side * factor) == never_there), None)
    return len(names) - never_there, enough


def decode_all(root: Path, names: list[str], image_size: int, task: str = "decoding") -> Iterator[np.ndarray]:
    """Yield the pixels of each name in order, (S, S, 4) uint8: red, green, blue, trimap."""

    def decode(name: str) -> np.ndarray:
        image = decode_image(image_path(root, name))
        trimap = split_boundary(decode_trimap(trimap_path(root, name)))
        if image.shape[:2] != trimap.shape:
            (height, width), (rows, columns) = image.shape[:2], trimap.shape
            raise UserError(
                f"{image_path(root, name)} has {width}x{height} pixels, its trimap {columns}x{rows}; all such files: "
                f"{shell('python', 'tools/check_data.py', root)}"
            )
        pixels = cv2.cvtColor(resize_image(image, image_size, image_size), cv2.COLOR_RGB2RGBA)
        return cv2.insertChannel(resize_trimap(trimap, image_size, image_size), pixels, 3)

    yield from tqdm(in_threads(decode, names), task, len(names), unit=" images", leave=False, disable=None)


def _fingerprint(names: list[str], pixels: np.ndarray) -> str:
    crc = zlib.crc32("\n".join(names).encode())
    for start in range(0, len(names), 64):
        part = pixels[start : start + 64].copy()
        part[..., 3] = without_split(part[..., 3])
        crc = zlib.crc32(part.data, crc)
    return f"{crc:08x}"


def _hash_files(root: Path, names: list[str]) -> str:
    """Hash all that the decoded pixels depend on, without reading the files."""
    digest = hashlib.sha256(b"decoder 5")
    for name in names:
        for path in (image_path(root, name), trimap_path(root, name)):
            try:
                stat = path.stat()
            except OSError as error:
                reason = f"{path} is listed but cannot be read ({error.strerror})"
                raise UserError(f"{reason}; all such files: {shell('python', 'tools/check_data.py', root)}") from None
            digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
