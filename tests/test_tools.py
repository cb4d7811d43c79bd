import shutil
from pathlib import Path

from plumbing.cli import UserError
from plumbing.images import decode_image

import numpy as np
import pytest
import torch
from PIL import Image

import check_data
import shrink_data
from oxford_pet import image_path, read_columns, read_split, trimap_path
from split import load_split
from trimap import decode_trimap

SIDE = 32


def test_good_data_and_other_files_beside_it(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The original archives hold Matlab files, and macOS's shadows of files."""
    for stray in ("images/._Bengal_1.jpg", "images/Bengal_1.mat", "annotations/trimaps/._Bengal_1.png"):
        (pets / stray).write_bytes(b"Mac OS X")
    (pets / "annotations" / "._trainval.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    check_data.main([str(pets)])
    printed = capsys.readouterr().out
    assert "train 18, valid 2, test 20" in printed
    assert printed.endswith("no errors found\n")
    assert "WRONG" not in printed and "note" not in printed


def check_fails(root: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    with pytest.raises(SystemExit) as ended:
        check_data.main([str(root), *flags])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "errors found" in printed
    return printed


def test_every_defect_is_named(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = read_split(pets, "test")
    images, trimaps = ([path(pets, name) for name in names] for path in (image_path, trimap_path))
    tiny = np.full_like(decode_trimap(trimaps[5]), 2)
    tiny[1, 2] = 1
    Image.fromarray(tiny).save(trimaps[5])
    train = read_split(pets, "train")

    trimaps[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:-500])
    trimap = decode_trimap(trimaps[2])
    Image.fromarray((trimap == 1).astype(np.uint8) * 255).save(trimaps[2])
    trimap = decode_trimap(trimaps[3])
    height, width = trimap.shape
    Image.fromarray(trimap[:, 3:]).save(trimaps[3])
    with open(pets / "annotations" / "trainval.txt", "a") as file:
        file.write(f"{names[4]} 1 1 1\n")
    Image.fromarray(np.where(decode_trimap(trimaps[7]) == 2, np.uint8(2), np.uint8(3))).save(trimaps[7])
    for path in (image_path, trimap_path):
        shutil.copy(path(pets, train[0]), path(pets, names[8]))
        shutil.copy(path(pets, train[1]), path(pets, train[2]))
    shutil.copy(images[9], pets / "images" / "Uninvited_1.jpg")

    printed = check_fails(pets, capsys, "--image_size", "32")
    reports = [" ".join(line.split()) for line in printed.replace("\n            ", " > ").splitlines()]
    assert reports[2:-1] == [
        "ok 0 empty splits",
        f"WRONG 1 names listed twice > valid and test: {names[4]}",
        f"WRONG 1 missing files > annotations/trimaps: {names[0]}.png",
        f"WRONG 2 broken files > is broken: image file is truncated: {names[1]}.jpg > is not a trimap of 1 (pet), "
        f"2 (background), 3 (boundary): it has the values 0, 255; tools/import_masks.py makes trimaps of "
        f"other masks: {names[2]}.png",
        f"WRONG 1 images and trimaps of different size > {names[3]} ({width}x{height} and {width - 3}x{height})",
        f"note 1 trimaps without foreground > {names[7]}",
        f"note 1 trimaps that lose all their foreground at 32x32 > {names[5]}",
        f"note 2 equal images > train = test: {train[0]} = {names[8]} > train = train: {train[1]} = {train[2]}",
        "note 1 files on no list, not used > Uninvited_1.jpg",
    ]


def test_nested_copies_are_named(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(pets / "images", pets / "images" / "images")
    check_data.main([str(pets)])
    assert "note    40 files on no list, not used\n            images/" in capsys.readouterr().out
    shutil.move(pets / "annotations", pets / "inner")
    shutil.copytree(pets / "inner", pets / "annotations" / "annotations")
    with pytest.raises(
        UserError, match=r"lies in itself: move .*annotations/annotations, and in images/images, a folder"
    ):
        check_data.main([str(pets)])


def test_many_files_with_one_problem_are_one_line(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = read_split(pets, "test")
    for name in names:
        image_path(pets, name).unlink()
    for flags in ([], ["--all"]):
        printed = check_fails(pets, capsys, *flags)
        shown = ", ".join(f"{name}.jpg" for name in names[: None if flags else 3])
        assert f"images: {shown}{'' if flags else ' and 17 more (--all prints every name)'}\n" in printed
    (pets / "annotations" / "test.txt").write_text("")
    assert "WRONG     1 empty splits\n            test\n" in check_fails(pets, capsys)


def test_shrunk_copy_loads_alike(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pets / "annotations" / "._test.txt").write_bytes(b"\x00\x05\x16\x07")
    valid = read_split(pets, "valid")
    for path in (image_path, trimap_path):
        shutil.copy(path(pets, valid[0]), path(pets, "not_in_trainval"))
    (pets / "annotations" / "valid.txt").write_text("\n".join([*valid, "not_in_trainval"]))
    copy = tmp_path / "small pets"
    shrink_data.main([str(pets), str(copy), "--size", str(SIDE)])
    assert f"--data_path '{copy}' --image_size {SIDE}" in capsys.readouterr().out
    assert not list(copy.rglob("._*"))
    for mode in ("train", "valid", "test"):
        small, full = load_split(copy, mode, SIDE), load_split(pets, mode, SIDE)
        assert small.names == full.names
        assert torch.equal(small.pixels[..., 3].clamp(max=3), full.pixels[..., 3].clamp(max=3))
        assert (small.pixels[..., :3].float() - full.pixels[..., :3].float()).abs().mean() < 6  # JPEG
        assert decode_image(image_path(copy, small.names[0])).shape == (SIDE, SIDE, 3)
    check_data.main([str(copy)])


def test_shrinking_replaces_nothing_and_leaves_nothing_half_done(pets: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out" / "small"
    with pytest.raises(FileExistsError, match="exists already"):
        shrink_data.main([str(pets), str(pets), "--size", str(SIDE)])
    broken = image_path(pets, [*read_columns(pets, "test")][-1])
    broken.write_bytes(broken.read_bytes()[:-500])
    with pytest.raises(UserError, match=broken.name):
        shrink_data.main([str(pets), str(copy), "--size", str(SIDE)])
    assert list(copy.parent.iterdir()) == []
