"""photos.py and ``inference.py --input``: photos of any format in, masks and cut-outs at their own size out."""

import errno
import io
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

from plumbing.cli import REPO, UserError
from plumbing.images import decode_photo

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import Tensor, nn

import inference
import photos
from checkpoint import save_checkpoint
from models import NETWORKS
from photos import PhotoOptions, cut_out, find_photos
from recipes import RECIPES


class Redness(nn.Module):
    """Says pet where the red channel is above the others."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        return (images[:, :1] - images[:, 1:].amax(1, keepdim=True)) * 9 * self.scale


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkpoint ``R_best.pth`` of a network that takes red for pet; returns the folder of all runs."""
    monkeypatch.setitem(NETWORKS, "ResNet34_UNet", Redness)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # which a run sets
    config = RECIPES["default"]("ResNet34_UNet").to_dict() | {"image_size": 64}
    state = {"format": 2, "config": config, "model": Redness().state_dict(), "data_path": "", "epoch": 0}
    state |= {"scores": {}, "history": []}
    save_checkpoint(tmp_path / "runs" / "R" / "R_best.pth", state)
    return tmp_path / "runs"


def red_box(width: int, height: int) -> Image.Image:
    """A red rectangle in the left upper quarter, on grey."""
    pixels = np.full((height, width, 3), 120, np.uint8)
    pixels[height // 8 : height // 2, width // 8 : width // 2] = (230, 20, 20)
    return Image.fromarray(pixels)


def cut(run: Path, *flags: object) -> None:
    flags = ("--model", "R", "--save_path", run, "--output", run.parent / "out", *flags)
    inference.main([str(part) for part in flags])


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("grey.png", "L"),
        ("cmyk.jpg", "CMYK"),
        ("palette.gif", "P"),
        ("alpha.png", "RGBA"),
        ("sixteen.png", "I;16"),
        ("photo.webp", "RGB"),
        ("photo.tiff", "RGB"),
        ("photo.bmp", "RGB"),
        ("a b'c\".png", "RGB"),
        ("猫.png", "RGB"),
    ],
)
def test_any_photo_gives_results_at_its_own_size(run: Path, tmp_path: Path, name: str, mode: str) -> None:
    image = red_box(90, 50)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8)
    elif mode == "P":
        image = image.quantize(4)
    elif mode != "RGB":
        image = image.convert(mode)
    image.save(tmp_path / name)
    cut(run, "--input", tmp_path / name)
    stem = Path(name).stem
    mask, cutout = read(tmp_path / "out" / f"{stem}_mask.png"), read(tmp_path / "out" / f"{stem}_cutout.png")
    assert mask.shape == (50, 90)
    assert cutout.shape == (50, 90, 4)
    assert set(np.unique(mask)) <= {0, 255}
    if mode not in ("L", "I;16"):  # which have no red
        assert ((mask > 0) == (np.asarray(red_box(90, 50))[..., 0] > 200)).mean() > 0.94  # the mask is enlarged from 64
        assert abs(cutout[mask > 0][:, 0].astype(int).mean() - 230) < 15


