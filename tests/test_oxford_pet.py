import hashlib
import io
import os
import shutil
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

from plumbing.cli import UserError
from plumbing.files import locked
from plumbing.images import decode_image

import cv2
import imutils
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import oxford_pet
from oxford_pet import (
    SimpleOxfordPetDataset,
    Split,
    download,
    find_root,
    image_path,
    images_and_trimaps,
    load_dataset,
    load_split,
    main,
    missing_files,
    read_list,
    read_split,
    rotate_and_flip,
    trimap_path,
)
from trimap import decode_trimap, without_split

SIDE = 32


def cache_files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".cache").iterdir())


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("this should not have been called")


# ---------------------------------------------------------------------------------------------- files and splits


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


def test_valid_list_replaces_every_tenth(pets: Path) -> None:
    names, tenths = read_list(pets, "trainval"), read_split(pets, "valid")
    (pets / "annotations" / "valid.txt").write_text(f"{names[5]}\n{names[3]} 1 1 1\nnot_in_trainval\n")
    assert read_split(pets, "valid") == [names[5], names[3], "not_in_trainval"]
    assert read_split(pets, "train") == [name for name in names if name not in (names[3], names[5])]
    assert set(tenths) < set(read_split(pets, "train"))
    assert [path.name for path in missing_files(pets)] == ["not_in_trainval.jpg", "not_in_trainval.png"]


@pytest.mark.parametrize("given", ["dataset/oxford-iiit-pet", "dataset", "."])
def test_data_path_may_be_the_folder_or_one_above_it(tmp_path: Path, given: str) -> None:
    root = tmp_path / "dataset" / "oxford-iiit-pet"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "trainval.txt").touch()
    assert find_root(tmp_path / given) == root
    assert find_root(str(tmp_path / given)) == root


def test_missing_data_and_lists_are_named(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no where: .*--download --data_path '.*no where'$"):
        load_split(tmp_path / "no where", "train", SIDE)
    (pets / "annotations" / "test.txt").write_text("")
    with pytest.raises(UserError, match=r"the test split of .* is empty"):
        load_split(pets, "test", SIDE)
    (pets / "annotations" / "test.txt").unlink()
    with pytest.raises(UserError, match=r"test\.txt cannot be read"):
        load_split(pets, "test", SIDE)
    missing = trimap_path(pets, read_split(pets, "train")[7])
    missing.unlink()
    with pytest.raises(UserError, match=rf"{missing.name} is listed but .*: python tools/check_data\.py {pets}$"):
        load_split(pets, "train", SIDE)


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
    np.testing.assert_array_equal(dataset[1]["image"], sample["image"])  # not augmented


def test_transform_gets_the_image_at_its_own_size(drawn_pets: Path) -> None:
    given = []

    def transform(**arrays: np.ndarray) -> dict[str, np.ndarray]:
        given.append({key: value.shape for key, value in arrays.items()})
        return {key: value[:, ::-1] for key, value in arrays.items()}

    name = read_split(drawn_pets, "train")[3]
    height, width = decode_trimap(trimap_path(drawn_pets, name)).shape
    plain = SimpleOxfordPetDataset(drawn_pets, "train", image_size=SIDE)
    flipped = SimpleOxfordPetDataset(drawn_pets, "train", transform, image_size=SIDE)
    sample = flipped[3]
    assert given == [{"image": (height, width, 3), "mask": (height, width), "trimap": (height, width)}]
    assert sample["image"].shape == (3, SIDE, SIDE)
    assert np.abs(sample["image"].astype(int) - plain[3]["image"][:, :, ::-1]).max() <= 1


def test_augmentation_is_that_of_report_lab2(drawn_pets: Path) -> None:
    """One of the 120 combinations of a rotation by -15 to 14 degrees and two flips; each is drawn sometimes."""
    name = read_split(drawn_pets, "train")[0]
    image, trimap = decode_image(image_path(drawn_pets, name)), decode_trimap(trimap_path(drawn_pets, name))
    mask = (trimap != 2).astype(np.float32)

    def moved(array: np.ndarray, degrees: int, flips: tuple[int, ...]) -> np.ndarray:
        array = imutils.rotate(array, degrees)
        for flip in flips:
            array = cv2.flip(array, flip)
        return array

    ways = [(degrees, flips) for degrees in range(-15, 15) for flips in ((), (1,), (0,), (1, 0))]
    expected = {moved(image, *way).tobytes(): way for way in ways}
    drawn = set()
    torch.manual_seed(0)
    for _ in range(600):
        sample = rotate_and_flip(image=image, mask=mask, trimap=trimap)
        way = expected[sample["image"].tobytes()]
        drawn.add(way)
        np.testing.assert_array_equal(sample["mask"], moved(mask, *way) > 0.5)
        np.testing.assert_array_equal(sample["mask"], sample["trimap"] != 2)
        np.testing.assert_array_equal(sample["trimap"] == 1, moved((trimap == 1).astype(np.float32), *way) > 0.5)
        assert set(np.unique(sample["trimap"])) == {1, 2, 3}
    assert len(drawn) > 115
    turned = moved(np.full_like(image, 255), 14, ())  # the empty corners
    assert not turned[0, 0].any()


def test_a_reports_training_loop_runs_unchanged(drawn_pets: Path) -> None:
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(load_dataset(drawn_pets, "train"), batch_size=6, shuffle=True, num_workers=1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1), nn.Sigmoid())
    criterion, optimizer = nn.BCELoss(), torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        for batch in loader:
            images, masks = batch["image"].float(), batch["mask"].float()
            assert (images.shape, masks.shape) == ((6, 3, 256, 256), (6, 1, 256, 256))
            optimizer.zero_grad()
            loss = criterion(model(images), masks)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert len(losses) == 6
    assert losses[-1] < losses[0]


