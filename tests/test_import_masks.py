import csv
import shutil
from collections.abc import Callable
from pathlib import Path

from plumbing.cli import UserError
from plumbing.images import decode_image

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

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


def reports(capsys: pytest.CaptureFixture[str], mark: str) -> list[str]:
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.replace("\n            ", " > ").splitlines()]
    return [line.removeprefix(f"{mark} ") for line in lines if line.startswith(mark)]


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], *flags: object) -> list[str]:
    """The lines about what is wrong; nothing may be written."""
    with pytest.raises((SystemExit, UserError)) as ended:
        run(tmp_path, *flags)
    assert ended.type is UserError or ended.value.code == 1
    assert not (tmp_path / "out").exists()
    return reports(capsys, "WRONG")


def redraw(tmp_path: Path, targets: dict[str, np.ndarray], mask: Callable[..., object], suffix: str = ".png") -> None:
    """Replace the masks by what ``mask`` makes of the foreground, (H, W) uint8: an array, or an index and a palette."""
    for name, target in targets.items():
        (tmp_path / "masks" / f"{name}.png").unlink(missing_ok=True)
        made = mask(target.astype(np.uint8))
        image = Image.fromarray(made[0], "P") if isinstance(made, tuple) else Image.fromarray(made)
        if isinstance(made, tuple):
            image.putpalette(made[1])
        image.save(tmp_path / "masks" / f"{name}{suffix}")


def check_trimaps(root: Path, targets: dict[str, np.ndarray]) -> None:
    for name, target in targets.items():
        trimap = decode_trimap(trimap_path(root, import_masks.plain_name(name)))
        np.testing.assert_array_equal(trimap, np.where(target, 1, 2))


def refuse(*_: object) -> None:
    raise OSError("a required privilege is not held by the client")


