import hashlib
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import oxford_pet
from options import UserError
from oxford_pet import (
    SimpleOxfordPetDataset,
    Split,
    decode_image,
    decode_trimap,
    download,
    find_root,
    image_path,
    images_and_trimaps,
    in_threads,
    load_dataset,
    load_split,
    main,
    read_list,
    read_split,
    resize_image,
    resize_trimap,
    trimap_path,
)

SIDE = 32


class Elsewhere:
    """Pixels that are not on the device: a memory map that does not fit."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels, self.device, self.fetched = pixels, SimpleNamespace(type="disk"), 0

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        self.fetched += 1
        return self.pixels[index]


def test_batches_are_the_same_wherever_the_pixels_lie(drawn_pets: Path) -> None:
    split = load_split(drawn_pets, "train", SIDE)
    cpu, order = torch.device("cpu"), torch.randperm(18, generator=torch.Generator().manual_seed(0))
    here = list(split.batches(order, 4, cpu))
    assert [len(part) for part in here] == [4, 4, 4, 4, 2]
    assert torch.equal(torch.cat(here), split.pixels[order])
    away = Split(split.root, split.mode, split.names, Elsewhere(split.pixels))
    assert torch.equal(torch.cat(list(away.batches(order, 4, cpu))), split.pixels[order])
    away.pixels.fetched = 0
    batches = away.batches(order, 4, cpu)
    next(batches)
    batches.close()
    assert away.pixels.fetched <= 2  # one batch ahead, no further


def cache_files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".cache").iterdir())


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("this should not have been called")


# ---------------------------------------------------------------------------------------------- where, and which


def test_every_tenth_of_trainval_is_valid(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    names = [f"pet_{index}" for index in range(3680)]
    (tmp_path / "annotations" / "trainval.txt").write_text("".join(f"{name} 1 1 1\n" for name in names))
    (tmp_path / "annotations" / "test.txt").write_text("# a comment\nb_2 1 1 1\n\na_1 1 1 1\n")
    train, valid = read_split(tmp_path, "train"), read_split(tmp_path, "valid")
    assert (len(train), len(valid)) == (3312, 368)
    assert valid == [name for index, name in enumerate(names) if index % 10 == 0]
    assert train == [name for name in names if name not in set(valid)]
    assert read_split(tmp_path, "test") == ["b_2", "a_1"]
    with pytest.raises(ValueError, match=r"'trainval'.*train, valid, test"):
        read_split(tmp_path, "trainval")


@pytest.mark.parametrize("given", ["dataset/oxford-iiit-pet", "dataset", "."])
def test_data_path_may_be_the_folder_or_one_above_it(tmp_path: Path, given: str) -> None:
    root = tmp_path / "dataset" / "oxford-iiit-pet"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "trainval.txt").touch()
    assert find_root(tmp_path / given) == root
    assert find_root(str(tmp_path / given)) == root


def test_no_data_there_is_said_with_the_place_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.*--download"):
        load_split(tmp_path / "nowhere", "train", SIDE)


def test_missing_list_and_empty_split_are_said(pets: Path) -> None:
    (pets / "annotations" / "test.txt").write_text("")
    with pytest.raises(UserError, match=r"the test split of .* is empty"):
        load_split(pets, "test", SIDE)
    (pets / "annotations" / "test.txt").unlink()
    with pytest.raises(UserError, match=r"cannot read the list .*test\.txt"):
        load_split(pets, "test", SIDE)


# ---------------------------------------------------------------------------------------------- the one decoder


def four_colours() -> np.ndarray:
    """(16, 24, 3) uint8 RGB: red, green above blue, grey."""
    image = np.zeros((16, 24, 3), np.uint8)
    image[:8, :12], image[:8, 12:], image[8:, :12], image[8:, 12:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128,) * 3
    return image


def save_rotated_by_exif(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(four_colours()).save(path, "JPEG", quality=100, subsampling=0, exif=exif)


def save_16_bit(path: Path) -> None:
    sixteen = four_colours().astype(np.uint16) * 257
    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(sixteen[:, :, ::-1]))[1].tobytes())


WAYS_TO_SAVE: dict[str, Callable[[Path], None]] = {
    "jpg": lambda path: Image.fromarray(four_colours()).save(path, "JPEG", quality=100, subsampling=0),
    "progressive jpg": lambda path: Image.fromarray(four_colours()).save(
        path, "JPEG", quality=100, subsampling=0, progressive=True
    ),
    "EXIF-rotated jpg": save_rotated_by_exif,
    "CMYK jpg": lambda path: Image.fromarray(four_colours()).convert("CMYK").save(path, "JPEG", quality=100),
    "png": lambda path: Image.fromarray(four_colours()).save(path, "PNG"),
    "palette png": lambda path: Image.fromarray(four_colours()).quantize(8).save(path, "PNG"),
    "RGBA png": lambda path: Image.fromarray(np.dstack((four_colours(), np.full((16, 24), 9, np.uint8)))).save(
        path, "PNG"
    ),
    "16-bit RGB png": save_16_bit,
    "GIF": lambda path: Image.fromarray(four_colours()).quantize(8).save(path, "GIF"),
    "BMP": lambda path: Image.fromarray(four_colours()).save(path, "BMP"),
}


@pytest.mark.parametrize("way", WAYS_TO_SAVE)
def test_every_kind_of_picture_is_read_under_any_ending(tmp_path: Path, way: str) -> None:
    path = tmp_path / "Abyssinian_34.jpg"
    WAYS_TO_SAVE[way](path)
    image = decode_image(path)
    assert (image.shape, image.dtype) == ((16, 24, 3), np.uint8)
    inside = np.s_[2:6, 2:10], np.s_[2:6, 14:22], np.s_[10:14, 2:10], np.s_[10:14, 14:22]
    for part in inside:
        np.testing.assert_allclose(image[part].astype(int), four_colours()[part].astype(int), atol=4)


@pytest.mark.parametrize("mode", ["L jpg", "L png", "LA png", "16-bit png", "16-bit tiff", "1-bit png"])
def test_grey_pictures_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "grey.jpg"
    grey = np.tile(np.repeat(np.array([0, 255], np.uint8), 12), (16, 1))
    if mode != "1-bit png":
        grey[8:] = 100
    kind = mode.split()[1].replace("jpg", "jpeg")
    picture = {
        "16-bit": Image.fromarray(grey.astype(np.uint16) * 257),
        "LA": Image.fromarray(np.dstack((grey, 255 - grey))),
        "1-bit": Image.fromarray(grey > 0),
    }.get(mode.split()[0], Image.fromarray(grey))
    picture.save(path, kind, **({"quality": 100} if kind == "jpeg" else {}))
    image = decode_image(path)
    assert (image.shape, image.dtype) == ((16, 24, 3), np.uint8)
    np.testing.assert_allclose(image.astype(int), np.repeat(grey[:, :, None], 3, 2).astype(int), atol=3)


def test_jpeg_is_decoded_like_an_independent_decoder_does(drawn_pets: Path) -> None:
    path = image_path(drawn_pets, read_list(drawn_pets, "test")[0])
    with Image.open(path) as image:
        reference = np.asarray(image.convert("RGB")).astype(int)
    np.testing.assert_allclose(decode_image(path).astype(int), reference, atol=3)


@pytest.mark.parametrize("kind", ["8-bit", "16-bit", "palette"])
def test_trimap_is_read_by_value(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "trimap.png"
    trimap = np.random.default_rng(0).integers(1, 4, (13, 17), dtype=np.uint8)
    picture = Image.fromarray(trimap.astype(np.uint16) if kind == "16-bit" else trimap)
    if kind == "palette":
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    picture.save(path)
    decoded = decode_trimap(path)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, trimap)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.array([[0, 255], [255, 0]], np.uint8), "values are 0, 255"),
        (np.array([[1, 2], [3, 4]], np.uint8), "values are 1, 2, 3, 4"),
        (np.full((2, 2, 3), 2, np.uint8), r"shape is \(2, 2, 3\)"),
        (np.array([[257, 258], [258, 259]], np.uint16), "values are 257, 258, 259"),
    ],
    ids=["mask of 0 and 255", "a fourth value", "RGB", "16 bit"],
)
def test_what_is_no_trimap_is_refused_with_its_values(tmp_path: Path, pixels: np.ndarray, said: str) -> None:
    path = tmp_path / "pet_1.png"
    Image.fromarray(pixels).save(path)
    with pytest.raises(UserError, match=rf"pet_1\.png is no trimap.*1 \(pet\).*{said}"):
        decode_trimap(path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


WAYS_TO_BREAK: dict[str, Callable[[Path], object]] = {
    "truncated": truncated,
    "without its last bytes": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>404 Not Found</html>"),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("kind", ["jpg", "png", "trimap"])
@pytest.mark.parametrize("way", WAYS_TO_BREAK)
def test_broken_file_is_an_error_that_names_it(tmp_path: Path, kind: str, way: str) -> None:
    path = tmp_path / "Bombay_7.jpg"
    noise = np.random.default_rng(0).integers(1, 4, (40, 50, 3), dtype=np.uint8)
    if kind == "jpg":
        Image.fromarray(noise * 60).save(path, "JPEG")
    else:
        Image.fromarray(noise if kind == "png" else noise[:, :, 0]).save(path, "PNG")
    decode = decode_trimap if kind == "trimap" else decode_image
    decode(path)
    WAYS_TO_BREAK[way](path)
    with pytest.raises(UserError, match=r"Bombay_7\.jpg") as caught:
        decode(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("decode", [decode_image, decode_trimap])
@pytest.mark.parametrize("side", [20_000, 100_000])
def test_giant_size_in_a_header_is_an_error_that_names_the_file(
    tmp_path: Path, decode: Callable[[Path], np.ndarray], side: int
) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path = tmp_path / "giant.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with pytest.raises(UserError, match=r"giant\.png"):
        decode(path)


def test_jpeg_with_bytes_behind_its_end_is_read(tmp_path: Path) -> None:
    """Cameras write such files; the original data set has some."""
    path = tmp_path / "pet.jpg"
    WAYS_TO_SAVE["jpg"](path)
    expected = decode_image(path)
    path.write_bytes(path.read_bytes() + b"trailing words")
    np.testing.assert_array_equal(decode_image(path), expected)


@pytest.mark.parametrize(("height", "width"), [(47, 65), (63, 51), (21, 25)])
def test_resizing_is_centred(height: int, width: int) -> None:
    """So it commutes with flips. (From odd sizes no pixel's centre falls between two.)"""
    rng = np.random.default_rng(0)
    trimap = rng.integers(1, 4, (height, width), dtype=np.uint8)
    image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 2)
    for side in (24, 31):
        small = resize_trimap(trimap, side, side)
        assert small.shape == (side, side)
        centres = [((np.arange(side) + 0.5) * full / side).astype(int) for full in (height, width)]
        np.testing.assert_array_equal(small, trimap[np.ix_(*centres)])
        for axis in (0, 1):
            flipped = resize_image(np.ascontiguousarray(np.flip(image, axis)), side, side)
            difference = flipped.astype(int) - np.flip(resize_image(image, side, side), axis)
            assert np.abs(difference).max() <= 1
            flipped_small = resize_trimap(np.ascontiguousarray(np.flip(trimap, axis)), side, side)
            np.testing.assert_array_equal(flipped_small, np.flip(small, axis))