# ---------------------------------------------------------------------------------------------- a split at once


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
    assert split.fingerprint() == f"{zlib.crc32(pixels.data, zlib.crc32(chr(10).join(split.names).encode())):08x}"


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


@pytest.mark.parametrize("which", ["image", "trimap", "only the time of an image"])
def test_cache_is_used_until_a_file_changes_and_the_stale_one_goes(
    pets: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    other_size = load_split(pets, "train", 2 * SIDE, limit=4)
    before = load_split(pets, "train", SIDE).pixels.clone()
    cached = cache_files(pets)
    with monkeypatch.context() as patched:
        patched.setattr(oxford_pet, "decode_image", refuse)
        assert load_split(pets, "train", SIDE).pixels.equal(before)
        assert load_split(pets, "train", 2 * SIDE, limit=4).pixels.equal(other_size.pixels)
    path = (trimap_path if which == "trimap" else image_path)(pets, read_split(pets, "train")[2])
    if which == "only the time of an image":
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
    else:
        with Image.open(path) as image:
            flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        flipped.save(path)
    after = load_split(pets, "train", SIDE).pixels
    changed = (after != before).flatten(1).any(1).nonzero().flatten().tolist()
    assert changed == ([] if which == "only the time of an image" else [2])
    assert len(cache_files(pets)) == 2
    assert len(set(cache_files(pets)) & set(cached)) == 1


def other_array(_: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((2, SIDE, SIDE, 3), np.uint8))
    return file.getvalue()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:40], lambda data: data[:-1], lambda data: bytes(len(data)), other_array]
)
def test_broken_cache_is_made_again(pets: Path, damage: Callable[[bytes], bytes]) -> None:
    expected = load_split(pets, "valid", SIDE).pixels.clone()
    (path,) = (pets / ".cache").iterdir()
    data = path.read_bytes()
    path.write_bytes(damage(data))
    assert load_split(pets, "valid", SIDE).pixels.equal(expected)
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == data


