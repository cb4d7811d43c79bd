import hashlib
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from plumbing.cli import UserError
from plumbing.files import locked
from plumbing.images import decode_image

import cv2
import imutils
import numpy as np
import pytest
import torch
from torch import nn

import oxford_pet
from oxford_pet import (
    SimpleOxfordPetDataset,
    download,
    find_root,
    image_path,
    load_dataset,
    main,
    missing_files,
    read_columns,
    read_split,
    rotate_and_flip,
    training_data_path,
    trimap_path,
)
from split import load_split
from trimap import decode_trimap

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
    names, tenths = [*read_columns(pets, "trainval")], read_split(pets, "valid")
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
    assert find_root(str(tmp_path / given)) == root


def test_data_that_a_run_trained_on_is_not_replaced(tmp_path: Path) -> None:
    assert training_data_path(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match=r"gone is no longer there; say where it is with --data_path"):
        training_data_path(str(tmp_path / "gone"))


def test_missing_data_and_lists_are_named(pets: Path, tmp_path: Path) -> None:
    for path, said in {
        "no where/oxford-iiit-pet": r"to download .*: .*--download --data_path '.*no where/oxford-iiit-pet'$",
        "coins": r"no data set at .*coins: there is no such folder$",
        "": r"no annotations/trainval\.txt in it, .*; for images and masks of your own: tools/import_masks\.py --help$",
    }.items():
        with pytest.raises(UserError, match=said):
            load_split(tmp_path / path, "train", SIDE)
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


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "back\\slash", "c:drive", "nul\0", "Tabby_001"])
def test_unsafe_and_repeated_names_in_lists_are_refused(pets: Path, name: str) -> None:
    (pets / "annotations" / "test.txt").write_text(f"Tabby_001 1 1 1\n\n{name} 1 1 1\n")
    reason = "is on a line above already" if name == "Tabby_001" else "is no plain name"
    with pytest.raises(UserError, match=rf"test\.txt, line 3: .*{reason}"):
        read_split(pets, "test")


# ---------------------------------------------------------------------------------------------- download


@pytest.fixture
def archives(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Archives of the drawn pets, to be downloaded in place of the real ones."""
    if not hasattr(tarfile, "data_filter"):
        pytest.skip("the download needs Python 3.11.4 or newer")
    (tmp_path / "server").mkdir()
    paths = [tmp_path / "server" / f"{name}.tar.gz" for name in ("images", "annotations")]
    for path in paths:
        with tarfile.open(path, "w:gz") as tar:
            tar.add(pets / path.name.split(".")[0], path.name.split(".")[0])
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setattr(ThreadingHTTPServer, "handle_error", lambda *_: None)  # torchvision opens each URL twice
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path / "server"))
    threading.Thread(target=server.serve_forever).start()
    urls = [f"http://127.0.0.1:{server.server_port}/{path.name}" for path in paths]
    checksums = [hashlib.md5(path.read_bytes()).hexdigest() for path in paths]
    monkeypatch.setattr(oxford_pet, "ARCHIVES", dict(zip(urls, checksums, strict=True)))
    yield paths
    server.shutdown()
    server.server_close()


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
    else:
        target.mkdir(parents=True)
        assert len(load_dataset(str(target), "train")) == 18
    said = capfd.readouterr()
    assert (f"next: python src/train.py --model R --data_path {target}" in said.out) == (how == "script")
    assert said.err == ""  # no progress bar where no terminal is
    wanted = {name for name in files_below(pets) if name.startswith(("images", "annotations"))}
    assert files_below(target.parent) == {f"{target.name}/{name}" for name in wanted}
    assert list(target.parent.iterdir()) == [target]
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


def test_a_broken_archive_placed_by_hand_is_refused_and_left_alone(archives: list[Path], target: Path) -> None:
    target.parent.mkdir()
    (target.parent / "images.tar.gz").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"home/images\.tar\.gz is broken: its MD5 is not"):
        download(target)
    assert (target.parent / "images.tar.gz").read_bytes() == b"mine"


def test_a_second_download_says_who_is_at_it_and_stale_temp_files_go(archives: list[Path], target: Path) -> None:
    held = pytest.raises(BlockingIOError, match=rf"held by process {os.getpid()} on .* since 20")
    with locked(target.parent / f".{target.name}.lock"), held:
        download(target)
    (target.parent / f".{target.name}.0a1b2c3d.part" / "images").mkdir(parents=True)
    (target.parent / f".{target.name}.download").mkdir()
    (target.parent / f".{target.name}.download" / "images.tar.gz").write_bytes(archives[0].read_bytes()[:-10])
    download(target)
    assert list(target.parent.iterdir()) == [target]


def test_what_is_there_is_not_overwritten(archives: list[Path], pets: Path, target: Path) -> None:
    missing = trimap_path(pets, [*read_columns(pets, "trainval")][-1])
    missing.unlink()
    before = files_below(pets)
    with pytest.raises(FileExistsError, match="exists already"):
        download(pets)
    assert files_below(pets) == before
    target.mkdir(parents=True)
    (target / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        load_dataset(target, "train")
    assert files_below(target.parent) == {f"{target.name}/thesis.tex"}


def test_breeds_are_read_where_the_lists_tell_them(pets: Path) -> None:
    lists = pets / "annotations"
    (lists / "trainval.txt").write_text("american_bulldog_10 2 2 1\nAbyssinian_1 1 1 1\nmine\nmine_2 1\nodd_3 1 7 1\n")
    (lists / "test.txt").write_text("<b>_4 3 1 2\n")
    assert oxford_pet.read_breeds(pets) == {
        "american_bulldog_10": {"breed": "american bulldog", "species": "dog"},
        "Abyssinian_1": {"breed": "Abyssinian", "species": "cat"},
        "<b>_4": {"breed": "<b>", "species": "cat"},
    }
