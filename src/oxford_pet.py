"""The data: download, check, split, decode once.

Source: Parkhi et al., "Cats and Dogs" (CVPR 2012), https://www.robots.ox.ac.uk/~vgg/data/pets/, CC BY-SA 4.0.
A trimap's pixels are 1 (pet), 2 (background) or 3 (boundary).
"""

import argparse
import hashlib
import io
import math
import os
import shutil
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from atomic import atomic_write
from augment import BACKGROUND, BOUNDARY, PET
from options import DATASET, ArgumentParser, UserError, positive_int, run_script

MODES = ("train", "valid", "test")
FOLDER = "oxford-iiit-pet"
cv2.setNumThreads(1)  # the pictures are spread over threads below; inside one picture more threads only get in the way


# ---------------------------------------------------------------------------------------------- where, and which


def find_root(data_path: str | Path) -> Path:
    """The data set's own folder, given that folder, the one above it, or the one that holds ``dataset/``.

    Raises:
        UserError: none of the three holds ``annotations/trainval.txt``.
    """
    data_path = Path(data_path)
    candidates = (data_path, data_path / FOLDER, data_path / "dataset" / FOLDER)
    for root in candidates:
        if (root / "annotations" / "trainval.txt").is_file():
            return root
    raise UserError(
        f"no data set at {data_path}: no annotations/trainval.txt in it, nor in its {FOLDER}/ or dataset/{FOLDER}/; "
        "`python src/oxford_pet.py --download` fetches the real one"
    )


def read_list(root: Path, name: str) -> list[str]:
    """The first word of each line of ``annotations/<name>.txt``, in file order."""
    path = root / "annotations" / f"{name}.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {path}: {error}") from error
    return [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]


def read_split(root: Path, mode: str) -> list[str]:
    """The names of a split's samples: every tenth of trainval.txt, from its first on, is valid, the others train.

    Args:
        mode: train (3312 of the real data), valid (368) or test (3669).
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, not one of {', '.join(MODES)}")
    if mode == "test":
        return read_list(root, "test")
    names = read_list(root, "trainval")
    return names[::10] if mode == "valid" else [name for index, name in enumerate(names) if index % 10]


def evenly_spaced(names: list[str], limit: int | None) -> list[str]:
    """At most ``limit`` of the names, spread evenly over the list, its first and last among them."""
    if limit is None or limit >= len(names):
        return names
    return [names[index] for index in np.linspace(0, len(names) - 1, limit).round().astype(int)]


def image_path(root: Path, name: str) -> Path:
    return root / "images" / f"{name}.jpg"


def trimap_path(root: Path, name: str) -> Path:
    return root / "annotations" / "trimaps" / f"{name}.png"


# ---------------------------------------------------------------------------------------------- the one decoder


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{path} is on a list but not there; `python src/oxford_pet.py --check` names all such"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def is_whole(data: bytes) -> bool:
    """Whether a JPEG or PNG has its end mark. OpenCV 4 fills what a truncated file lacks with grey, silently."""
    if data.startswith(b"\xff\xd8"):
        return data.rstrip(b"\0").endswith(b"\xff\xd9")
    return data.startswith(b"\x89PNG") and b"IEND" in data[-16:]


def jpeg_components(data: bytes) -> int:
    """How many colour components a JPEG has, by its frame header (ITU T.81, B.2.2); 0 if that is not found."""
    at = 2
    while data.startswith(b"\xff\xd8") and at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data[at + 9]
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0


def decode_image(path: Path) -> np.ndarray:
    """Decode a picture to RGB, whatever it is: grey, palette, RGBA, CMYK, 16 bit, GIF, and whatever its name ends in.

    An EXIF rotation is not applied, because the data set's trimaps lie on the pixels as they are stored.

    Returns:
        (H, W, 3) uint8. Transparency is dropped.

    Raises:
        UserError: missing, truncated, or not a picture.
    """
    return cv2.cvtColor(decode_bgr(path), cv2.COLOR_BGR2RGB)


def decode_bgr(path: Path) -> np.ndarray:
    """``decode_image`` with the channels in OpenCV's order: blue, green, red."""
    data = read_bytes(path)
    is_cmyk = b"Adobe" in data[:4096] and jpeg_components(data) == 4  # OpenCV would not see the inversion
    if is_whole(data) and not is_cmyk:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        with suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
            if image is not None:
                return image
    return cv2.cvtColor(_decode_with_pillow(path, data, "RGB"), cv2.COLOR_RGB2BGR)


