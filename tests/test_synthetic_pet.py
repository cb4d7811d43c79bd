"""The drawn pets: the layout, the same pixels from the same seed, and neither place nor colour gives them away."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import synthetic_pet
from synthetic_pet import BREEDS, MARKER, breed_of, draw_pet, main, to_trimap, write_dataset


def read_rows(root: Path, split: str) -> list[list[str]]:
    lines = (root / "annotations" / f"{split}.txt").read_text().splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


def read_pet(root: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 RGB image and (H, W) uint8 trimap."""
    image = cv2.imread(str(root / "images" / f"{name}.jpg"), cv2.IMREAD_UNCHANGED)
    return image[..., ::-1], cv2.imread(str(root / "annotations" / "trimaps" / f"{name}.png"), cv2.IMREAD_UNCHANGED)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("tiny") / "pets", count=29, seed=1, size=(40, 64))


@pytest.fixture(scope="module")
def split_pets() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """60 trainval and 60 test pictures: images (N, 128, 128, 3) uint8 RGB and masks (N, 128, 128) bool."""
    pets = [draw_pet(np.random.default_rng([0, index]), (110, 170), breed_of(index)) for index in range(120)]
    images = np.stack([cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA) for image, _ in pets])
    masks = np.stack([cv2.resize(trimap, (128, 128), interpolation=cv2.INTER_NEAREST) != 2 for _, trimap in pets])
    return {"trainval": (images[::2], masks[::2]), "test": (images[1::2], masks[1::2])}


def mean_dice(preds: np.ndarray, masks: np.ndarray) -> float:
    """Mean per-image Dice of bool arrays (N, H, W), or one prediction (H, W) for all."""
    overlap = (preds & masks).sum((1, 2))
    return float((2 * overlap / (preds.sum((-2, -1)) + masks.sum((1, 2)))).mean())


# What is in the folder.


def test_layout_is_that_of_the_data_set(tiny: Path):
    every, trainval, test = (read_rows(tiny, split) for split in ("list", "trainval", "test"))
    assert len(trainval) == 15 and len(test) == 14
    assert sorted(trainval + test) == sorted(every)
    names = [row[0] for row in every]
    assert {path.stem for path in (tiny / "images").glob("*.jpg")} == set(names)
    assert {path.stem for path in (tiny / "annotations" / "trimaps").glob("*.png")} == set(names)
    assert len((tiny / "annotations" / "list.txt").read_text().splitlines()) == 6 + 29
    for name, class_id, species, breed_id in every:
        breed = BREEDS[int(class_id) - 1]
        assert name.rpartition("_")[0] == breed.name
        assert species == ("1" if name[0].isupper() else "2")
        same_species = [b for b in BREEDS if b.is_cat == breed.is_cat]
        assert same_species[int(breed_id) - 1] is breed


def test_every_evenly_spaced_subset_has_cats_and_dogs():
    for offset in (0, 1):  # trainval, test
        for step in range(1, 11):
            assert {breed_of(index).is_cat for index in range(offset, 400, 2 * step)} == {True, False}
        assert {breed_of(index).name for index in range(offset, 400, 2)} == {breed.name for breed in BREEDS}
    assert {breed_of(0).is_cat, breed_of(2).is_cat} == {breed_of(1).is_cat, breed_of(3).is_cat} == {True, False}


def test_pictures_and_trimaps(tiny: Path):
    shapes = set()
    for name, *_ in read_rows(tiny, "list"):
        image, trimap = read_pet(tiny, name)
        assert image.dtype == trimap.dtype == np.uint8
        assert image.shape == (*trimap.shape, 3)
        assert all(40 <= side <= 64 for side in trimap.shape)
        assert set(np.unique(trimap)) == {1, 2, 3}
        shapes.add(trimap.shape)
    assert len(shapes) > 20 and any(h > w for h, w in shapes) and any(h < w for h, w in shapes)


def test_boundary_lies_between_pet_and_background_and_is_thin(split_pets):
    _, trimap = draw_pet(np.random.default_rng(3))
    pet, background = (trimap == 1).astype(np.uint8), (trimap == 2).astype(np.uint8)
    neighbours = np.ones((3, 3), np.uint8)
    assert not (cv2.dilate(pet, neighbours) & background).any(), "pet touches background"
    distances = [cv2.distanceTransform(1 - side, cv2.DIST_L2, 5)[trimap == 3] for side in (pet, background)]
    assert np.percentile(distances[1], 95) < 0.05 * max(trimap.shape)
    boundary = [np.mean(draw_pet(np.random.default_rng([4, index]), (96, 128))[1] == 3) for index in range(30)]
    assert 0.04 < np.mean(boundary) < 0.13
    share = np.concatenate([masks for _, masks in split_pets.values()]).mean()
    assert 0.3 < share < 0.45


def test_trimap_of_a_square():
    mask = np.zeros((100, 100), bool)
    mask[30:70, 40:] = True
    trimap = to_trimap(mask)
    assert trimap[50].tolist() == [2] * 39 + [3] * 2 + [1] * 59  # astride the outline, none along the picture's border


