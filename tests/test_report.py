from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from checkpoint import HISTORY_COLUMNS
from report import draw_contact_sheet, draw_curves, overlay, read_history, write_arrays, write_history


def history(epochs: int) -> list[dict[str, float]]:
    """A value of its own in every column and epoch."""
    return [
        {name: epoch if name == "epoch" else (column + 0.1) / epoch for column, name in enumerate(HISTORY_COLUMNS)}
        for epoch in range(1, epochs + 1)
    ]


def test_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "R_history.csv"
    assert read_history(path) == []
    for rows in (history(1), history(3)):  # the longer one replaces the shorter
        write_history(tmp_path, "R", rows)
        assert read_history(path) == rows
    header, first, *_ = path.read_text().splitlines()
    assert header == "epoch,train_loss,valid_loss,valid_dice,learning_rate,seconds,images_per_second"
    assert first.startswith("1,1.1,2.1,")


def test_training_dice_may_begin_late(tmp_path: Path) -> None:
    rows = [*history(1), history(2)[1] | {"train_dice": 0.5}]
    write_history(tmp_path, "R", rows)
    first, second = read_history(tmp_path / "R_history.csv")
    assert np.isnan(first.pop("train_dice"))
    assert [first, second] == rows


def test_the_arrays_have_a_value_an_epoch(tmp_path: Path) -> None:
    write_arrays(tmp_path, "R", history(3))
    for array, column in (("losses", "train_loss"), ("dice_scores", "valid_dice")):
        np.testing.assert_array_equal(np.load(tmp_path / f"R_{array}.npy"), [row[column] for row in history(3)])


def test_curves_are_written_for_one_epoch_and_for_two_runs(tmp_path: Path) -> None:
    images = []
    for runs in ({"R": history(1)}, {"R": history(20)}, {"U": history(20), "R": history(3)}):
        draw_curves(runs, tmp_path / "curves.png")
        with Image.open(tmp_path / "curves.png") as image:
            assert image.format == "PNG"
            images.append(np.asarray(image.convert("RGB")).astype(int))
    widths = [image.shape[1] for image in images]
    assert widths[2] == 2 * widths[1] == 2 * widths[0]
    for image in images:
        for colour in ((0, 89, 156), (179, 89, 0)):  # those of the page: the lines are there
            assert (np.abs(image - colour).max(-1) < 30).sum() > 20
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_overlay_tints_the_pet_and_darkens_the_rest() -> None:
    image = np.random.default_rng(0).integers(60, 200, (60, 90, 3), dtype=np.uint8)
    mask = np.zeros((60, 90), bool)
    mask[10:40, 15:50] = True
    drawn = overlay(image, mask)
    assert (drawn.shape, drawn.dtype) == (image.shape, np.uint8)
    outside = ~mask
    outside[5:45, 10:55] = False  # away from the outline
    assert (drawn[outside] < image[outside]).all()
    assert (drawn[10, 16:49] == 255).all()  # the outline
    greenness = [(part[15:35, 20:45] @ [-0.5, 1, -0.5]).mean() for part in (image, drawn)]
    assert greenness[1] > greenness[0] + 20


def test_overlay_of_nothing_and_of_everything() -> None:
    image = np.full((30, 40, 3), 100, np.uint8)
    assert (overlay(image, np.zeros((30, 40), bool)) == 60).all()
    assert (overlay(image, np.ones((30, 40), bool))[5:-5, 5:-5, 1] > 100).all()


@pytest.mark.parametrize(("tiles", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (4, 3, 2), (6, 3, 2)])
def test_contact_sheet_has_a_place_for_every_tile(tiles: int, columns: int, rows: int) -> None:
    side = 80
    colours = np.random.default_rng(0).integers(0, 200, (tiles, 3), dtype=np.uint8)
    shapes = [(60, 30, 3), (20, 90, 3)]
    entries = [(f"tile {i}", [np.full(shape, colours[i], np.uint8) for shape in shapes]) for i in range(tiles)]
    sheet = draw_contact_sheet(entries, columns, side)
    height, width = 20 + side + 4, 2 * side + 4  # caption above, a margin around
    assert (sheet.shape, sheet.dtype) == ((rows * height, columns * width, 3), np.uint8)
    for i in range(tiles):
        top, left = i // columns * height, i % columns * width
        row, column = top + 22 + side // 2, left + 2 + side // 2  # the centre of the first image
        assert (sheet[row, [column, column + side]] == colours[i]).all()
        assert (sheet[top + 2 : top + 22, left : left + width] < 100).any()  # the caption


def test_a_contact_sheet_says_which_column_is_what() -> None:
    tiles = [(f"tile {i}", [np.full((80, 80, 3), 100, np.uint8)] * 3) for i in range(4)]
    plain, labelled = (draw_contact_sheet(tiles, 2, 80, labels) for labels in ((), ("image", "target", "prediction")))
    np.testing.assert_array_equal(labelled[20:], plain)
    head = labelled[:20] < 100  # what is written
    parts = [head[:, 2 + 80 * i : 2 + 80 * (i + 1)] for i in range(3)]
    assert all(part.any() for part in parts)
    assert parts[0].sum() < parts[2].sum()  # a longer word
    width = 3 * 80 + 4
    np.testing.assert_array_equal(head[:, :width], head[:, width:])  # above each column of tiles