def decode_trimap(path: Path) -> np.ndarray:
    """Decode a trimap: (H, W) uint8 of 1 pet, 2 background, 3 boundary; a palette's indices are the values.

    Raises:
        UserError: missing, truncated, not a picture, or with other values.
    """
    data = read_bytes(path)
    trimap = None
    if is_whole(data):
        with suppress(cv2.error):
            trimap = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if trimap is None or trimap.ndim != 2 or trimap.dtype != np.uint8:
        trimap = _decode_with_pillow(path, data, None)
    is_whole_numbered = trimap.dtype.kind in "iu"
    if trimap.ndim != 2 or not (is_whole_numbered and trimap.min() >= PET and trimap.max() <= BOUNDARY):
        values = np.unique(trimap)
        shown = ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
        raise UserError(
            f"{path} is no trimap: it should have one channel of 1 (pet), 2 (background), 3 (boundary); "
            f"its shape is {trimap.shape} and its values are {shown}"
        )
    return trimap.astype(np.uint8, copy=False)


def _decode_with_pillow(path: Path, data: bytes, mode: str | None) -> np.ndarray:
    """The strict, slow way, for what OpenCV cannot read or reads wrongly; mode None keeps the stored values."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            if mode == "RGB" and image.mode.startswith("I"):  # 16 bit: Pillow would clip, where the upper byte is meant
                return np.repeat((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
            return np.array(image if mode is None else image.convert(mode))
    except UnidentifiedImageError:
        raise UserError(f"{path} is not a picture that can be read") from None
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is broken: {error}") from error


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) to (height, width, 3): bilinear; where it shrinks to less than half, the mean over the area.

    Down to half, two neighbours leave nothing out, and OpenCV is much faster so.
    """
    if image.shape[:2] == (height, width):
        return image
    skips = 2 * height < image.shape[0] or 2 * width < image.shape[1]
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks and skips else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=interpolation)


def resize_trimap(trimap: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) to (height, width), nearest by pixel centres (cv2.INTER_NEAREST would shift by half a pixel)."""
    if trimap.shape == (height, width):
        return trimap
    return cv2.resize(trimap, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


# ---------------------------------------------------------------------------------------------- sample by sample


class SimpleOxfordPetDataset(torch.utils.data.Dataset):
    """The reports' data set: dicts of numpy arrays, decoded at each access. (Training uses ``load_split`` instead.)

    Args:
        root: the data set's own folder, the one above it, or the one that holds ``dataset/``.
        mode: train, valid or test.
        transform: called as ``transform(image=, mask=, trimap=)`` with arrays (H, W, 3), (H, W), (H, W) at the
            picture's own size; returns a dict of the same.
        image_size: pixels of height and width.

    A sample is a dict of image (3, S, S) uint8, mask (1, S, S) float32 of 0 and 1 (1 is pet or boundary), and trimap
    (1, S, S) uint8.
    """

    def __init__(
        self, root: str | Path, mode: str = "train", transform: Callable[..., dict] | None = None, image_size: int = 256
    ) -> None:
        self.root = find_root(root)
        self.mode = mode
        self.transform = transform
        self.image_size = image_size
        self.filenames = read_split(self.root, mode)

    def __len__(self) -> int:
        return len(self.filenames)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        name = self.filenames[index]
        image, trimap = decode_image(image_path(self.root, name)), decode_trimap(trimap_path(self.root, name))
        sample = {"image": image, "mask": (trimap != BACKGROUND).astype(np.float32), "trimap": trimap}
        if self.transform is not None:
            sample = self.transform(**sample)
        side = self.image_size
        return {
            "image": np.moveaxis(resize_image(sample["image"], side, side), -1, 0),
            "mask": resize_trimap(sample["mask"], side, side)[None],
            "trimap": resize_trimap(sample["trimap"], side, side)[None],
        }


def load_dataset(
    data_path: str | Path, mode: str, transform: Callable[..., dict] | None = None
) -> SimpleOxfordPetDataset:
    """The reports' way to a split: ``load_dataset("dataset/oxford-iiit-pet", "train")``."""
    return SimpleOxfordPetDataset(data_path, mode, transform)