@pytest.mark.parametrize("way", ["copies", "links", "hard links"])
def test_folders_become_a_data_set(
    tmp_path: Path,
    coins: dict[str, np.ndarray],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    if way == "hard links":
        monkeypatch.setattr(Path, "symlink_to", refuse)  # as Windows does
    root = run(tmp_path, *([] if way == "copies" else ["--link"]))
    check_data.main([str(root)])
    printed = capsys.readouterr().out
    assert "WRONG" not in printed and "note" not in printed.partition(f"{root}")[2]  # check_data's
    with open(root / "names.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["name"]: row["split"] for row in rows} == splits(root)
    assert [row["name"] for row in rows][:2] == ["tray_0__coin_é0", "tray_0__coin_é12"]
    for row in rows:
        original, name = tmp_path / "photos" / row["image"], row["name"]
        assert image_path(root, name).is_symlink() == (way == "links")
        assert image_path(root, name).samefile(original) == (way != "copies")
        np.testing.assert_array_equal(decode_image(image_path(root, name)), decode_image(original))
        target = coins[row["image"].rsplit(".", 1)[0]]
        np.testing.assert_array_equal(decode_trimap(trimap_path(root, name)), np.where(target, 1, 2))
    assert len(load_split(root, "train", 32)) == sum(row["split"] == "train" for row in rows) > 10


WHITE_RGB = np.full((*SIZE, 3), 255, np.uint8)
KINDS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], list[str]]] = {
    "0 and 1": (lambda mask: mask, []),
    "one bit": (lambda mask: mask > 0, []),
    "grey RGB": (lambda mask: np.dstack([mask * 255] * 3), []),
    "16 bit": (lambda mask: mask * np.uint16(65535), []),
    "transparent": (lambda mask: np.dstack([WHITE_RGB, mask * 255]), []),
    "colours": (lambda mask: np.array([(0, 255, 0), (255, 0, 0)], np.uint8)[mask], ["255,0,0"]),
    "classes": (lambda mask: mask * 3 + np.eye(*SIZE, dtype=np.uint8), ["3", "4"]),
    "inverted": (lambda mask: 255 - 255 * mask, ["0"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_masks(tmp_path: Path, coins: dict[str, np.ndarray], kind: str) -> None:
    array, foreground = KINDS[kind]
    redraw(tmp_path, coins, array)
    check_trimaps(run(tmp_path, *(word for value in foreground for word in ("--foreground", value))), coins)


def test_palettes_go_by_colour_unless_an_index_is_typed(
    tmp_path: Path, coins: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    first = dict([next(iter(coins.items()))])
    redraw(tmp_path, coins, lambda mask: (mask, [0, 0, 0, 255, 255, 255]))
    redraw(tmp_path, first, lambda mask: (1 - mask, [255, 255, 255, 0, 0, 0]))
    assert refused(tmp_path, capsys, "--foreground", "1") == [
        "1 masks of another palette than most; --foreground R,G,B takes a colour of all palettes > " + next(iter(first))
    ]
    check_trimaps(run(tmp_path), coins)
    shutil.rmtree(tmp_path / "out")

    redraw(tmp_path, coins, lambda mask: (mask, [255, 0, 0, 0, 255, 0]))
    (line,) = refused(tmp_path, capsys)
    assert "in a palette of other colours than black and white; --foreground INDEX or R,G,B says which" in line
    for value in ("1", "0,255,0"):
        check_trimaps(run(tmp_path, "--foreground", value, output=value), coins)


MANY_VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "saved as JPEG": lambda mask: mask * 255,
    "soft edges": lambda mask: cv2.GaussianBlur(mask * 255, (5, 5), 1),
    "half-transparent": lambda mask: np.dstack([WHITE_RGB, mask * 200]),
}


@pytest.mark.parametrize("cause", MANY_VALUES)
def test_values_in_between_need_a_threshold(
    tmp_path: Path, coins: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str], cause: str
) -> None:
    redraw(tmp_path, coins, MANY_VALUES[cause], ".jpg" if "JPEG" in cause else ".png")
    for flags in ([], ["--foreground", "255"], ["--foreground", "1", "--foreground", "2"]):
        (line,) = refused(tmp_path, capsys, *flags)
        assert line.startswith("30 files that cannot be taken") and cause in line and "--threshold 128" in line
    root = run(tmp_path, "--threshold", 128)
    areas = [
        (decode_trimap(trimap_path(root, import_masks.plain_name(name))) == 1).sum() / target.sum()
        for name, target in coins.items()
    ]
    assert min(areas) > 0.95 and max(areas) < 1.05


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
    for index, name in enumerate(names[::3]):
        image = Image.open(next((tmp_path / "photos").glob(f"{name}.*"))).convert("RGB")
        for kind, copy in (("photos", image), ("masks", Image.fromarray(targets[name].astype(np.uint8) * 255))):
            copy = ImageOps.mirror(copy).transpose(Image.Transpose.ROTATE_90) if index % 2 else copy
            copy.resize((2 * copy.width, 2 * copy.height), Image.Resampling.NEAREST).save(
                tmp_path / kind / f"{name} (1).png"
            )
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

    (lists / "val.txt").write_text("".join(f"{name}.jpg,{name}.PNG\n" for name in plain[:3]), encoding="utf-16")
    assert read_split(run(tmp_path, "--lists", lists, output="commas"), "valid") == sorted(plain[:3])
    assert "5 images on no list, which are not taken" in " ".join(reports(capsys, "note"))

    (lists / "train.txt").write_text(f"{names[20]}\nnobody\n{plain[0]},{plain[1]}\n", encoding="utf-8")
    assert refused(tmp_path, capsys, "--lists", lists) == [
        f"2 lines of a list that do not name one image > train.txt: nobody, {plain[0]},{plain[1]}",
        f"1 names on the lists of two splits > train and test: {names[20]}.jpg",
    ]


@pytest.mark.parametrize("name", ["{}_mask.png", "{}.jpg.png", "{}.PNG"])
def test_masks_of_other_names(
    tmp_path: Path, coins: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for old in coins:
        new = tmp_path / "masks" / name.format(old.upper() if "PNG" in name else old)
        new.parent.mkdir(exist_ok=True)
        (tmp_path / "masks" / f"{old}.png").rename(new)
    if "_mask" in name:
        images, masks = refused(tmp_path, capsys)
        assert images.startswith("30 images without a mask >")
        assert masks.startswith("30 masks without an image; try --mask_suffix=_mask >")
        check_trimaps(run(tmp_path, "--mask_suffix=_mask"), coins)
    else:
        check_trimaps(run(tmp_path), coins)
        assert any("30 masks named otherwise than their image >" in line for line in reports(capsys, "note"))


def test_links_are_followed_and_what_is_not_read_is_named(
    tmp_path: Path, coins: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("photos", "masks"):
        (tmp_path / kind / "tray 1").rename(tmp_path / f"{kind} elsewhere")
        (tmp_path / kind / "tray 1").symlink_to(tmp_path / f"{kind} elsewhere")
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    for name in ("scan.pgm", ".hidden.png"):
        (tmp_path / "photos" / name).write_bytes(b"P5")
    check_trimaps(run(tmp_path), coins)
    (line, *_) = reports(capsys, "note")
    assert line.startswith("3 files not read in") and line.endswith("> .hidden.png, loop, scan.pgm")


def test_all_that_does_not_fit_is_named_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = draw(tmp_path, [f"{index:02}" for index in range(30)] + ["a b", "a_b", "Cat", "cat"])
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    (masks / "00.png").unlink()
    (photos / "02.txt").touch()
    (photos / "._03.png").write_bytes(b"Mac OS X")
    Image.open(photos / "02.bmp").save(photos / "02.jpeg")
    Image.open(photos / "04.tif").save(photos / "04.tif", save_all=True, append_images=[Image.open(photos / "01.png")])
    (photos / "01.png").unlink()
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
        "5 files of one name, but for the ending, case and what is replaced > 02.bmp = 02.jpeg, a b.jpg = a_b.png, "
        "Cat.bmp = cat.webp and 2 more (--all prints every name)",
        f"2 files that cannot be taken > has several pages or frames; save the one that counts as a file of its own: "
        f"{photos}/04.tif > is broken: image file is truncated: {photos}/06.jpg",
        "1 images and masks of different size (width, height) > 07 ((32, 24) and (8, 9))",
        "1 masks with values other than 0 (background) and 255 (foreground); --foreground VALUE takes all others as "
        "background > 0; 1; 255: 08",
        "1 masks without foreground (255); --allow_empty takes them > 09",
        "1 empty splits; another --seed may help > valid",
    ]
    with pytest.raises(FileExistsError, match="exists already"):
        run(tmp_path, output="photos")


def test_images_turned_by_exif_are_read_by_one_rule(
    tmp_path: Path, coins: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    exif, shown = Image.Exif(), {}
    for index, (name, target) in enumerate(coins.items()):
        exif[0x0112] = index % 9  # 0 means nothing, as 1 does
        next((tmp_path / "photos").glob(f"{name}.*")).unlink()
        photo = tmp_path / "photos" / f"{name}.jpg"
        Image.fromarray(target.astype(np.uint8) * 255).save(photo, exif=exif)
        shown[name] = np.array(ImageOps.exif_transpose(Image.open(photo))) > 128
    check_trimaps(run(tmp_path, output="stored"), coins)
    assert any(
        "22 images with an EXIF orientation; masks lie on images as stored" in line for line in reports(capsys, "note")
    )
    redraw(tmp_path, shown, lambda mask: mask)
    root = run(tmp_path, "--link", output="shown")
    check_trimaps(root, shown)
    assert any("masks lie on images as shown" in line for line in reports(capsys, "note"))
    for name, target in shown.items():
        assert ((decode_image(image_path(root, import_masks.plain_name(name)))[..., 0] > 128) == target).mean() > 0.97

    for photo in list((tmp_path / "photos").rglob("*.jpg")):
        if Image.open(photo).getexif().get(0x0112, 1) > 4:  # whose size tells
            photo.unlink()
            (tmp_path / "masks" / photo.parent.name / f"{photo.stem}.png").unlink()
    (line,) = refused(tmp_path, capsys)
    assert line.startswith(
        "10 images with an EXIF orientation; masks lie on images as shown or as stored, which no size"
    )


def test_weak_validation_is_said(
    tmp_path: Path, coins: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    redraw(tmp_path, coins, lambda mask: 0 * mask)
    run(tmp_path, "--allow_empty")
    assert reports(capsys, "note")[-1].endswith("which epoch is best is a guess > 2 images, no foreground")