# The same seed and the same pixels.


def test_same_seed_same_files_and_other_seed_other_files(tmp_path: Path):
    first, again, other = (write_dataset(tmp_path / f"{n}", 6, seed, (40, 64)) for n, seed in enumerate((5, 5, 6)))
    assert contents(first) == contents(again)
    images = [path for path in contents(first) if path.endswith(".jpg")]
    assert not any(contents(first)[path] == contents(other)[path] for path in images)


def test_a_picture_does_not_depend_on_count(tmp_path: Path, tiny: Path):
    few = contents(write_dataset(tmp_path / "few", 5, seed=1, size=(40, 64)))
    many = contents(tiny)
    assert all(many[path] == few[path] for path in few if path.startswith(("images", "annotations/trimaps")))


# Neither place nor colour is enough.


def test_place_alone_is_not_enough(split_pets):
    place = split_pets["trainval"][1].mean(axis=0)
    scores = [mean_dice(place > threshold, split_pets["test"][1]) for threshold in np.arange(0.1, 0.8, 0.1)]
    assert 0.5 < max(scores) < 0.75


@pytest.mark.parametrize("channel", ["R", "G", "B", "H", "S", "V", "grey"])
def test_a_colour_threshold_is_not_enough(split_pets, channel: str):
    def values(split: str) -> np.ndarray:
        images = split_pets[split][0]
        if channel == "grey":
            return np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images])
        if channel in "RGB":
            return images[..., "RGB".index(channel)]
        return np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2HSV) for image in images])[..., "HSV".index(channel)]

    test, masks = values("test"), split_pets["test"][1]
    rules = [(threshold, sign) for threshold in range(0, 256, 16) for sign in (True, False)]
    train, train_masks = values("trainval"), split_pets["trainval"][1]
    threshold, sign = max(rules, key=lambda rule: mean_dice((train > rule[0]) == rule[1], train_masks))
    assert mean_dice((test > threshold) == sign, masks) < 0.7
    otsu = np.stack([cv2.threshold(np.ascontiguousarray(v), 0, 1, cv2.THRESH_OTSU)[1] for v in test]).astype(bool)
    assert max(mean_dice(otsu, masks), mean_dice(~otsu, masks)) < 0.7


# What is on disk is safe.


def test_nothing_is_drawn_twice(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(synthetic_pet, "draw_pet", lambda *_: pytest.fail("drawn again"))
    assert write_dataset(tiny, count=29, seed=1, size=(40, 64)) == tiny
    assert main([str(tiny), "--count", "29", "--seed", "1", "--size", "40", "64"]) == 0
    assert "already" in capsys.readouterr().out


def test_other_parameters_need_overwrite(tmp_path: Path):
    root = write_dataset(tmp_path / "pets", 4, seed=0, size=(32, 40))
    before = contents(root)
    with pytest.raises(ValueError, match="--overwrite"):
        write_dataset(root, 5, seed=0, size=(32, 40))
    assert contents(root) == before
    write_dataset(root, 5, seed=0, size=(32, 40), overwrite=True)
    assert json.loads((root / MARKER).read_text())["count"] == 5
    assert len(list((root / "images").iterdir())) == 5
    assert list(tmp_path.iterdir()) == [root]


def test_a_missing_picture_is_noticed(tmp_path: Path):
    root = write_dataset(tmp_path / "pets", 4, size=(32, 40))
    next((root / "images").iterdir()).unlink()
    with pytest.raises(ValueError, match="lacks some"):
        write_dataset(root, 4, size=(32, 40))


@pytest.mark.parametrize("marker", [None, "[]", "not json", '{"about": "something else"}'])
def test_a_folder_of_others_is_never_touched(tmp_path: Path, marker: str | None):
    (tmp_path / "thesis.txt").write_text("chapter one")
    if marker:
        (tmp_path / MARKER).write_text(marker)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="not made by this script"):
        write_dataset(tmp_path, 4, size=(32, 40), overwrite=True)
    assert contents(tmp_path) == before


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(folder: Path, index: int, *_) -> str:
        if index == 2:
            raise KeyboardInterrupt
        return ""

    monkeypatch.setattr(synthetic_pet, "write_pet", interrupt)
    assert main([str(tmp_path / "pets"), "--count", "8"]) == 130
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pets", "--count", "3"], "--count is 3"),
        (["pets", "--seed", "-1"], "--seed is -1"),
        (["pets", "--size", "60", "40"], "--size is 60 40"),
        (["a_file"], "was not made by this script"),
        (["a_file/pets"], "cannot write"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    Path("a_file").write_text("mine")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


def test_the_script_says_what_it_wrote_and_what_to_type_next(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main([str(tmp_path / "pets"), "--count", "4", "--size", "32", "40"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith("Drawing 4 pets") and output[1].startswith("Wrote")
    assert output[-1].startswith(f"Next: python src/train.py --model R --data_path {tmp_path / 'pets'} ")