# ---------------------------------------------------------------------------------------------- a split at once


@dataclass
class Split:
    """A whole split, decoded.

    Attributes:
        root: the data set's own folder.
        mode: train, valid or test.
        names: of the samples, in the order of the arrays.
        pixels: (n, S, S, 4) uint8: red, green, blue, trimap; on the device, or a memory map of the cache.
    """

    root: Path
    mode: str
    names: list[str]
    pixels: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device) -> "Split":
        """On the device, where it fits into half of the free memory; else it stays, and batches travel one by one."""
        fits = device.type != "cuda" or self.pixels.numel() < torch.cuda.mem_get_info(device)[0] / 2
        return Split(self.root, self.mode, self.names, self.pixels.to(device) if fits else self.pixels)

    def batches(self, order: Tensor, size: int, device: torch.device) -> Iterator[Tensor]:
        """Samples in an order, some at a time, as pixels (N, S, S, 4) uint8 on a device.

        Where they do not lie there, a thread fetches them one batch ahead, so that the device waits for no disk.

        Args:
            order: (n,) int64, on the CPU.
            size: of a batch; the last one may be smaller.
        """
        if self.pixels.device.type == device.type:
            yield from (self.pixels[part] for part in order.to(device).split(size))
            return

        def fetch(part: Tensor) -> Tensor:
            pixels = self.pixels[part]
            return pixels.pin_memory() if device.type == "cuda" else pixels

        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for part in order.split(size):
                ready, ahead = ahead, pool.submit(fetch, part)
                if ready:
                    yield ready.result().to(device, non_blocking=True)
            if ahead:
                yield ahead.result().to(device, non_blocking=True)


