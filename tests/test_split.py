import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

from plumbing import cache
from plumbing.cli import UserError

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import split as split_module
from oxford_pet import (
    SimpleOxfordPetDataset,
    image_path,
    read_split,
    trimap_path,
)
from split import Split, images_and_trimaps, load_split, targets_lost
from trimap import decode_trimap, without_split

SIDE = 32


def cache_files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".cache").iterdir())


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("this should not have been called")


@pytest.mark.parametrize("mode", ["train", "valid", "test"])
def test_split_holds_the_samples_of_the_dataset(drawn_pets: Path, mode: str) -> None:
    split, dataset = load_split(drawn_pets, mode, SIDE), SimpleOxfordPetDataset(drawn_pets, mode, image_size=SIDE)
    assert len(split) == len(dataset) == {"train": 18, "valid": 2, "test": 20}[mode]
    assert split.names == dataset.filenames
    images, trimaps = images_and_trimaps(split.pixels)
    for image, trimap, sample in zip(images, trimaps, (dataset[i] for i in range(len(dataset))), strict=True):
        np.testing.assert_array_equal(image.numpy(), sample["image"])
        np.testing.assert_array_equal(without_split(trimap.numpy()), sample["trimap"])
    assert 4 in trimaps  # the boundary is split in decoded pixels, and in nothing else
    pixels = np.concatenate((split.pixels[..., :3].numpy(), without_split(split.pixels[..., 3:].numpy())), axis=-1)
    assert split.fingerprint == f"{zlib.crc32(pixels.data, zlib.crc32(chr(10).join(split.names).encode())):08x}"


class Elsewhere:
    """Pixels that are not on the device: a memory map that does not fit."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels, self.device, self.fetched = pixels, SimpleNamespace(type="disk"), 0

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        self.fetched += 1
        return self.pixels[index]


def test_batches_are_the_same_wherever_the_pixels_are(drawn_pets: Path) -> None:
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


@pytest.mark.parametrize(("limit", "kept"), [(1, [0]), (2, [0, 19]), (5, [0, 5, 10, 14, 19]), (20, None), (99, None)])
def test_limit_keeps_samples_evenly_spaced(drawn_pets: Path, limit: int, kept: list[int] | None) -> None:
    split, names = load_split(drawn_pets, "test", SIDE, limit), read_split(drawn_pets, "test")
    assert split.names == ([names[index] for index in kept] if kept else names)
    assert len(split.pixels) == len(split.names)


@pytest.mark.parametrize("path_of", [image_path, trimap_path])
def test_cache_is_used_until_a_file_changes_and_the_stale_one_goes(
    pets: Path, monkeypatch: pytest.MonkeyPatch, path_of: Callable[[Path, str], Path]
) -> None:
    other_size = load_split(pets, "train", 2 * SIDE, limit=4)
    before = load_split(pets, "train", SIDE).pixels.clone()
    cached = cache_files(pets)
    with monkeypatch.context() as patched:
        patched.setattr(split_module, "decode_image", refuse)
        assert load_split(pets, "train", SIDE).pixels.equal(before)
        assert load_split(pets, "train", 2 * SIDE, limit=4).pixels.equal(other_size.pixels)
    path = path_of(pets, read_split(pets, "train")[2])
    with Image.open(path) as image:
        flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    flipped.save(path)
    after = load_split(pets, "train", SIDE).pixels
    assert (after != before).flatten(1).any(1).nonzero().flatten().tolist() == [2]
    assert len(cache_files(pets)) == 2
    assert len(set(cache_files(pets)) & set(cached)) == 1


def flip_a_bit(data: bytes) -> bytes:
    return data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:40], lambda data: data[:-1], lambda data: bytes(len(data)), flip_a_bit]
)
def test_broken_cache_is_made_again(pets: Path, damage: Callable[[bytes], bytes]) -> None:
    expected = load_split(pets, "valid", SIDE).pixels.clone()
    (path,) = (pets / ".cache").iterdir()
    data = path.read_bytes()
    path.write_bytes(damage(data))
    assert load_split(pets, "valid", SIDE).pixels.equal(expected)
    assert path.read_bytes() == data


def test_targets_that_lose_all_their_foreground_are_counted(pets: Path) -> None:
    names = read_split(pets, "train")
    trimap = np.full(decode_trimap(trimap_path(pets, names[0])).shape, 2, np.uint8)
    cv2.imwrite(str(trimap_path(pets, names[0])), trimap)  # never had any
    for name in names[1:4]:
        trimap = np.full_like(decode_trimap(trimap_path(pets, name)), 2)
        trimap[0, 0] = 1
        cv2.imwrite(str(trimap_path(pets, name)), trimap)
    side = trimap.shape[0] // 4
    assert targets_lost(load_split(pets, "train", side), "pet") == (3, 4 * side)
    assert targets_lost(load_split(pets, "train", 4 * side), "pet")[0] == 0


def test_an_image_and_a_trimap_of_other_sizes_are_refused(pets: Path) -> None:
    path = image_path(pets, read_split(pets, "train")[3])
    image = cv2.imread(str(path))
    cv2.imwrite(str(path), image[:-1])
    with pytest.raises(UserError, match=rf"{path.name} has \d+x\d+ pixels, its trimap \d+x\d+; all such files"):
        load_split(pets, "train", SIDE)


def test_broken_image_leaves_no_cache(pets: Path) -> None:
    path = image_path(pets, read_split(pets, "train")[-1])
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=path.name):
        load_split(pets, "train", SIDE)
    assert cache_files(pets) == []


def test_one_of_two_runs_decodes_and_the_other_waits(
    pets: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    decode_all, other_run = split_module.decode_all, []
    thread = threading.Thread(target=lambda: other_run.append(load_split(pets, "train", SIDE)))

    def decode_while_another_run_starts(*arguments: object) -> Iterator[np.ndarray]:
        monkeypatch.setattr(split_module, "decode_all", refuse)
        thread.start()
        yield from decode_all(*arguments)
        time.sleep(0.2)
        assert other_run == []

    monkeypatch.setattr(split_module, "decode_all", decode_while_another_run_starts)
    split = load_split(pets, "train", SIDE)
    thread.join()
    assert split.pixels.equal(other_run[0].pixels)
    assert split.pixels.equal(load_split(pets, "train", SIDE).pixels)
    assert len(cache_files(pets)) == 1
    assert capfd.readouterr().err.startswith(f"waiting for process {os.getpid()} on ")  # and no progress bar


def test_stale_temp_files_of_the_cache_are_removed(pets: Path) -> None:
    (pets / ".cache").mkdir()
    (pets / ".cache" / ".train-18x32-0123456789abcdef.npy.1234abcd.part").write_bytes(bytes(1000))
    load_split(pets, "train", SIDE)
    assert len(list((pets / ".cache").iterdir())) == 1


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("why", ["cannot be made", "cannot be written"])
def test_without_a_cache_the_data_is_right(
    pets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    if why == "cannot be made":
        (pets / ".cache").write_text("in the way")
    else:
        monkeypatch.setattr(cache, "atomic_write", no_space)
    split, dataset = load_split(pets, "valid", SIDE), SimpleOxfordPetDataset(pets, "valid", image_size=SIDE)
    np.testing.assert_array_equal(images_and_trimaps(split.pixels[1:2])[0][0].numpy(), dataset[1]["image"])
    assert "note: valid-2x32 cannot be cached in" in capsys.readouterr().err
