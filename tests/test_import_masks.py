import csv
from pathlib import Path

from plumbing.images import decode_image

import cv2
import numpy as np
import pytest
from PIL import Image

import check_data
import import_masks
from oxford_pet import MODES, image_path, read_split, trimap_path
from split import load_split
from trimap import decode_trimap

SIZE = (24, 32)  # height, width
TYPES = ("jpg", "png", "bmp", "webp", "tif", "gif")


def draw(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Write images of all types and masks of 0 and 255 to ``folder``; return what is foreground."""
    targets = {}
    for index, name in enumerate(names):
        random = np.random.default_rng(index)
        target = cv2.circle(np.zeros(SIZE, np.uint8), tuple(map(int, random.integers(6, 18, 2))), 5, 1, -1)
        image = random.integers(0, 255, (*SIZE, 3), np.uint8)
        image[target > 0] = (250, 200, 30)
        for kind, array, suffix in (("photos", image, TYPES[index % 6]), ("masks", target * 255, "png")):
            path = folder / kind / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
        targets[name] = target > 0
    return targets


@pytest.fixture
def coins(tmp_path: Path) -> dict[str, np.ndarray]:
    return draw(tmp_path, [f"tray {index % 3}/coin é{index}" for index in range(30)])


def run(tmp_path: Path, *flags: object, output: str = "out") -> Path:
    paths = (tmp_path / "photos", tmp_path / "masks", "--output", tmp_path / output)
    import_masks.main([str(word) for word in (*paths, *flags)])
    return tmp_path / output


def splits(root: Path) -> dict[str, str]:
    return {name: mode for mode in MODES for name in read_split(root, mode)}


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], *flags: object) -> list[str]:
    """The lines about what is wrong; nothing may be written."""
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, *flags)
    assert ended.value.code == 1
    assert not (tmp_path / "out").exists()
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.replace("\n            ", " > ").splitlines()]
    return [line.removeprefix("WRONG ") for line in lines if line.startswith("WRONG")]


@pytest.mark.parametrize("flags", [(), ("--link",)])
def test_folders_become_a_data_set(
    tmp_path: Path, coins: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str], flags: tuple
) -> None:
    root = run(tmp_path, *flags)
    check_data.main([str(root)])
    assert "WRONG" not in capsys.readouterr().out
    with open(root / "names.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["name"]: row["split"] for row in rows} == splits(root)
    assert [row["name"] for row in rows][:2] == ["tray_0__coin_é0", "tray_0__coin_é12"]
    for row in rows:
        original, name = tmp_path / "photos" / row["image"], row["name"]
        assert image_path(root, name).is_symlink() == bool(flags)
        np.testing.assert_array_equal(decode_image(image_path(root, name)), decode_image(original))
        target = coins[row["image"].rsplit(".", 1)[0]]
        np.testing.assert_array_equal(decode_trimap(trimap_path(root, name)), np.where(target, 1, 2))
    assert len(load_split(root, "train", 32)) == sum(row["split"] == "train" for row in rows) > 10


@pytest.mark.parametrize(
    ("kind", "foreground"),
    [
        *((kind, []) for kind in ("0 and 1", "indices", "grey RGB", "one bit", "16 bit", "transparent")),
        ("indices", ["200,0,0"]),
        ("colours", ["255,0,0", "0,0,255"]),
        ("inverted", ["0"]),
    ],
)
def test_kinds_of_masks(tmp_path: Path, coins: dict[str, np.ndarray], kind: str, foreground: list[str]) -> None:
    for name, target in coins.items():
        mask = target.astype(np.uint8)
        if kind == "indices":
            image = Image.fromarray(3 + 4 * mask, "P")
            colours = [(9, index, 9) for index in range(256)]
            image.putpalette(sum([*colours[:7], (200, 0, 0), *colours[8:]], ()))
        elif kind == "colours":
            colours = np.array([(0, 255, 0), (255, 0, 0), (0, 0, 255), (9, 9, 9)], np.uint8)
            left = np.arange(SIZE[1]) < 12
            image = Image.fromarray(colours[np.where(target, 1 + left, 3 * left)])
        elif kind == "transparent":
            image = Image.fromarray(np.dstack([np.full((*SIZE, 3), 255, np.uint8), mask * 255]))
        else:
            arrays = {
                "0 and 1": mask,
                "one bit": target,
                "16 bit": mask * np.uint16(65535),
                "inverted": 255 - 255 * mask,
            }
            image = Image.fromarray(arrays[kind] if kind in arrays else np.dstack([mask * 255] * 3))
        image.save(tmp_path / "masks" / f"{name}.png")
    root = run(tmp_path, *(word for value in foreground for word in ("--foreground", value)))
    for name, target in coins.items():
        trimap = decode_trimap(trimap_path(root, import_masks.plain_name(name)))
        np.testing.assert_array_equal(trimap, np.where(target, 1, 2))


def test_boundary_band_is_as_wide_as_asked() -> None:
    is_foreground = np.zeros((20, 20), bool)
    is_foreground[:, 10:] = True
    for pixels in range(5):
        row = import_masks.mark_boundary(is_foreground, pixels)[5]
        inside = pixels - pixels // 2
        assert row.tolist() == [2] * (10 - pixels // 2) + [3] * pixels + [1] * (10 - inside)
    assert (import_masks.mark_boundary(np.ones((4, 4), bool), 3) == 1).all()


def test_grown_folder_keeps_its_split_and_a_copy_goes_where_its_twin_is(tmp_path: Path) -> None:
    names = [f"coin {index}" for index in range(60)]
    draw(tmp_path, names[:40])
    before = splits(run(tmp_path))
    targets = draw(tmp_path, names)
    for name in names[::3]:
        image = Image.open(next((tmp_path / "photos").glob(f"{name}.*"))).convert("RGB")
        for kind, copy in (("photos", image), ("masks", Image.fromarray(targets[name].astype(np.uint8) * 255))):
            copy.resize((64, 48), Image.Resampling.NEAREST).save(tmp_path / kind / f"{name} (1).png")
    after = splits(run(tmp_path, output="grown"))
    assert len(after) == 80 and before.items() <= after.items()
    plain = [import_masks.plain_name(name) for name in names[::3]]
    assert {after[name] for name in plain} > {"train"}
    assert [after[f"{name}__1_"] for name in plain] == [after[name] for name in plain]
    assert splits(run(tmp_path, "--seed", 1, output="other")) != after


def test_lists_are_followed(tmp_path: Path, coins: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    names, lists = list(coins), tmp_path / "lists"
    lists.mkdir()
    (lists / "trainval.txt").write_text("".join(f"{name}\n" for name in names[:20]), encoding="utf-8")
    (lists / "test.txt").write_text("# names\n" + "".join(f"{name}.jpg\n" for name in names[20:25]), encoding="utf-8")
    plain = [import_masks.plain_name(name) for name in names]
    drawn = run(tmp_path, "--lists", lists, "--valid", 0.3, output="drawn")
    assert read_split(drawn, "test") == sorted(plain[20:25])
    assert sorted(read_split(drawn, "train") + read_split(drawn, "valid")) == sorted(plain[:20])
    (lists / "val.txt").write_text("".join(f"{name} 1 1 1\n" for name in plain[:3]), encoding="utf-8")
    assert read_split(run(tmp_path, "--lists", lists, output="listed"), "valid") == sorted(plain[:3])

    (lists / "train.txt").write_text(f"{names[20]}\nnobody\n", encoding="utf-8")
    assert refused(tmp_path, capsys, "--lists", lists) == [
        "1 names on a list that have no file > train.txt: nobody",
        f"1 names on the lists of two splits > train and test: {names[20]}",
    ]


def test_all_that_does_not_fit_is_named_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = draw(tmp_path, [f"{index:02}" for index in range(30)] + ["a b", "a_b"])
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    (masks / "00.png").unlink()
    (photos / "01.png").unlink()
    (photos / "02.txt").touch()
    (photos / "._03.png").write_bytes(b"Mac OS X")
    Image.open(photos / "02.bmp").save(photos / "02.jpeg")
    (photos / "06.jpg").write_bytes((photos / "06.jpg").read_bytes()[:-90])
    for name, array in (
        ("07", np.full((9, 8), 255, np.uint8)),
        ("08", np.where(targets["08"], 255, np.eye(*SIZE)).astype(np.uint8)),
        ("09", np.zeros(SIZE, np.uint8)),
    ):
        Image.fromarray(array).save(masks / f"{name}.png")
    assert refused(tmp_path, capsys, "--valid", 1e-9) == [
        "1 images without a mask > 00",
        "1 masks without an image > 01",
        f"1 files of one name > {photos}/02.bmp = {photos}/02.jpeg",
        "1 names that differ only in what is replaced > would be a_b: a b = a_b",
        "1 broken files > is broken: image file is truncated: " + str(photos / "06.jpg"),
        "1 images and masks of different size (width, height) > 07 ((32, 24) and (8, 9))",
        "1 masks with values other than 0 (background) and 255 (foreground); --foreground VALUE takes all others as "
        "background > 0; 1; 255: 08",
        "1 masks without foreground (255); --allow_empty takes them > 09",
        "1 empty splits; another --seed may help > valid",
    ]
    with pytest.raises(FileExistsError, match="exists already"):
        run(tmp_path, output="photos")


def test_portrait_whose_mask_follows_exif_is_turned(tmp_path: Path, coins: dict[str, np.ndarray]) -> None:
    name = next(iter(coins))
    stored = np.zeros((24, 32, 3), np.uint8)
    stored[:12] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(stored).save(tmp_path / "photos" / f"{name}.jpg", exif=exif)
    Image.fromarray(coins[name].T.astype(np.uint8) * 255).save(tmp_path / "masks" / f"{name}.png")
    shown = decode_image(image_path(run(tmp_path, "--link"), import_masks.plain_name(name)))
    assert shown.shape == (32, 24, 3)
    assert shown[:, 14:].min() > 240 and shown[:, :10].max() < 15