# ---------------------------------------------------------------------------------------------- sample by sample


def test_sample_is_the_dict_of_the_reports(drawn_pets: Path) -> None:
    dataset = load_dataset(drawn_pets, "valid")
    assert len(dataset) == 2
    sample = dataset[1]
    assert {key: (value.shape, value.dtype.name) for key, value in sample.items()} == {
        "image": ((3, 256, 256), "uint8"),
        "mask": ((1, 256, 256), "float32"),
        "trimap": ((1, 256, 256), "uint8"),
    }
    np.testing.assert_array_equal(sample["mask"], (sample["trimap"] == 1) | (sample["trimap"] == 3))
    assert set(np.unique(sample["trimap"])) == {1, 2, 3}
    original = decode_image(image_path(drawn_pets, read_split(drawn_pets, "valid")[1]))
    np.testing.assert_allclose(sample["image"].mean((1, 2)), original.mean((0, 1)), atol=1)


def test_transform_is_called_by_keyword_with_the_picture_at_its_own_size(drawn_pets: Path) -> None:
    seen = []

    def transform(**arrays: np.ndarray) -> dict[str, np.ndarray]:
        seen.append({key: value.shape for key, value in arrays.items()})
        return {key: value[:, ::-1] for key, value in arrays.items()}

    plain = SimpleOxfordPetDataset(drawn_pets, "train", image_size=SIDE)
    flipped = SimpleOxfordPetDataset(drawn_pets, "train", transform, image_size=SIDE)
    name = read_split(drawn_pets, "train")[3]
    height, width = decode_trimap(trimap_path(drawn_pets, name)).shape
    sample = flipped[3]
    assert seen == [{"image": (height, width, 3), "mask": (height, width), "trimap": (height, width)}]
    assert sample["image"].shape == (3, SIDE, SIDE)
    difference = sample["image"].astype(int) - plain[3]["image"][:, :, ::-1]
    assert np.abs(difference).max() <= 1