def test_the_exif_rotation_is_applied(run: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, shown upright
    red_box(90, 50).save(tmp_path / "upright.jpg", exif=exif)
    cut(run, "--input", tmp_path / "upright.jpg")
    expected = np.rot90(np.asarray(red_box(90, 50)), -1)[..., 0] > 200
    assert ((read(tmp_path / "out" / "upright_mask.png") > 0) == expected).mean() > 0.94


def test_a_cut_out_has_a_soft_edge_and_no_colour_of_the_background() -> None:
    rgba = np.full((60, 60, 4), 255, np.uint8)
    rgba[..., :3] = (0, 0, 255)
    mask = np.zeros((60, 60), bool)
    mask[15:45, 15:45] = True
    rgba[mask, :3] = (200, 100, 0)
    rgba[14:46, 14] = rgba[14:46, 45] = (100, 50, 128, 255)  # mixed by the camera
    result = cut_out(rgba, mask)
    assert (result[20:40, 20:40, 3] == 255).all()
    assert (result[:10] == 0).all()
    soft = (result[..., 3] > 0) & (result[..., 3] < 255)
    assert 0 < soft.sum() < 4 * 34 * 4  # a pixel or two
    assert result[soft][:, 2].max() <= 1  # no blue


def test_a_folder_is_mirrored_and_shared_stems_keep_their_endings(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "a.jpg", "b.png", "deep/c.png"):
        red_box(40, 40).save(folder / name)
    (folder / "notes.txt").write_text("no photo")
    cut(run, "--input", folder, "--recursive", "--write", "mask")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")}
    assert found == {"a.png_mask.png", "a.jpg_mask.png", "b_mask.png", "deep/c_mask.png"}


def test_inputs_that_name_no_photo_or_one_name_twice_are_refused(tmp_path: Path) -> None:
    options = PhotoOptions(tmp_path / "out")
    for file in ("a/p.png", "b/p.png", "a/q.jpg", "c/notes.txt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert [photo.file.name for photo in find_photos([str(tmp_path / "*" / "*.jpg")], options)] == ["q.jpg"]
    for wrong, said in (
        ("nothing.jpg", "no such file"),
        ("*.gif", "no such file"),
        ("c", r"no photo in this folder .*too\)$"),
    ):
        with pytest.raises(UserError, match=said):
            find_photos([str(tmp_path / wrong)], options)
    (tmp_path / "my photo.jpg").touch()
    with pytest.raises(UserError, match=r"did you mean --input '?\S*my photo\.jpg'\?$"):
        find_photos([str(tmp_path / "my"), "photo.jpg"], options)
    with pytest.raises(UserError, match=r"a/p.png and \S*b/p.png have the same name"):
        find_photos([str(tmp_path / "a"), str(tmp_path / "b")], options)


def test_a_broken_photo_is_named_and_all_others_are_done(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    red_box(40, 40).save(folder / "good.png")
    (folder / "bad.jpg").write_bytes(b"\xff\xd8 no")
    with pytest.raises(SystemExit) as exit_:
        cut(run, "--input", folder)
    assert exit_.value.code == 1
    printed = capfd.readouterr()
    assert "bad.jpg" in printed.err
    assert "1 photo failed" in printed.out
    assert (tmp_path / "out" / "good_cutout.png").exists()


def test_stale_temp_files_are_removed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    red_box(40, 40).save(tmp_path / "in" / "deep" / "p.png")
    (tmp_path / "out" / "deep").mkdir(parents=True)
    for name in (".notes.part", ".p_mask.png.01234567.part"):
        (tmp_path / "out" / "deep" / name).touch()
    cut(run, "--input", tmp_path / "in", "--recursive", "--write", "mask")
    assert sorted(path.name for path in (tmp_path / "out" / "deep").iterdir()) == [".notes.part", "p_mask.png"]


def test_results_are_skipped_if_they_would_come_out_the_same_and_redone_else(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, result, runs = tmp_path / "p.png", tmp_path / "out" / "p_mask.png", tmp_path / "runs"
    red_box(40, 40).save(photo)

    def outcome(*flags: object) -> str:
        if result.exists():
            os.utime(result, (0, 0))
        cut(run, "--input", photo, "--write", "mask", *flags)
        said, is_new = capsys.readouterr().out, result.stat().st_mtime > 0
        assert ("1 photo done already" in said) != is_new
        is_replaced = "1 photo had results of another photo, network or option; replaced" in said
        return "replaced" if is_replaced else "written" if is_new else "skipped"

    assert [outcome(), outcome(), outcome("--overwrite")] == ["written", "skipped", "written"]
    for flags in (["--threshold", 0.4], ["--threshold", 0.4, "--largest_only"], ["--image_size", 32], []):
        assert [outcome(*flags), outcome(*flags)] == ["replaced", "skipped"]
    red_box(40, 30).save(photo)  # another photo of the same name
    assert [outcome(), outcome()] == ["replaced", "skipped"]
    assert read(result).shape == (30, 40)
    state = torch.load(runs / "R" / "R_best.pth", weights_only=True)
    state["model"]["scale"] *= -1  # another network
    save_checkpoint(runs / "R" / "R_best.pth", state)
    assert [outcome(), outcome()] == ["replaced", "skipped"]
    assert read(result)[8, 10] == 0


def test_a_file_that_is_no_result_stays_unless_overwritten(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("p", "q"):
        red_box(40, 40).save(tmp_path / f"{name}.png")
    result = tmp_path / "out" / "p_mask.png"
    result.parent.mkdir()
    result.write_bytes(b"mine")
    with pytest.raises(SystemExit, match="1"):
        cut(run, "--input", tmp_path / "p.png", tmp_path / "q.png", "--write", "mask")
    assert f"{result} is there, and does not say what it was made from" in capsys.readouterr().err
    assert result.read_bytes() == b"mine"
    assert read(tmp_path / "out" / "q_mask.png").max() == 255
    cut(run, "--input", tmp_path / "p.png", "--write", "mask,probability,overlay", "--overwrite")
    assert read(result).max() == 255
    assert read(tmp_path / "out" / "p_probability.png").ndim == 2
    assert read(tmp_path / "out" / "p_overlay.png").shape == (40, 40, 3)


def test_a_result_that_cannot_be_written_is_named_and_all_others_are_done(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a", "b" * 235, "c" * 250, "d"]  # too long with .part behind it; too long
    for name in names:
        red_box(40, 40).save(tmp_path / f"{name}.png")
    with pytest.raises(SystemExit, match="1"):
        cut(run, "--input", *(tmp_path / f"{name}.png" for name in names))
    printed = capsys.readouterr()
    for name, verb in (("b" * 235, "written"), ("c" * 250, "read")):
        assert f"{name}_mask.png cannot be {verb}: File name too long\n" in printed.err
    assert "2 photos failed" in printed.out
    assert sorted(path.name for path in (tmp_path / "out").glob("?_*.png")) == [
        *("a_cutout.png", "a_mask.png", "d_cutout.png", "d_mask.png")
    ]

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(photos, "atomic_write", no_space)
    with pytest.raises(OSError, match="No space"):  # which ends the script in one line
        cut(run, "--input", tmp_path / "a.png", "--overwrite")


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
def test_a_cut_out_keeps_the_photos_colour_profile(run: Path, tmp_path: Path, kind: str) -> None:
    """So its numbers mean the same colours: Display P3, Adobe RGB. The profile of CMYK says nothing about RGB."""
    red_box(40, 40).save(tmp_path / f"p.{kind}", icc_profile=PROFILE, lossless=True)
    red_box(40, 40).convert("CMYK").save(tmp_path / "cmyk.tiff", icc_profile=PROFILE.replace(b"RGB ", b"CMYK"))
    cut(run, "--input", tmp_path / f"p.{kind}", tmp_path / "cmyk.tiff", "--write", "cutout,overlay,mask")
    for name, product, expected in (
        ("p", "cutout", PROFILE),
        ("p", "overlay", PROFILE),
        ("p", "mask", None),
        ("cmyk", "cutout", None),
    ):
        with Image.open(tmp_path / "out" / f"{name}_{product}.png") as image:
            assert image.info.get("icc_profile") == expected
            if product == "cutout":
                assert image.getpixel((10, 10))[0] == pytest.approx(230, abs=6)


def test_the_bundled_weights_are_taken_unless_a_run_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    red_box(40, 40).save(tmp_path / "p.png")
    monkeypatch.setattr(inference, "SMALL_WEIGHTS", tmp_path / "small.pth")
    shutil.copy(run / "R" / "R_best.pth", tmp_path / "small.pth")
    for flags, taken in (
        ([], "small.pth"),
        (["--model", "R"], "R_best.pth"),
        (["--name", "R"], "R_best.pth"),
        (["--model", "R", "--load_model_epoch", "best"], "R_best.pth"),
    ):
        inference.main([*flags, "--save_path", str(run), "--output", str(tmp_path), "--input", str(tmp_path / "p.png")])
        assert f"/{taken} at 64x64" in capsys.readouterr().out


def test_the_largest_part_alone() -> None:
    probs = np.zeros((9, 9), np.float32)
    probs[1:5, 1:5] = probs[7, 7] = 0.9
    assert photos.clean_mask(probs, PhotoOptions(Path())).sum() == 17
    assert photos.clean_mask(probs, PhotoOptions(Path(), largest_only=True)).sum() == 16
    assert not photos.clean_mask(probs, PhotoOptions(Path(), threshold=0.95, largest_only=True)).any()


def test_a_photo_of_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    file = io.BytesIO()
    red_box(200, 200).save(file, "PNG")
    with warnings.catch_warnings():
        photos.set_pixel_limit(0.03)
        with pytest.raises(UserError, match="30,000 pixels"):
            decode_photo(file.getvalue(), "p.png")
        photos.set_pixel_limit(0.05)
        assert decode_photo(file.getvalue(), "p.png").shape == (200, 200, 4)


def test_standard_input_to_standard_output_needs_no_run_but_a_checkpoint(tmp_path: Path) -> None:
    file = io.BytesIO()
    red_box(50, 40).save(file, "JPEG")
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "w.pth", NETWORKS["lab2.UNet"]().state_dict())
    command = [sys.executable, REPO / "src" / "inference.py", "--input", "-", "--model", tmp_path / "w.pth"]
    done = subprocess.run([*command, "--image_size", "32"], input=file.getvalue(), capture_output=True, check=True)
    with Image.open(io.BytesIO(done.stdout)) as cutout:
        assert (cutout.format, cutout.mode, cutout.size) == ("PNG", "RGBA", (50, 40))
    assert b"lab2.UNet" in done.stderr


def test_specks_and_holes_go_and_a_gap_at_the_border_stays() -> None:
    probs = np.zeros((60, 60), np.float32)
    probs[10:50, 0:40] = 0.9  # the pet, at the border
    probs[20:24, 20:24] = 0.1  # a hole
    probs[30:34, 0:4] = 0.1  # background between its legs, at the border
    probs[55:58, 55:58] = 0.9  # a speck
    probs[2:9, 45:59] = 0.9  # another animal
    expected = probs > 0.5
    expected[20:24, 20:24], expected[55:58, 55:58] = True, False
    np.testing.assert_array_equal(photos.clean_mask(probs, PhotoOptions(Path())), expected)
    expected[2:9, 45:59] = False
    np.testing.assert_array_equal(photos.clean_mask(probs, PhotoOptions(Path(), largest_only=True)), expected)


def test_several_photos_have_a_contact_sheet_on_a_chequerboard(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    for index in range(2):
        red_box(40, 60).save(tmp_path / f"{index}.png")
        cut(run, "--input", *sorted(tmp_path.glob("?.png")))
        assert (output / photos.SHEET).exists() == (index == 1)
    sheet = read(output / photos.SHEET)
    assert sheet.shape == (20 + 176 + 24, 2 * (2 * 176 + 4), 3)
    for grey in (205, 255):  # the board
        assert (sheet[30:, 180:350] == grey).all(-1).sum() > 100
    with pytest.raises(UserError, match="no photo in this folder"):  # neither results nor the sheet are photos
        cut(run, "--input", output)
    Image.new("RGB", (9, 9)).save(output / photos.SHEET)
    cut(run, "--input", *tmp_path.glob("?.png"))
    assert "contact_sheet.png is not of this program, and stays" in capsys.readouterr().out
    assert read(output / photos.SHEET).shape == (9, 9, 3)


def test_a_photo_named_like_the_contact_sheet_is_predicted(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("contact_sheet", "my_contact_sheet"):
        red_box(40, 40).save(folder / f"{name}.png")
    cut(run, "--input", folder, "--write", "mask,cutout")
    sheet = tmp_path / "out" / "contact_sheet.png"
    assert len(list((tmp_path / "out").glob("*contact_sheet_mask.png"))) == 2
    assert photos.photos_at(sheet.parent, recursive=False) == {}  # its own sheet is no photo