@pytest.mark.parametrize("index", [0, -1])
def test_broken_image_leaves_no_cache(pets: Path, index: int) -> None:
    path = image_path(pets, read_split(pets, "train")[index])
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=path.name):
        load_split(pets, "train", SIDE)
    assert cache_files(pets) == []


def test_of_two_runs_that_start_at_once_one_decodes_and_the_other_waits(
    pets: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    decode_all, other_run = oxford_pet.decode_all, []
    thread = threading.Thread(target=lambda: other_run.append(load_split(pets, "train", SIDE)))

    def decode_while_another_run_starts(*arguments: object) -> Iterator[np.ndarray]:
        monkeypatch.setattr(oxford_pet, "decode_all", refuse)
        thread.start()
        yield from decode_all(*arguments)
        time.sleep(0.2)
        assert other_run == []

    monkeypatch.setattr(oxford_pet, "decode_all", decode_while_another_run_starts)
    split = load_split(pets, "train", SIDE)
    thread.join()
    assert split.pixels.equal(other_run[0].pixels)
    assert split.pixels.equal(load_split(pets, "train", SIDE).pixels)
    assert len(cache_files(pets)) == 1
    assert capfd.readouterr().err.startswith(f"waiting for process {os.getpid()} on ")  # and no progress bar


def test_what_a_killed_decoding_left_is_removed(pets: Path) -> None:
    (pets / ".cache").mkdir()
    (pets / ".cache" / ".train-18x32-0123456789abcdef.npy.1234abcd.part").write_bytes(bytes(1000))
    load_split(pets, "train", SIDE)
    assert len(list((pets / ".cache").iterdir())) == 1


HOSTILE_NAMES = {
    "../evil": "no plain name",
    "a/b": "no plain name",
    "/etc/passwd": "no plain name",
    "..": "no plain name",
    ".hidden": "no plain name",
    "back\\slash": "no plain name",
    "c:drive": "no plain name",
    "nul\0": "no plain name",
    "bell\a": "no plain name",
    "\x9b2J": "no plain name",  # CSI, which clears a terminal
    "x" * 201: "no plain name",
    "ä" * 101: "no plain name",
    "Tabby_001": "is on a line above already",
}


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_in_lists_that_lead_elsewhere_are_refused(pets: Path, name: str) -> None:
    path = pets / "annotations" / "test.txt"
    path.write_text(f"Tabby_001 1 1 1\n\n{name} 1 1 1\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"test\.txt, line 3: .*{HOSTILE_NAMES[name]}") as caught:
        read_split(pets, "test")
    assert len(str(caught.value)) < 500


def test_a_list_of_a_million_lines_is_read_and_its_first_missing_image_named(pets: Path) -> None:
    path = pets / "annotations" / "test.txt"
    path.write_text("".join(f"name_{index}\n" for index in range(10**6)))
    with pytest.raises(UserError, match=r"name_0\.jpg is listed but cannot be read"):
        load_split(pets, "test", SIDE)


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("why", ["cannot be made", "cannot be written"])
def test_without_a_cache_the_data_is_right(
    pets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    if why == "cannot be made":
        (pets / ".cache").write_text("in the way")
    else:
        monkeypatch.setattr(oxford_pet, "atomic_write", no_space)
    split, dataset = load_split(pets, "valid", SIDE), SimpleOxfordPetDataset(pets, "valid", image_size=SIDE)
    np.testing.assert_array_equal(images_and_trimaps(split.pixels[1:2])[0][0].numpy(), dataset[1]["image"])
    assert "note: the decoded valid split is not kept" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- download


@pytest.fixture
def archives(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Archives of the drawn pets, to be downloaded in place of the real ones."""
    (tmp_path / "server").mkdir()
    paths = [tmp_path / "server" / f"{name}.tar.gz" for name in ("images", "annotations")]
    for path in paths:
        with tarfile.open(path, "w:gz") as tar:
            tar.add(pets / path.name.split(".")[0], path.name.split(".")[0])
    checksums = [hashlib.md5(path.read_bytes()).hexdigest() for path in paths]
    monkeypatch.setattr(oxford_pet, "ARCHIVES", dict(zip([path.as_uri() for path in paths], checksums, strict=True)))
    return paths


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "home" / "oxford-iiit-pet"


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", ["script", "load_dataset"])
def test_download_leaves_the_data_and_nothing_else(
    archives: list[Path], pets: Path, target: Path, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    if how == "script":
        main(["--download", "--data_path", str(target)])
        assert f"next: python src/train.py --model R --data_path {target}" in capfd.readouterr().out
    else:
        target.mkdir(parents=True)
        assert len(load_dataset(str(target), "train")) == 18
    wanted = {name for name in files_below(pets) if name.startswith(("images", "annotations"))}
    assert files_below(target.parent) == {f"{target.name}/{name}" for name in wanted}
    assert list(target.parent.iterdir()) == [target]
    assert capfd.readouterr().err == ""  # no progress bar where no terminal is
    for archive in archives:
        archive.unlink()
    load_dataset(target, "train")
    download(target)
    assert "is complete already" in capfd.readouterr().out


@pytest.mark.parametrize("why", ["wrong checksum", "not found"])
def test_failed_download_says_how_to_do_it_by_hand_and_goes_on_from_there(
    archives: list[Path], target: Path, why: str
) -> None:
    images, annotations = archives
    data = annotations.read_bytes()
    if why == "wrong checksum":
        annotations.write_bytes(data[:-1])
    else:
        annotations.unlink()
    with pytest.raises(UserError, match=r"the download failed") as caught:
        download(target)
    for said in ("images.tar.gz and annotations.tar.gz", str(target.parent), "tools/draw_pets.py"):
        assert said in str(caught.value)
    assert not target.exists()
    annotations.write_bytes(data)
    images.unlink()  # downloaded already
    download(target)
    assert len(load_split(target, "test", SIDE)) == 20
    assert list(target.parent.iterdir()) == [target]


def test_archives_placed_by_hand_are_used(
    archives: list[Path], target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target.parent.mkdir()
    for archive in archives:
        shutil.move(archive, target.parent)
    download(target)
    assert f"using {target.parent / 'images.tar.gz'}" in capsys.readouterr().out
    assert len(load_split(target, "test", SIDE)) == 20
    assert {path.name for path in target.parent.iterdir()} == {target.name, "images.tar.gz", "annotations.tar.gz"}


def add_member(tar: tarfile.TarFile, name: str, **attributes: object) -> None:
    member = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(bytes(member.size)))


HOSTILE_MEMBERS: dict[str, Callable[[tarfile.TarFile, Path], None]] = {
    "dots": lambda tar, _: add_member(tar, "../../evil", size=3),
    "absolute": lambda tar, outside: add_member(tar, str(outside / "evil"), size=3),  # unpacked below the folder
    "link": lambda tar, outside: add_member(tar, "images", type=tarfile.SYMTYPE, linkname=str(outside)),
    "hard link": lambda tar, _: add_member(tar, "evil", type=tarfile.LNKTYPE, linkname="../../../evil"),
    "device": lambda tar, _: add_member(tar, "evil", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "pipe": lambda tar, _: add_member(tar, "evil", type=tarfile.FIFOTYPE),
    "bomb": lambda tar, _: add_member(tar, "zeros", size=3_000_000),
}


@pytest.mark.parametrize("what", [*HOSTILE_MEMBERS, "truncated", "no archive"])
def test_a_hostile_or_broken_archive_stays_inside_and_is_one_line(
    archives: list[Path], target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(oxford_pet, "UNPACKED_BYTES", 1_000_000)
    target.parent.mkdir()
    path = target.parent / archives[0].name
    if what in HOSTILE_MEMBERS:
        with tarfile.open(path, "w:gz") as tar:
            HOSTILE_MEMBERS[what](tar, tmp_path / "outside")
            add_member(tar, "images/evil", size=3)
    else:
        data = archives[0].read_bytes()
        path.write_bytes(data[: len(data) // 3] if what == "truncated" else b"text")
    checksums = list(oxford_pet.ARCHIVES.values())
    checksums[0] = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(oxford_pet, "ARCHIVES", dict(zip(oxford_pet.ARCHIVES, checksums, strict=True)))
    if what == "absolute":
        download(target)
    else:
        with pytest.raises(UserError, match=r"images\.tar\.gz cannot be unpacked: ") as caught:
            download(target)
        assert "\n" not in str(caught.value)
        assert not target.exists()
    assert [name for name in files_below(tmp_path) if "evil" in name and "home/oxford-iiit-pet/" not in name] == []
    assert sorted(entry.name for entry in target.parent.iterdir() if entry.suffix in (".part", ".lock")) == []


def test_a_broken_archive_placed_by_hand_is_named(archives: list[Path], target: Path) -> None:
    target.parent.mkdir()
    (target.parent / "images.tar.gz").write_bytes(archives[0].read_bytes()[:-1])
    with pytest.raises(UserError, match=r"home/images\.tar\.gz is broken: its MD5 is not"):
        download(target)


def test_a_download_that_another_process_has_just_finished_is_not_repeated(
    archives: list[Path], target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def finish_in_another(path: Path) -> AbstractContextManager:
        monkeypatch.setattr(oxford_pet, "locked", locked)
        download(target)
        return locked(path)

    monkeypatch.setattr(oxford_pet, "locked", finish_in_another)
    download(target)
    assert capsys.readouterr().out.splitlines()[-1] == f"{target} is complete already"


def test_a_second_download_says_who_is_at_it_and_a_killed_ones_leftovers_go(archives: list[Path], target: Path) -> None:
    held = pytest.raises(BlockingIOError, match=rf"held by process {os.getpid()} on .* since 20")
    with locked(target.parent / f".{target.name}.lock"), held:
        download(target)
    (target.parent / f".{target.name}.0a1b2c3d.part" / "images").mkdir(parents=True)
    (target.parent / f".{target.name}.download").mkdir()
    (target.parent / f".{target.name}.download" / "images.tar.gz.0a1b.partial").write_bytes(bytes(10))
    download(target)
    assert list(target.parent.iterdir()) == [target]


def test_what_is_there_is_not_overwritten(archives: list[Path], pets: Path, target: Path) -> None:
    missing = trimap_path(pets, read_list(pets, "trainval")[-1])
    missing.unlink()
    before = files_below(pets)
    with pytest.raises(UserError, match=rf"lacks 1 of its listed files, .*{missing.name}"):
        download(pets)
    assert files_below(pets) == before
    target.mkdir(parents=True)
    (target / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=rf"{target} is not a data set"):
        load_dataset(target, "train")
    assert files_below(target.parent) == {f"{target.name}/thesis.tex"}


def test_script_without_a_download_says_what_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert capsys.readouterr().err.startswith("error: nothing to do: --download downloads")


def test_breeds_are_read_where_the_lists_tell_them(pets: Path) -> None:
    lists = pets / "annotations"
    (lists / "trainval.txt").write_text("american_bulldog_10 2 2 1\nAbyssinian_1 1 1 1\nmine\nmine_2 1\nodd_3 1 7 1\n")
    (lists / "test.txt").write_text("<b>_4 3 1 2\n")
    assert oxford_pet.read_breeds(pets) == {
        "american_bulldog_10": {"breed": "american bulldog", "species": "dog"},
        "Abyssinian_1": {"breed": "Abyssinian", "species": "cat"},
        "<b>_4": {"breed": "<b>", "species": "cat"},
    }
