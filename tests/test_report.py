from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from report import HISTORY_COLUMNS, draw_contact_sheet, draw_curves, overlay, read_history, write_history


def history(epochs: int) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "valid_loss": 1.1 / epoch,
            "valid_dice": 1 - 0.3 / epoch,
            "learning_rate": 1e-3 / 3,
            "seconds": 12.25,
            "images_per_second": 271.5,
        }
        for epoch in range(1, epochs + 1)
    ]


# ---------------------------------------------------------------------------------------------- history


def test_history_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_history(tmp_path, "R", history(3))
    path = tmp_path / "R_history.csv"
    lines = path.read_text().splitlines()
    assert lines[0] == "epoch,train_loss,valid_loss,valid_dice,learning_rate,seconds,images_per_second"
    assert lines[0] == ",".join(HISTORY_COLUMNS)
    assert lines[1].startswith("1,1.0,1.1,0.7,")
    assert len(lines) == 4
    assert read_history(path) == history(3)
    np.testing.assert_array_equal(np.load(tmp_path / "R_losses.npy"), [1, 1 / 2, 1 / 3])
    np.testing.assert_array_equal(np.load(tmp_path / "R_dice_scores.npy"), [1 - 0.3 / e for e in (1, 2, 3)])
    assert {file.name for file in tmp_path.iterdir()} == {"R_history.csv", "R_losses.npy", "R_dice_scores.npy"}


def test_longer_history_replaces_the_shorter(tmp_path: Path) -> None:
    for epochs in (1, 2):
        write_history(tmp_path, "U", history(epochs))
        assert read_history(tmp_path / "U_history.csv") == history(epochs)
        assert len(np.load(tmp_path / "U_losses.npy")) == epochs


def test_no_history_is_an_empty_one(tmp_path: Path) -> None:
    assert read_history(tmp_path / "R_history.csv") == []


# ---------------------------------------------------------------------------------------------- curves


def test_curves_are_written_for_one_epoch_and_for_two_runs(tmp_path: Path) -> None:
    widths, pictures = [], []
    runs = {"one": {"R": history(1)}, "many": {"R": history(20)}, "both": {"U": history(20), "R": history(3)}}
    for name, histories in runs.items():
        path = tmp_path / f"{name}.png"
        draw_curves(histories, path)
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            pictures.append(np.asarray(picture.convert("RGB")).astype(int))
            widths.append(picture.width)
    assert widths[2] == 2 * widths[1] == 2 * widths[0]
    # The lines are there: matplotlib's blue and orange.
    for picture in pictures:
        for colour in ((31, 119, 180), (255, 127, 14)):
            assert (np.abs(picture - colour).max(-1) < 30).sum() > 20
    assert {file.name for file in tmp_path.iterdir()} == {"one.png", "many.png", "both.png"}


# ---------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(("height", "width"), [(60, 90), (301, 200)])
def test_overlay_tints_the_pet_and_darkens_the_rest(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(60, 200, (height, width, 3), dtype=np.uint8)
    before = image.copy()
    mask = np.zeros((height, width), bool)
    mask[10:40, 15:50] = True
    laid = overlay(image, mask)
    assert (laid.shape, laid.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(image, before)

    inside, outside = np.zeros_like(mask), ~mask
    inside[15:35, 20:45] = True  # away from the outline
    outside[5:45, 10:55] = False
    greenness = [np.mean(picture[inside] @ [-0.5, 1, -0.5]) for picture in (image.astype(float), laid.astype(float))]
    assert greenness[1] > greenness[0] + 20
    assert (laid[outside] < image[outside]).all()
    outline = laid[10, 16:49]
    assert (outline == 255).all()


def test_overlay_of_nothing_and_of_everything() -> None:
    image = np.full((30, 40, 3), 100, np.uint8)
    assert (overlay(image, np.zeros((30, 40), bool)) == 60).all()
    assert (overlay(image, np.ones((30, 40), bool))[5:-5, 5:-5, 1] > 100).all()


@pytest.mark.parametrize(("tiles", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (4, 3, 2), (6, 3, 2)])
def test_contact_sheet_has_a_place_for_every_tile(tiles: int, columns: int, rows: int) -> None:
    side = 80
    shapes = [(60, 30, 3), (20, 90, 3)]
    colours = np.random.default_rng(0).integers(0, 200, (tiles, 3))
    entries = [
        (f"tile {index}", [np.full(shape, colours[index], np.uint8) for shape in shapes]) for index in range(tiles)
    ]
    sheet = draw_contact_sheet(entries, columns, side)
    height, width = 20 + side + 4, 2 * side + 4  # caption above, a margin around
    assert (sheet.shape, sheet.dtype) == ((rows * height, columns * width, 3), np.uint8)
    for index in range(tiles):
        top, left = index // columns * height, index % columns * width
        centre = top + 2 + 20 + side // 2
        for picture in range(2):
            assert sheet[centre, left + 2 + picture * side + side // 2].tolist() == colours[index].tolist()
        assert (sheet[top + 2 : top + 22, left : left + width] < 100).any()  # the caption
