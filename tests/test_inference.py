"""inference.py: masks, overlays and a contact sheet of the test images, as they were scored."""

import json
import shutil
from pathlib import Path

from plumbing.cli import UserError
from plumbing.images import decode_image

import cv2
import numpy as np
import pytest
from conftest import Train
from PIL import Image

import inference
from oxford_pet import image_path, read_split, trimap_path
from rle import encode_rle
from trimap import decode_trimap


@pytest.fixture
def trained(run_train: Train, tmp_path: Path) -> list[str]:
    """A run of a tiny network; the flags that find it and say where the masks go."""
    run_train("--epochs", 4, "--learning_rate", 0.05)
    return ["--model", "R", "--save_path", str(tmp_path), "--output", str(tmp_path / "out")]


def test_masks_overlays_and_sheet_are_what_was_scored(
    trained: list[str], drawn_pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    inference.main(trained)
    names, output = read_split(drawn_pets, "test"), tmp_path / "out"
    written = {f"{name}_{kind}.png" for name in names for kind in ("mask", "overlay")} | {
        "contact_sheet.png",
        "report.html",
    }
    assert {path.name for path in output.iterdir()} == written
    report = json.loads((tmp_path / "R" / "R_test_scores.json").read_text())
    assert [row["name"] for row in report["per_image"]] == names
    for row in report["per_image"]:
        image = decode_image(image_path(drawn_pets, row["name"]))
        mask = cv2.imread(str(output / f"{row['name']}_mask.png"), cv2.IMREAD_UNCHANGED)
        overlay = cv2.imread(str(output / f"{row['name']}_overlay.png"))
        assert (mask.shape, overlay.shape) == (image.shape[:2], image.shape)
        assert set(np.unique(mask)) <= {0, 255}
        pred, target = mask > 0, decode_trimap(trimap_path(drawn_pets, row["name"])) != 2
        assert row["dice_original"] == pytest.approx(2 * (pred & target).sum() / (pred.sum() + target.sum()))
    assert f"wrote 20 masks and overlays to {output} in " in capsys.readouterr().out


def test_only_leftovers_of_killed_runs_are_removed(trained: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    for name in (".notes.part", ".x_mask.png.part", ".x.png.01234567.part", ".x_mask.png.01234567.part"):
        (output / name).touch()
    inference.main([*trained, "--masks_only"])
    assert sorted(path.name for path in output.glob("*.part")) == [
        ".notes.part",
        ".x.png.01234567.part",
        ".x_mask.png.part",
    ]


def test_masks_only_are_the_same_masks(trained: list[str], tmp_path: Path) -> None:
    every, masks = (tmp_path / name for name in ("all", "masks"))
    inference.main([*trained, "--output", str(every)])
    inference.main([*trained, "--output", str(masks), "--masks_only"])
    kept = {
        path.name: path.read_bytes()
        for path in every.iterdir()
        if path.suffix == ".png" and not path.name.endswith("_overlay.png")
    }
    assert {path.name: path.read_bytes() for path in masks.iterdir()} == kept


def test_odd_data(trained: list[str], drawn_pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """An RGBA PNG under .jpg, as the real data set has, and a trimap without a pet; few images make a sheet too."""
    copy = shutil.copytree(drawn_pets, tmp_path / "copy")
    name = read_split(copy, "test")[0]
    image = decode_image(image_path(copy, name))
    Image.fromarray(image).convert("RGBA").save(image_path(copy, name), format="PNG")
    Image.fromarray(np.full(image.shape[:2], 2, np.uint8)).save(trimap_path(copy, name))
    for limit in (1, 2):
        inference.main([*trained, "--data_path", str(copy), "--limit", str(limit)])
        with Image.open(tmp_path / "out" / f"{name}_mask.png") as mask:
            assert mask.size == image.shape[1::-1]
        report = json.loads((tmp_path / "R" / f"R_limit{limit}_data-copy_test_scores.json").read_text())
        row = report["per_image"][0]
        assert (report["images"], report["empty_targets"], row["empty_target"]) == (limit, 1, True)
        assert row["dice"] in (0, 1)
        assert "1 of the targets have no foreground" in capsys.readouterr().out
        (tmp_path / "out" / "contact_sheet.png").unlink()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--input", "p.jpg", "--recipe", "lab2"], "which network?"),
        (["--input", "p.jpg", "--load_model_epoch", "final"], "which network?"),
        (["--input", "p.jpg", "--batch_size", "4"], "--batch_size works only without --input"),
        (["--model", "R", "--threshold", "0.4"], "--threshold works only with --input"),
        ([__file__], f"unexpected {__file__!r}; did you mean --input {__file__}?"),
        ([], "which network? --model U or --model R; or --input PHOTO, to cut out photos"),
        (["--input", "p.jpg", "--rle", "a.csv", "--write", "cutout"], "--rle needs the masks: add mask to --write"),
        (["--input", "p.jpg", "--pixel_limit", "1e304"], "'1e304' is not above 0 and at most a million megapixels"),
        (["--input", "p.jpg", "--write", "mask,video"], "--write takes mask, overlay, cutout"),
        (["--input", "p.jpg", "-"], "--input - takes one photo"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        inference.parse_args(flags)
    assert said in capsys.readouterr().err


def test_photos_refuse_the_run_of_another_network_or_recipe(trained: list[str], drawn_pets: Path) -> None:
    photo = str(image_path(drawn_pets, read_split(drawn_pets, "test")[0]))
    for flags, said in ((["--recipe", "lab2"], "not by --recipe lab2"), (["--model", "U"], "not what --model UNet")):
        with pytest.raises(UserError, match=said):
            inference.main([*trained, *flags, "--name", "R", "--input", photo])


def test_a_run_that_is_not_there_leaves_no_folder(trained: list[str], tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no checkpoint"):
        inference.main([*trained, "--name", "mistyped"])
    assert not (tmp_path / "out").exists()


def test_run_length_encodings_decode_to_the_masks(trained: list[str], drawn_pets: Path, tmp_path: Path) -> None:
    photos = [*trained[:4], "--output", str(tmp_path / "photos"), "--input", str(drawn_pets / "images")]
    for flags, folder in ((trained, tmp_path / "out"), (photos, tmp_path / "photos")):
        table = tmp_path / "new" / "masks.csv"
        for _ in range(2):  # photos that are skipped have a row too
            inference.main([*flags, "--rle", str(table)])
            header, *rows = table.read_text().splitlines()
            assert header == "id,mask"
            assert len(rows) == len(list(folder.glob("*_mask.png"))) > 3
            for name, _, runs in (row.partition(",") for row in rows):
                mask = cv2.imread(str(folder / f"{name}_mask.png"), cv2.IMREAD_UNCHANGED)
                decoded = np.zeros(mask.size, np.uint8)
                numbers = list(map(int, runs.split()))
                for start, length in zip(numbers[::2], numbers[1::2], strict=True):
                    decoded[start - 1 : start - 1 + length] = 255
                np.testing.assert_array_equal(decoded.reshape(mask.shape[::-1]).T, mask)


@pytest.mark.parametrize(
    ("rows", "runs"),
    [(["000", "000"], ""), (["111", "111"], "1 6"), (["100", "001"], "1 1 6 1"), (["011", "010"], "3 3")],
)
def test_run_lengths_are_counted_from_one_down_the_columns(rows: list[str], runs: str) -> None:
    assert encode_rle(np.array([[pixel == "1" for pixel in row] for row in rows])) == runs