def images_and_trimaps(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(N, S, S, 4) uint8 of a split to images (N, 3, S, S) float32, 0 to 255, and trimaps (N, 1, S, S) uint8."""
    pixels = pixels.permute(0, 3, 1, 2)
    return pixels[:, :3].float(), pixels[:, 3:]


def load_split(data_path: str | Path, mode: str, image_size: int, limit: int | None = None) -> Split:
    """Decode a split to ``image_size``, once: the arrays are kept in ``.cache/`` of the data set's folder.

    A cached file is used only while every picture and trimap has the name, size and time of change that it had; it is
    written aside and renamed, so it is whole or not there, also when two runs start at once.

    Args:
        limit: keep only so many samples, evenly spaced.

    Raises:
        UserError: no data there, an empty list, or a file that cannot be read.
    """
    root = find_root(data_path)
    names = evenly_spaced(read_split(root, mode), limit)
    if not names:
        raise UserError(f"the {mode} split of {root} is empty")
    shape = (len(names), image_size, image_size, 4)
    prefix = f"{mode}-{len(names)}x{image_size}-"
    cached = root / ".cache" / f"{prefix}{_cache_key(root, names)}.npy"
    with suppress(OSError, ValueError, EOFError):  # not there, or not whole: decode
        pixels = np.load(cached, mmap_mode="c")
        if pixels.shape == shape:
            return Split(root, mode, names, torch.from_numpy(pixels))

    rows = tqdm(
        decode_all(root, names, image_size), f"decoding {mode}", len(names), unit=" images", leave=False, disable=None
    )
    try:
        cached.parent.mkdir(exist_ok=True)
        with atomic_write(cached) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for row in rows:
                file.write(row.data)
    except OSError as error:  # a folder that cannot be written, a full disk: the run needs no cache
        print(f"note: the decoded {mode} split is not kept in {cached.parent} ({error.strerror})", file=sys.stderr)
        return Split(root, mode, names, torch.from_numpy(np.stack(list(decode_all(root, names, image_size)))))
    finally:
        rows.close()
    for stale in cached.parent.glob(f"{prefix}*.npy"):
        if stale != cached:
            with suppress(OSError):  # Windows: another run still reads it
                stale.unlink()
    return Split(root, mode, names, torch.from_numpy(np.load(cached, mmap_mode="c")))


def decode_all(root: Path, names: list[str], image_size: int) -> Iterator[np.ndarray]:
    """(S, S, 4) uint8 of red, green, blue and trimap for each name, in order, decoded by a thread a core."""

    def decode(name: str) -> np.ndarray:
        image, trimap = decode_bgr(image_path(root, name)), decode_trimap(trimap_path(root, name))
        pixels = cv2.cvtColor(resize_image(image, image_size, image_size), cv2.COLOR_BGR2RGBA)
        return cv2.insertChannel(resize_trimap(trimap, image_size, image_size), pixels, 3)

    return in_threads(decode, names)


def in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """``map`` over a thread a core, in order, some 64 results ahead. (Decoding and coding release Python's lock.)"""
    with ThreadPoolExecutor(cpu_cores()) as pool:
        waiting = []
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 64:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def cpu_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cache_key(root: Path, names: list[str]) -> str:
    """Changes with whatever the decoded arrays depend on."""
    digest = hashlib.sha256(b"decoder 2")
    for name in names:
        for path in (image_path(root, name), trimap_path(root, name)):
            try:
                stat = path.stat()
            except OSError:
                read_bytes(path)  # says what is wrong with it
                raise
            digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------------------------------------- the script


def download(target: Path = DATASET) -> None:
    """Fetch the archives (about 0.8 GB), verify their checksums, unpack beside the target, and rename into place.

    What stands in ``target`` is never half a data set. Archives that were placed by hand in the target's parent folder
    are used instead of the network. An interrupted download leaves its finished archives for the next try.

    Raises:
        UserError: no network, a wrong checksum, or listed files that the archives do not hold.
    """
    if target.is_dir() and any(target.iterdir()):
        if not (target / "annotations" / "trainval.txt").is_file():
            raise UserError(f"{target} is no data set and not empty: name another folder with --data_path")
        missing = missing_files(target)
        if not missing:
            print(f"{target} is there and complete")
            return
        raise UserError(
            f"{target} is there, but lacks {len(missing)} listed files, {missing[0]} first; remove it to download anew"
        )

    from torchvision.datasets import OxfordIIITPet

    staging = target.with_name(f".{target.name}.download")
    unpacked = staging / FOLDER
    unpacked.mkdir(parents=True, exist_ok=True)
    archives = [url.rsplit("/", 1)[-1] for url, _ in OxfordIIITPet._RESOURCES]
    for archive in archives:
        if (target.parent / archive).is_file():
            print(f"using {target.parent / archive}")
            shutil.copy2(target.parent / archive, unpacked / archive)
    print(f"downloading to {target} (0.8 GB) ...", flush=True)
    for half_unpacked in ("images", "annotations"):
        shutil.rmtree(unpacked / half_unpacked, ignore_errors=True)
    try:
        OxfordIIITPet(str(staging), download=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(
            f"the download did not work: {error}\n"
            f"By hand: put {' and '.join(archives)} (from https://www.robots.ox.ac.uk/~vgg/data/pets/)\n"
            f"into {target.parent} and type the command again.\n"
            "Without the data: `python src/synthetic_pet.py dataset/drawn-pets` draws pets, "
            "and `--data_path dataset/drawn-pets` trains on them."
        ) from error
    missing = missing_files(unpacked)
    if missing:
        raise UserError(
            f"the archives lack {len(missing)} listed files, {missing[0]} first; remove {staging} and try again"
        )
    for archive in archives:
        (unpacked / archive).unlink()
    if target.is_dir():
        target.rmdir()
    os.replace(unpacked, target)
    shutil.rmtree(staging)
    print(f"wrote {target}")


def missing_files(root: Path) -> list[Path]:
    """The pictures and trimaps that are listed but not there."""
    names = [name for listed in ("trainval", "test") for name in read_list(root, listed)]
    return [path for name in names for path in (image_path(root, name), trimap_path(root, name)) if not path.is_file()]


def shrink(root: Path, output: Path, side: int) -> None:
    """Write a copy of the data set with all listed pictures (JPEG, quality 90) and trimaps at side x side pixels.

    Raises:
        UserError: the output folder exists, or a file cannot be read.
    """
    if output.exists():
        raise UserError(f"{output} exists already; name another folder or remove it")
    staging = output.with_name(f".{output.name}.{os.getpid()}")
    names = read_list(root, "trainval") + read_list(root, "test")
    try:
        (staging / "images").mkdir(parents=True)
        (staging / "annotations" / "trimaps").mkdir(parents=True)
        for path in sorted((root / "annotations").glob("[!.]*.txt")):
            shutil.copy2(path, staging / "annotations")
        rows = tqdm(decode_all(root, names, side), "shrinking", len(names), unit=" images", leave=False, disable=None)
        for name, row in zip(names, rows, strict=True):
            for path, pixels in (
                (image_path(staging, name), cv2.cvtColor(row[:, :, :3], cv2.COLOR_RGB2BGR)),
                (trimap_path(staging, name), row[:, :, 3]),
            ):
                _, data = cv2.imencode(path.suffix, pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
                path.write_bytes(data)
        (staging / "README").write_text(
            f"{len(names)} pictures and trimaps of the data set {root.name}, resized to {side}x{side} pixels\n"
            "(the aspect ratio is not kept); pictures coded again as JPEG of quality 90.\n"
            "If this is Oxford-IIIT Pet (Parkhi et al., 2012): its licence is CC BY-SA 4.0, and the copyright\n"
            "of the pictures remains with their owners.\n"
        )
        os.replace(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    print(
        f"wrote {len(names)} pictures and trimaps to {output}\n"
        f"next: python src/train.py --model R --data_path {output} --image_size {side}"
    )


@dataclass
class Examined:
    """What ``check`` finds out about a listed sample that could be read."""

    name: str
    kinds: tuple[str, str]  # what the files of picture and trimap really are
    colour_mode: str  # of the picture, as Pillow calls it
    digest: str  # of the decoded picture
    sizes: tuple[str, str]  # of picture and trimap, as 500x375
    has_pet: bool


def examine(root: Path, name: str) -> Examined | UserError:
    """Read a sample; the error, where it cannot be read."""
    from PIL import Image

    paths = image_path(root, name), trimap_path(root, name)
    try:
        image, trimap = decode_image(paths[0]), decode_trimap(paths[1])
    except UserError as error:
        return error
    with Image.open(paths[0]) as opened_image, Image.open(paths[1]) as opened_trimap:
        kinds, colour_mode = (opened_image.format, opened_trimap.format), opened_image.mode
    sizes = tuple(f"{array.shape[1]}x{array.shape[0]}" for array in (image, trimap))
    digest = hashlib.sha256(sizes[0].encode() + image.tobytes()).hexdigest()
    return Examined(name, kinds, colour_mode, digest, sizes, bool((trimap == PET).any()))


def check(root: Path) -> bool:
    """Read every listed file and print what is odd, each by name.

    Returns:
        Whether training would be right: false for missing or unreadable files, trimap values outside 1, 2, 3, sizes
        that differ, a name in two places, or an empty split. The rest (a wrong ending, a trimap without a pet, the same
        picture twice) is said too, but the original has such things, and training can live with them.
    """
    from imutils.paths import list_images

    splits = {mode: read_split(root, mode) for mode in MODES}
    places: dict[str, list[str]] = {}
    for mode, names in splits.items():
        for name in names:
            places.setdefault(name, []).append(mode)
    print(f"{root}\n" + ", ".join(f"{mode} {len(names)}" for mode, names in splits.items()))

    threads = in_threads(lambda name: examine(root, name), places)
    read = list(tqdm(threads, "reading", len(places), unit=" images", leave=False, disable=None))
    good = [one for one in read if isinstance(one, Examined)]
    same: dict[str, list[str]] = {}
    for one in good:
        same.setdefault(one.digest, []).append(one.name)
    twins = [[f"{name} ({', '.join(places[name])})" for name in names] for names in same.values() if len(names) > 1]
    leaks = [names for names in twins if all(any(f"({m}" in name for name in names) for m in ("train", "test"))]
    stray = [
        path.name
        for folder in (root / "images", root / "annotations" / "trimaps")
        for path in sorted(map(Path, list_images(folder)))
        if path.stem not in places and not path.name.startswith(".")
    ]
    print(f"sizes {_extremes(one.sizes[0] for one in good)}; colour modes {dict(Counter(o.colour_mode for o in good))}")

    def tell(title: str, entries: list[str], mark: str = "note") -> bool:
        print(f"{mark if entries else 'ok':>5} {len(entries):5} {title}" + "".join(f"\n{'':12}{e}" for e in entries))
        return not entries

    right = [
        tell("splits without a sample", [mode for mode in MODES if not splits[mode]], "WRONG"),
        tell("names in two places", [f"{n} ({', '.join(m)})" for n, m in places.items() if len(m) > 1], "WRONG"),
        tell(
            "missing, unreadable, or with trimap values outside 1, 2, 3",
            [str(one) for one in read if isinstance(one, UserError)],
            "WRONG",
        ),
        tell(
            "where picture and trimap differ in size",
            [f"{o.name}: {' and '.join(o.sizes)}" for o in good if o.sizes[0] != o.sizes[1]],
            "WRONG",
        ),
    ]
    tell(
        "files that are not what their name says",
        [f"{o.name}.jpg is {o.kinds[0]}" for o in good if o.kinds[0] not in ("JPEG", "MPO")]
        + [f"{o.name}.png is {o.kinds[1]}" for o in good if o.kinds[1] != "PNG"],
    )
    tell("pictures not stored as RGB", [f"{o.name}: {o.colour_mode}" for o in good if o.colour_mode != "RGB"])
    tell("trimaps without a pet", [o.name for o in good if not o.has_pet])
    tell("pictures that stand in both train and test", [", ".join(names) for names in leaks])
    tell("other pictures that stand there twice", [", ".join(names) for names in twins if names not in leaks])
    tell("files on no list, not used", stray)
    print("training would be right" if all(right) else "training would be wrong: mend what is marked WRONG")
    return all(right)


def _extremes(sizes: Iterable[str]) -> str:
    """The smallest and the largest size, by area."""
    by_area = sorted(set(sizes), key=lambda size: math.prod(map(int, size.split("x"))))
    return f"{by_area[0]} to {by_area[-1]}" if by_area else "none"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Download, check or shrink the Oxford-IIIT Pet data set.")
    parser.add_argument("--data_path", type=Path, default=DATASET, help="the data set's folder")
    parser.add_argument("--download", action="store_true", help="fetch it to --data_path (0.8 GB)")
    parser.add_argument(
        "--check",
        action="store_true",
        help="read every listed file and name what is odd; exit code 1 if training would be wrong",
    )
    parser.add_argument(
        "--shrink", type=positive_int, metavar="N", help="write a copy with pictures and trimaps at N x N pixels"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the copy goes")
    args = parser.parse_args(argv)
    if not (args.download or args.check or args.shrink):
        parser.error("say what to do: --download, --check or --shrink N --output DIR")
    if bool(args.shrink) != bool(args.output):
        parser.error("--shrink N and --output DIR go together")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.download:
        download(args.data_path)
    root = find_root(args.data_path)
    if args.shrink:
        shrink(root, args.output, args.shrink)
    if args.check and not check(root):
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
