"""The drawn pets: the layout, the same pixels from the same seed, and neither position nor colour gives them away."""

from pathlib import Path

import cv2
import numpy as np
import pytest

import draw_pets
from draw_pets import BREEDS, CATS, DOGS, breed_of, draw_pet, main, to_trimap, write_dataset
from oxford_pet import image_path, trimap_path


def read_rows(root: Path, split: str) -> list[list[str]]:
    lines = (root / "annotations" / f"{split}.txt").read_text().splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("tiny") / "pets", count=29, seed=1, size=(40, 64))


@pytest.fixture(scope="module")
def samples() -> tuple[np.ndarray, np.ndarray]:
    """120 images (N, 128, 128, 3) uint8 RGB and masks (N, 128, 128) bool; every other one is test."""
    pets = [draw_pet(np.random.default_rng([0, index]), breed_of(index), (110, 170)) for index in range(120)]
    images = np.stack([cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA) for image, _ in pets])
    masks = np.stack([cv2.resize(trimap, (128, 128), interpolation=cv2.INTER_NEAREST) != 2 for _, trimap in pets])
    return images, masks


def mean_dice(preds: np.ndarray, masks: np.ndarray) -> float:
    """Mean per-image Dice of bool arrays (N, H, W), or one prediction (H, W) for all."""
    overlap = (preds & masks).sum((1, 2))
    return float((2 * overlap / (preds.sum((-2, -1)) + masks.sum((1, 2)))).mean())


def test_layout_is_that_of_the_data_set(tiny: Path):
    every, trainval, test = (read_rows(tiny, split) for split in ("list", "trainval", "test"))
    assert len(trainval) == 15 and len(test) == 14
    assert sorted(trainval + test) == sorted(every)
    assert len(contents(tiny)) == 2 * 29 + 4
    shapes = set()
    for name, class_id, species, breed_id in every:
        breed = BREEDS[int(class_id) - 1]
        assert name.rpartition("_")[0] == breed.name
        assert species == ("1" if name[0].isupper() else "2")
        assert (CATS if species == "1" else DOGS)[int(breed_id) - 1] is breed
        image, trimap = (
            cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (image_path(tiny, name), trimap_path(tiny, name))
        )
        assert image.dtype == trimap.dtype == np.uint8
        assert image.shape == (*trimap.shape, 3)
        assert all(40 <= side <= 64 for side in trimap.shape)
        assert set(np.unique(trimap)) == {1, 2, 3}
        shapes.add(trimap.shape)
    assert len(shapes) > 20


def test_every_evenly_spaced_subset_has_cats_and_dogs():
    for offset in (0, 1):  # trainval, test
        for step in range(1, 11):
            assert {breed_of(index) in CATS for index in range(offset, 400, 2 * step)} == {True, False}
        assert {breed_of(index) for index in range(offset, 400, 2)} == set(BREEDS)
    assert {breed_of(0) in CATS, breed_of(2) in CATS} == {breed_of(1) in CATS, breed_of(3) in CATS} == {True, False}


def test_boundary_lies_between_pet_and_background_and_is_thin(samples: tuple[np.ndarray, np.ndarray]):
    mask = np.zeros((100, 100), bool)
    mask[30:70, 40:] = True
    assert to_trimap(mask)[50].tolist() == [2] * 39 + [3] * 2 + [1] * 59  # none along the image's border
    boundary = []
    for index in range(30):
        _, trimap = draw_pet(np.random.default_rng([4, index]), breed_of(index), (96, 128))
        touched = cv2.dilate((trimap == 1).astype(np.uint8), np.ones((3, 3), np.uint8)) == 1
        assert not (touched & (trimap == 2)).any(), "pet touches background"
        boundary.append(np.mean(trimap == 3))
    assert 0.04 < np.mean(boundary) < 0.13
    assert 0.3 < samples[1].mean() < 0.45


def test_trimap_follows_the_outline_that_is_drawn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(draw_pets.Scene, "tint", lambda self, _: np.float32([0, 250, 0]))
    monkeypatch.setattr(draw_pets.Scene, "cast_shadow", lambda *_, **__: None)
    monkeypatch.setattr(draw_pets, "OPTIONAL", (*draw_pets.OPTIONAL, "pink", "iris", "nose", "whisker"))
    for index in range(8):
        image, trimap = draw_pet(np.random.default_rng([2, index]), BREEDS[4], (160, 200))
        green = image[..., 1] > 2.0 * image[..., 0].astype(int)  # all but the fur is green
        assert green[trimap == 2].mean() > 0.99
        assert green[trimap == 1].mean() < 0.2


def test_same_seed_same_files_and_other_seed_other_files(tmp_path: Path, tiny: Path):
    first, again, other = (write_dataset(tmp_path / f"{n}", 6, seed, (40, 64)) for n, seed in enumerate((1, 1, 2)))
    assert contents(first) == contents(again)
    images = [path for path in contents(first) if path.startswith(("images", "annotations/trimaps"))]
    assert not any(contents(first)[path] == contents(other)[path] for path in images)
    assert all(contents(first)[path] == contents(tiny)[path] for path in images)  # count does not matter


def test_neither_position_nor_a_colour_threshold_is_enough(samples: tuple[np.ndarray, np.ndarray]):
    images, masks = samples
    position = masks[::2].mean(axis=0)
    scores = [mean_dice(position > threshold, masks[1::2]) for threshold in np.arange(0.1, 0.8, 0.1)]
    assert 0.5 < max(scores) < 0.75
    hsv = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2HSV) for image in images])
    rules = [(threshold, sign) for threshold in range(0, 256, 16) for sign in (True, False)]
    for values in np.moveaxis(np.concatenate([images, hsv], axis=3), 3, 0):
        threshold, sign = max(rules, key=lambda rule: mean_dice((values[::2] > rule[0]) == rule[1], masks[::2]))
        assert mean_dice((values[1::2] > threshold) == sign, masks[1::2]) < 0.7


def test_nothing_is_drawn_twice_or_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = write_dataset(tmp_path / "pets", 4, seed=0, size=(32, 40))
    before = contents(root)
    with pytest.raises(FileExistsError):
        write_dataset(root, 5, seed=0, size=(32, 40))
    monkeypatch.setattr(draw_pets, "draw_pet", lambda *_: pytest.fail("drawn again"))
    assert write_dataset(root, 4, seed=0, size=(32, 40)) == root
    assert contents(root) == before


@pytest.mark.parametrize("flags", ["--count 3", "--size 60 40", "--size 20 40", "--size 40 2000"])
def test_a_number_out_of_range_is_named(tmp_path: Path, flags: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "pets"), *flags.split()])
    assert flags.split()[0] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_script_ends_with_the_next_command_and_prints_no_bar_into_pipes(tmp_path: Path, capfd):
    main([str(tmp_path / "my pets"), "--count", "4", "--size", "32", "40"])
    output, errors = capfd.readouterr()
    assert output.splitlines()[-1].startswith(f"next: python src/train.py --model R --data_path '{tmp_path}/my pets' ")
    assert errors == ""