# ---------------------------------------------------------------------------------------------- a split at once


@pytest.mark.parametrize("mode", ["train", "valid", "test"])
def test_whole_split_holds_the_samples_of_the_dataset(drawn_pets: Path, mode: str) -> None:
    split, dataset = load_split(drawn_pets, mode, SIDE), SimpleOxfordPetDataset(drawn_pets, mode, image_size=SIDE)
    assert len(split) == len(dataset) == {"train": 18, "valid": 2, "test": 20}[mode]
    assert split.names == dataset.filenames
    images, trimaps = images_and_trimaps(split.pixels)
    for image, trimap, sample in zip(images, trimaps, (dataset[i] for i in range(len(dataset))), strict=True):
        np.testing.assert_array_equal(image.numpy(), sample["image"])
        np.testing.assert_array_equal(trimap.numpy(), sample["trimap"])


def test_cache_is_used_the_second_time_and_leaves_nothing_else(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_split(pets, "train", SIDE)
    assert len(cache_files(pets)) == 1
    monkeypatch.setattr(oxford_pet, "decode_bgr", refuse)
    second = load_split(pets, "train", SIDE)
    assert second.pixels.equal(first.pixels)
    assert second.names == first.names
    with pytest.raises(AssertionError):
        load_split(pets, "train", SIDE + 1)


@pytest.mark.parametrize("which", ["image", "trimap"])
def test_changed_file_is_decoded_anew_and_the_stale_cache_goes(pets: Path, which: str) -> None:
    before = load_split(pets, "train", SIDE).pixels.clone()
    other_size = load_split(pets, "train", 2 * SIDE, limit=4)
    stale = cache_files(pets)
    path = (image_path if which == "image" else trimap_path)(pets, read_split(pets, "train")[2])
    with Image.open(path) as picture:
        turned = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned.save(path)
    after = load_split(pets, "train", SIDE).pixels
    changed = (after != before).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [2]
    left = cache_files(pets)
    assert len(left) == 2
    assert len(set(left) & set(stale)) == 1
    assert load_split(pets, "train", 2 * SIDE, limit=4).pixels.equal(other_size.pixels)


def test_same_size_but_other_time_of_change_counts_as_changed(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_split(pets, "valid", SIDE)
    path = image_path(pets, read_split(pets, "valid")[0])
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
    monkeypatch.setattr(oxford_pet, "decode_bgr", refuse)
    with pytest.raises(AssertionError):
        load_split(pets, "valid", SIDE)


def other_array(whole: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((2, SIDE, SIDE, 3), np.uint8))
    return file.getvalue()


WAYS_TO_BREAK_A_CACHE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "header cut": lambda whole: whole[:40],
    "half": lambda whole: whole[: len(whole) // 2],
    "one byte short": lambda whole: whole[:-1],
    "zeros": lambda whole: bytes(len(whole)),
    "other array": other_array,
}


@pytest.mark.parametrize("way", WAYS_TO_BREAK_A_CACHE)
def test_broken_cache_is_made_again(pets: Path, way: str) -> None:
    expected = load_split(pets, "valid", SIDE).pixels.clone()
    (name,) = cache_files(pets)
    path = pets / ".cache" / name
    whole = path.read_bytes()
    path.write_bytes(WAYS_TO_BREAK_A_CACHE[way](whole))
    assert load_split(pets, "valid", SIDE).pixels.equal(expected)
    assert cache_files(pets) == [name]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("where", ["first", "last"])
def test_broken_picture_leaves_no_cache(pets: Path, where: str) -> None:
    path = image_path(pets, read_split(pets, "train")[0 if where == "first" else -1])
    truncated(path)
    with pytest.raises(UserError, match=path.name):
        load_split(pets, "train", SIDE)
    assert cache_files(pets) == []


def test_two_runs_that_decode_at_once_do_not_meet(
    pets: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One is in the midst of writing when the other does all of it."""
    begun, other_is_done = threading.Event(), threading.Event()
    decode_all, pixels = oxford_pet.decode_all, {}

    def decode_slowly(*arguments: object) -> Iterator[np.ndarray]:
        for row in decode_all(*arguments):
            yield row
            if threading.current_thread() is slow:
                begun.set()
                assert other_is_done.wait(20)

    def run(which: str) -> None:
        pixels[which] = load_split(pets, "train", SIDE).pixels

    monkeypatch.setattr(oxford_pet, "decode_all", decode_slowly)
    slow = threading.Thread(target=run, args=("slow",))
    slow.start()
    assert begun.wait(20)
    run("quick")
    other_is_done.set()
    slow.join(20)
    monkeypatch.setattr(oxford_pet, "decode_all", refuse)
    run("later")
    assert pixels["slow"].equal(pixels["quick"])
    assert pixels["later"].equal(pixels["quick"])
    assert len(cache_files(pets)) == 1
    assert "not kept" not in capfd.readouterr().err


def no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("why", ["cannot be made", "cannot be written"])
def test_folder_that_takes_no_cache_is_noted_and_the_data_is_right(
    pets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    if why == "cannot be made":
        (pets / ".cache").write_text("in the way")
    else:
        monkeypatch.setattr(oxford_pet, "atomic_write", no_room)
    split, dataset = load_split(pets, "valid", SIDE), SimpleOxfordPetDataset(pets, "valid", image_size=SIDE)
    np.testing.assert_array_equal(images_and_trimaps(split.pixels[1:2])[0][0].numpy(), dataset[1]["image"])
    assert "note: the decoded valid split is not kept" in capsys.readouterr().err


@pytest.mark.parametrize(("limit", "kept"), [(1, [0]), (2, [0, 19]), (5, [0, 5, 10, 14, 19]), (20, None), (99, None)])
def test_limit_keeps_samples_evenly_spaced(drawn_pets: Path, limit: int, kept: list[int] | None) -> None:
    split, names = load_split(drawn_pets, "test", SIDE, limit), read_split(drawn_pets, "test")
    assert split.names == ([names[index] for index in kept] if kept else names)
    assert len(split.pixels) == len(split.names)


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


def test_stray_files_do_not_matter(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The original archives hold Matlab files, and macOS's shadows of files."""
    expected = load_split(pets, "train", SIDE)
    for stray in ("images/._Bengal_1.jpg", "images/Bengal_1.mat", "annotations/trimaps/._Bengal_1.png"):
        (pets / stray).write_bytes(b"Mac OS X")
    (pets / "annotations" / "._trainval.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    assert load_split(pets, "train", SIDE).pixels.equal(expected.pixels)
    main(["--data_path", str(pets), "--check"])
    said = capsys.readouterr().out
    assert "Bengal_1." not in said
    assert "training would be right" in said


# ---------------------------------------------------------------------------------------------- --check


def test_check_of_good_data_says_so(drawn_pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--data_path", str(drawn_pets), "--check"])
    said = capsys.readouterr().out
    assert "train 18, valid 2, test 20" in said
    assert "training would be right" in said
    assert "WRONG" not in said and "note" not in said


def first_of(root: Path, mode: str) -> str:
    return read_split(root, mode)[0]


def plant_values(root: Path) -> str:
    path = trimap_path(root, first_of(root, "valid"))
    Image.fromarray(np.where(decode_trimap(path) == 2, 0, 255).astype(np.uint8)).save(path)
    return rf"{path.name}.*values are 0, 255"


def plant_sizes(root: Path) -> str:
    path = trimap_path(root, first_of(root, "test"))
    trimap = decode_trimap(path)
    Image.fromarray(trimap[:, :-3]).save(path)
    height, width = trimap.shape
    return rf"{path.stem}: {width}x{height} and {width - 3}x{height}"


def plant_twice(root: Path) -> str:
    name = first_of(root, "test")
    with open(root / "annotations" / "trainval.txt", "a") as file:
        file.write(f"{name} 1 1 1\n")
    return rf"{name} \(valid, test\)"


def plant_missing(path: Callable[[Path, str], Path]) -> Callable[[Path], str]:
    def plant(root: Path) -> str:
        gone = path(root, first_of(root, "train"))
        gone.unlink()
        return gone.name

    return plant


def plant_truncated(path: Callable[[Path, str], Path]) -> Callable[[Path], str]:
    def plant(root: Path) -> str:
        broken = path(root, first_of(root, "train"))
        truncated(broken)
        return broken.name

    return plant


def plant_empty_split(root: Path) -> str:
    (root / "annotations" / "test.txt").write_text("")
    return "test$"


WRONG = {
    "missing picture": plant_missing(image_path),
    "missing trimap": plant_missing(trimap_path),
    "truncated picture": plant_truncated(image_path),
    "truncated trimap": plant_truncated(trimap_path),
    "mask instead of a trimap": plant_values,
    "sizes that differ": plant_sizes,
    "name in two lists": plant_twice,
    "empty split": plant_empty_split,
}


@pytest.mark.parametrize("defect", WRONG)
def test_check_names_what_would_make_training_wrong(
    pets: Path, capsys: pytest.CaptureFixture[str], defect: str
) -> None:
    pattern = WRONG[defect](pets)
    with pytest.raises(SystemExit) as ended:
        main(["--data_path", str(pets), "--check"])
    said = capsys.readouterr().out
    assert ended.value.code == 1
    assert_listed(said, "WRONG", pattern)
    assert said.count("WRONG") == 2  # once in the list, once in the last line
    assert "training would be wrong" in said


def assert_listed(said: str, mark: str, pattern: str) -> None:
    """Some entry under a title with that mark has the pattern."""
    title = ""
    found = []
    for line in said.splitlines():
        if not line.startswith(" " * 12):
            title = line
        elif re.search(pattern, line):
            found.append(title.split()[0])
    assert found == [mark], said


def note_no_pet(root: Path) -> str:
    path = trimap_path(root, first_of(root, "test"))
    trimap = decode_trimap(path)
    Image.fromarray(np.where(trimap == 1, np.uint8(2), trimap)).save(path)
    return path.stem


def note_gif(root: Path) -> str:
    path = image_path(root, first_of(root, "train"))
    Image.fromarray(decode_image(path)).save(path, "GIF")
    return rf"{path.name} is GIF"


def note_copy_in_test(root: Path) -> str:
    train, test = first_of(root, "train"), first_of(root, "test")
    for path in (image_path, trimap_path):
        shutil.copy(path(root, train), path(root, test))
    return rf"{train} \(train\), {test} \(test\)"


def note_copy_in_train(root: Path) -> str:
    first, second = read_split(root, "train")[3:5]
    for path in (image_path, trimap_path):
        shutil.copy(path(root, first), path(root, second))
    return rf"{first} \(train\), {second} \(train\)"


def note_stray(root: Path) -> str:
    shutil.copy(image_path(root, first_of(root, "train")), root / "images" / "Uninvited_1.jpg")
    return r"^ *Uninvited_1\.jpg$"


def note_grey(root: Path) -> str:
    path = image_path(root, first_of(root, "train"))
    Image.fromarray(decode_image(path)).convert("L").save(path)
    return rf"{path.stem}: L$"


NOTED = {
    "no pet": (note_no_pet, "trimaps without a pet"),
    "wrong ending": (note_gif, "files that are not what their name says"),
    "same picture in train and test": (note_copy_in_test, "in both train and test"),
    "same picture twice in train": (note_copy_in_train, "other pictures that stand there twice"),
    "on no list": (note_stray, "files on no list"),
    "grey": (note_grey, "not stored as RGB"),
}


@pytest.mark.parametrize("oddity", NOTED)
def test_check_notes_what_training_can_live_with(pets: Path, capsys: pytest.CaptureFixture[str], oddity: str) -> None:
    plant, title = NOTED[oddity]
    pattern = plant(pets)
    main(["--data_path", str(pets), "--check"])
    said = capsys.readouterr().out
    assert re.search(rf"note +1 [^\n]*{title}[^\n]*\n[^\n]*{pattern}", said, re.MULTILINE), said
    assert "training would be right" in said


# ---------------------------------------------------------------------------------------------- --shrink


def test_shrunk_copy_loads_alike(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pets / "annotations" / "._test.txt").write_bytes(b"\x00\x05\x16\x07")
    copy = tmp_path / "small"
    main(["--data_path", str(pets), "--shrink", str(SIDE), "--output", str(copy)])
    assert f"--data_path {copy} --image_size {SIDE}" in capsys.readouterr().out
    for name in ("trainval", "test"):
        assert read_list(copy, name) == read_list(pets, name)
    assert not list(copy.rglob("._*"))
    for mode in ("train", "valid", "test"):
        small, full = load_split(copy, mode, SIDE).pixels, load_split(pets, mode, SIDE).pixels
        assert small[..., 3].equal(full[..., 3])
        assert (small[..., :3].float() - full[..., :3].float()).abs().mean() < 6  # JPEG
    assert decode_image(image_path(copy, first_of(copy, "test"))).shape == (SIDE, SIDE, 3)
    main(["--data_path", str(copy), "--check"])


def test_shrinking_replaces_nothing_and_leaves_nothing_half_done(pets: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out" / "small"
    copy.mkdir(parents=True)
    arguments = ["--data_path", str(pets), "--shrink", str(SIDE), "--output", str(copy)]
    with pytest.raises(UserError, match=r"small exists already"):
        main(arguments)
    copy.rmdir()
    broken = image_path(pets, read_list(pets, "test")[-1])
    truncated(broken)
    with pytest.raises(UserError, match=broken.name):
        main(arguments)
    assert list(copy.parent.iterdir()) == []


# ---------------------------------------------------------------------------------------------- --download


class Server:
    """A web server on this machine, in place of the university's, with archives of the drawn pets."""

    def __init__(self, folder: Path, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.pets, self.monkeypatch = folder, pets, monkeypatch
        folder.mkdir()
        self.archives = [folder / "images.tar.gz", folder / "annotations.tar.gz"]
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder))
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("no_proxy", "*")
        self.pack()

    def pack(self) -> None:
        for archive in self.archives:
            with tarfile.open(archive, "w:gz") as tar:
                name = archive.name.removesuffix(".tar.gz")
                tar.add(self.pets / name, name)
        self.publish([hashlib.md5(archive.read_bytes()).hexdigest() for archive in self.archives])

    def publish(self, checksums: list[str]) -> None:
        from torchvision.datasets import OxfordIIITPet

        urls = [f"http://127.0.0.1:{self.http.server_port}/{archive.name}" for archive in self.archives]
        self.monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", tuple(zip(urls, checksums, strict=True)))

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(tmp_path / "server", pets, monkeypatch)
    yield server
    server.stop()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "home" / "oxford-iiit-pet"


def everything_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("empty_folder_there", [False, True])
def test_download_leaves_the_data_and_nothing_else(
    server: Server, pets: Path, target: Path, capsys: pytest.CaptureFixture[str], empty_folder_there: bool
) -> None:
    if empty_folder_there:
        target.mkdir(parents=True)
    main(["--data_path", str(target), "--download", "--check"])
    wanted = {name for name in everything_below(pets) if name.startswith(("images", "annotations"))}
    assert everything_below(target.parent) == {f"{target.name}/{name}" for name in wanted}
    assert list(target.parent.iterdir()) == [target]
    assert "training would be right" in capsys.readouterr().out

    server.stop()
    download(target)
    assert "there and complete" in capsys.readouterr().out


@pytest.mark.parametrize("why", ["wrong checksum", "not found", "unreachable"])
def test_failed_download_says_how_to_do_it_by_hand(server: Server, target: Path, why: str) -> None:
    if why == "wrong checksum":
        server.publish(["0" * 32, "1" * 32])
    elif why == "not found":
        server.archives[1].unlink()
    else:
        server.stop()
    with pytest.raises(UserError, match=r"did not work") as caught:
        download(target)
    said = str(caught.value)
    assert "images.tar.gz and annotations.tar.gz" in said
    assert str(target.parent) in said
    assert "synthetic_pet.py" in said
    assert not target.exists()


def test_interrupted_download_goes_on_with_what_it_has(server: Server, target: Path) -> None:
    images, annotations = server.archives
    annotations.rename(annotations.with_suffix(".away"))
    with pytest.raises(UserError, match="did not work"):
        download(target)
    assert not target.exists()
    annotations.with_suffix(".away").rename(annotations)
    images.unlink()
    download(target)
    assert len(load_split(target, "test", SIDE)) == 20
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("which", ["a picture", "a list"])
def test_archives_that_lack_something_are_not_taken(server: Server, pets: Path, target: Path, which: str) -> None:
    lacking = image_path(pets, read_list(pets, "test")[5]) if which == "a picture" else pets / "annotations/test.txt"
    lacking.unlink()
    server.pack()
    with pytest.raises(UserError, match=lacking.name):
        download(target)
    assert not target.exists()


def test_archives_placed_by_hand_are_used(server: Server, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target.parent.mkdir()
    for archive in server.archives:
        shutil.move(archive, target.parent)
    download(target)
    assert f"using {target.parent / 'images.tar.gz'}" in capsys.readouterr().out
    assert len(load_split(target, "test", SIDE)) == 20
    assert {path.name for path in target.parent.iterdir()} == {target.name, "images.tar.gz", "annotations.tar.gz"}


def test_incomplete_data_set_is_neither_used_nor_overwritten(server: Server, pets: Path) -> None:
    gone = trimap_path(pets, read_list(pets, "trainval")[-1])
    gone.unlink()
    before = everything_below(pets)
    with pytest.raises(UserError, match=rf"lacks 1 listed files, .*{gone.name}"):
        download(pets)
    assert everything_below(pets) == before


def test_other_things_at_the_target_are_left_alone(server: Server, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=str(target)):
        download(target)
    assert everything_below(target.parent) == {f"{target.name}/thesis.tex"}


# ---------------------------------------------------------------------------------------------- the script


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "say what to do"),
        (["--shrink", "64"], "--shrink N and --output DIR go together"),
        (["--check", "--output", "x"], "--shrink N and --output DIR go together"),
        (["--shrink", "0", "--output", "x"], "'0' is not a whole number from 1 up"),
        (["--chek"], "--chek"),
    ],
)
def test_wrong_flags_end_with_code_2_and_say_why(
    capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_script_ends_a_users_mistake_with_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, oxford_pet.__file__, "--check", "--data_path", tmp_path], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: no data set at {tmp_path}")
    assert done.stderr.count("\n") == 1
