"""evaluate.py: each metric against an independent count, and scores that do not depend on the batch size."""

import errno
import itertools
import json
import os
from pathlib import Path

from plumbing.cli import UserError

import numpy as np
import pytest
import torch
from conftest import Train
from torch import Tensor, nn

import evaluate
from checkpoint import load_checkpoint, save_checkpoint
from evaluate import (
    boundary_f_score,
    dice_and_iou,
    difference,
    estimate,
    estimate_conventions,
    largest_part,
    overlap,
    perimeter,
    score_at_own_size,
)
from losses import bce_dice_loss
from models import build_network
from oxford_pet import Split, images_and_trimaps
from predictor import Predictor, resize_logits
from recipes import Config
from trimap import BOUNDARIES, target_and_weight


def as_mask(rows: str) -> Tensor:
    """``"#. .#"`` to (1, 1, 2, 2) bool."""
    return torch.tensor([[character == "#" for character in row] for row in rows.split()])[None, None]


@pytest.fixture
def split() -> Split:
    """7 images of noise; the third has no pet, the fourth only boundary."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (7, 12, 12, 4), generator=generator, dtype=torch.uint8)
    pixels[..., 3] = torch.randint(1, 4, (7, 12, 12), generator=generator, dtype=torch.uint8)
    pixels[2, ..., 3] = 2
    pixels[3, ..., 3] = 2 + pixels[3, ..., 3] % 2
    return Split(Path("nowhere"), "valid", [f"pet_{index}" for index in range(7)], pixels)


# ---------------------------------------------------------------------------------------------- Dice and IoU


@pytest.mark.parametrize(
    ("pred", "target", "weight", "dice", "iou"),
    [
        ("##.. ....", "##.. ....", "#### ####", 1, 1),
        ("##.. ....", "#... #...", "#### ####", 2 * 1 / 4, 1 / 3),
        ("###. ###.", "#... ....", "#### ####", 2 * 1 / 7, 1 / 6),
        (".... ....", ".... ....", "#### ####", 1, 1),  # both empty
        ("#... ....", ".... ....", "#### ####", 0, 0),
        (".... ....", "#... ....", "#### ####", 0, 0),
        ("##.. ....", "#... #...", "#### ....", 2 * 1 / 3, 1 / 2),  # the missed one does not count
        ("#... ##..", "#... ....", "#### ....", 1, 1),  # nor do the wrong ones
        (".... ##..", ".... #...", "#### ....", 1, 1),  # nothing is left on either side
        ("#... ....", ".... ####", "#### ....", 0, 0),
    ],
)
def test_scores_counted_by_hand(pred: str, target: str, weight: str, dice: float, iou: float) -> None:
    scores = dice_and_iou(*overlap(as_mask(pred), as_mask(target), as_mask(weight)))
    assert [score.item() for score in scores] == pytest.approx([dice, iou])


# ---------------------------------------------------------------------------------------------- outlines


def blobs(seed: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: a few random ellipses, some of them cut off by the border."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(size)
    centres, radii = rng.random((3, 2)) * size, rng.uniform(2, min(size) / 3, (3, 2))
    return sum(
        ((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1 for (y, x), (a, b) in zip(centres, radii, strict=True)
    ).astype(bool)


def neighbours(mask: np.ndarray, row: int, column: int) -> list[bool]:
    places = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
    return [mask[y, x] for y, x in places if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]]


@pytest.mark.parametrize("seed", range(3))
def test_perimeter_is_the_number_of_neighbouring_pixels_that_differ(seed: int) -> None:
    mask = blobs(seed, (23, 31))
    differing = sum(
        bool(mask[place]) != bool(other)
        for place in itertools.product(range(23), range(31))
        for other in neighbours(mask, *place)
    )
    assert perimeter(mask) == differing / 2 > 0
    assert perimeter(np.ones((4, 5), bool)) == perimeter(np.zeros((4, 5), bool)) == 0


@pytest.mark.parametrize("seed", range(4))
def test_boundary_f_score_by_brute_force(seed: int) -> None:
    pred, target = blobs(seed, (150, 210)), blobs(seed, (150, 210))
    pred[np.roll(blobs(seed + 10, (150, 210)), 9)] ^= True
    outlines = [
        np.array([place for place in np.argwhere(mask) if not all(neighbours(mask, *place))]) for mask in (pred, target)
    ]
    distances = np.hypot(*(outlines[0][:, None] - outlines[1][None]).transpose(2, 0, 1))
    tolerance = 0.0075 * np.hypot(150, 210)
    precision, recall = ((distances.min(axis) <= tolerance).mean() for axis in (1, 0))
    assert boundary_f_score(pred, target) == pytest.approx(2 * precision * recall / (precision + recall))
    assert 0.1 < precision < 1
    assert boundary_f_score(target, target) == 1


def test_boundary_f_score_where_there_is_no_outline() -> None:
    empty, full, blob = np.zeros((20, 20), bool), np.ones((20, 20), bool), blobs(0, (20, 20))
    assert boundary_f_score(empty, empty) == boundary_f_score(empty, full) == 1  # the border is no outline
    assert boundary_f_score(empty, blob) == boundary_f_score(blob, full) == 0


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_scores_at_the_images_own_size(boundary: str) -> None:
    rng = np.random.default_rng(0)
    logits, trimap = rng.normal(size=(8, 8)).astype(np.float32), rng.integers(1, 5, (20, 30), np.uint8)
    pred = resize_logits(logits, 20, 30) > 0
    pet = {"pet": (1, 3, 4), "middle": (1, 4), "background": (1,), "ignore": (1,)}
    target = np.isin(trimap, pet[boundary])
    counted = trimap < 3 if boundary == "ignore" else np.full(trimap.shape, True)
    both, areas = (pred & target & counted).sum(), (pred & counted).sum() + (target & counted).sum()
    outlined = np.where(counted, pred, target)  # ignored pixels cannot be wrong
    scores, overlaps = score_at_own_size(logits, trimap, boundary)
    assert overlaps[BOUNDARIES.index(boundary)].tolist() == [both, areas]
    assert scores == pytest.approx(
        {
            "dice_original": 2 * both / areas,
            "iou_original": both / (areas - both),
            "intersection": both,
            "areas": areas,
            "boundary_f": boundary_f_score(outlined, target),
            "boundary_f_middle": boundary_f_score(pred, np.isin(trimap, pet["middle"])),
            "perimeter": perimeter(outlined),
            "target_perimeter": perimeter(target),
            "target_fraction": target.mean(),
            "pred_fraction": pred.mean(),
            "largest_part": largest_part(pred),
        }
    )


def test_largest_part_of_a_mask() -> None:
    mask = np.zeros((20, 20), bool)
    assert largest_part(mask) == largest_part(~mask) == 1
    mask[2:5, 2:5] = mask[5, 5] = mask[10:12, 10] = True  # 9 pixels, one more by its corner, and 2
    assert largest_part(mask) == pytest.approx(10 / 12)


# ---------------------------------------------------------------------------------------------- bootstrap


def test_bootstrap_is_paired_seeded_and_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(400)  # what both find hard does not widen the interval
    a, b = hard + 0.01 + rng.normal(0, 0.02, 400), hard + rng.normal(0, 0.02, 400)
    gain, error = difference(a, b), (a - b).std() / np.sqrt(400)
    assert gain == difference(a, b)
    for end, factor in (("low", -1.96), ("mean", 0), ("high", 1.96)):
        assert gain[end] == pytest.approx((a - b).mean() + factor * error, abs=0.2 * error if factor else 1e-9)
    assert [difference(*pair)["called"] for pair in ((a, b), (b, a), (a, a))] == ["above", "below", "none"]
    few = np.full(6, 0.5)  # 5 images, though all better, happen by chance in 6%
    assert [difference(few[:n] + 0.1, few[:n])["called"] for n in (1, 5, 6)] == ["none", "none", "above"]


def test_intervals_under_each_convention_are_those_of_its_images_and_of_their_pixels() -> None:
    rng = np.random.default_rng(0)
    areas = rng.integers(10, 1000, (50, 2, 4)).astype(float)
    both = np.floor(rng.random((50, 2, 4)) * areas / 2)
    areas[0], both[0] = 0, 0  # nothing there, nothing predicted: 1
    table = estimate_conventions(np.stack((both, areas), -1))
    for under, boundary in enumerate(BOUNDARIES):
        for at, size in enumerate(("model", "own")):
            i, a, scores = both[:, at, under], areas[:, at, under], table[boundary][size]
            dice = np.divide(2 * i, a, out=np.ones(50), where=a > 0)
            assert scores["dice"] == pytest.approx(estimate(dice))
            assert scores["dice_set"]["mean"] == pytest.approx(2 * i.sum() / a.sum())
            assert scores["iou_set"]["mean"] == pytest.approx(i.sum() / (a.sum() - i.sum()))
            drawn = np.random.default_rng(1).integers(0, 50, (4000, 50))
            for end, percent in (("low", 2.5), ("high", 97.5)):
                expected = np.percentile(2 * i[drawn].sum(1) / a[drawn].sum(1), percent)
                assert scores["dice_set"][end] == pytest.approx(expected, abs=0.01)


# ---------------------------------------------------------------------------------------------- a split


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize(
    ("boundary", "empty"), [("pet", [2]), ("background", [2, 3]), ("ignore", [2, 3]), ("middle", [2, 3])]
)
def test_a_split_is_scored_by_its_sets_of_pixels_whatever_the_batch_size(
    split: Split, batch_size: int, boundary: str, empty: list[int]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 3, padding=1))
    predictor = Predictor.from_model(model, Config("UNet", precision="fp32"), "cpu")
    batches: list[tuple[int, Tensor, Tensor]] = []
    scores = evaluate.evaluate(predictor, split, boundary, batch_size, bce_dice_loss, lambda *a: batches.append(a))
    starts, logits, trimaps = zip(*batches, strict=True)
    assert starts == tuple(range(0, 7, batch_size))
    images, logits, trimaps = images_and_trimaps(split.pixels)[0], torch.cat(logits), torch.cat(trimaps)
    assert torch.equal(trimaps, split.pixels[..., 3][:, None])
    torch.testing.assert_close(logits, predictor.logits(images))
    target, weight = target_and_weight(trimaps, boundary)
    assert scores.loss == pytest.approx(bce_dice_loss(logits, target, weight).item(), rel=1e-5)
    pred, target = ({*map(tuple, mask.nonzero().tolist())} for mask in ((logits > 0) & weight, target & weight))
    for index, (dice, iou) in enumerate(zip(scores.dice, scores.iou, strict=True)):
        p, t = ({pixel for pixel in pixels if pixel[0] == index} for pixels in (pred, target))
        assert dice == pytest.approx(2 * len(p & t) / (len(p) + len(t)))
        assert iou == pytest.approx(len(p & t) / len(p | t))
    assert np.flatnonzero(scores.empty_target).tolist() == empty
    assert scores.dice.dtype == np.float64


# ---------------------------------------------------------------------------------------------- the script


def test_the_script_scores_the_best_checkpoint(run_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def scores_of(*flags: object, file: str = "test_scores") -> dict:
        evaluate.main([str(flag) for flag in ("--model", "R", "--save_path", tmp_path, *flags)])
        return json.loads((tmp_path / "R" / f"R_{file}.json").read_text())

    run_train("--epochs", 4, "--learning_rate", 0.05)
    report, best = scores_of(file="valid_scores"), load_checkpoint(tmp_path / "R" / "R_best.pth")
    assert report["dice"] == pytest.approx(best["scores"]["valid_dice"], abs=1e-3)  # as in training
    assert (report["split"], report["epoch"], report["images"]) == ("valid", best["epoch"], 2)
    assert scores_of("--flip_average", file="valid_scores_flip")["dice"] != report["dice"]
    capsys.readouterr()

    report = scores_of("--split", "test", "--batch_size", 7)
    column = {key: np.array([row[key] for row in report["per_image"]]) for key in report["per_image"][0]}
    assert (len(column["dice"]), report["boundary"], report["image_size"]) == (20, "pet", 32)
    for key in ("dice", "iou", "dice_original", "iou_original", "boundary_f"):
        assert report[key] == pytest.approx(column[key].mean())
    assert report["dice_set"] == pytest.approx(2 * report["iou_set"] / (1 + report["iou_set"]))
    assert report["dice_set_original"] == pytest.approx(2 * column["intersection"].sum() / column["areas"].sum())
    assert report["perimeter_ratio"] == pytest.approx(column["perimeter"].sum() / column["target_perimeter"].sum())
    for boundary in BOUNDARIES:  # each is what a run of that convention would have been scored
        state = torch.load(tmp_path / "R" / "R_best.pth", weights_only=True)
        state["config"]["boundary"] = boundary
        save_checkpoint(tmp_path / "other" / "other_best.pth", state)
        evaluate.main(["--name", "other", "--save_path", str(tmp_path), "--split", "test"])
        other = json.loads((tmp_path / "other" / "other_test_scores.json").read_text())
        for size, suffix in (("model", ""), ("own", "_original")):
            for score in ("dice", "iou", "dice_set", "iou_set"):
                values = report["conventions"][boundary][size][score]
                assert values["mean"] == pytest.approx(other[score + suffix])
                assert values["low"] < values["mean"] < values["high"]
                if not score.endswith("_set"):
                    each = [row[score + suffix] for row in other["per_image"]]
                    assert values["mean"] == pytest.approx(np.mean(each))
    assert {row["species"] for row in report["per_image"]} == {"cat", "dog"}
    out = capsys.readouterr().out
    assert f"\nDice Score: {report['dice']:.4f}\n    mean over 20 test images at 32x32, boundary counted as pet" in out
    assert f"over the set: Dice {report['dice_set']:.4f}, IoU {report['iou_set']:.4f}" in out

    state = torch.load(tmp_path / "R" / "R_best.pth", weights_only=True)
    state["config"]["boundary"] = "background"  # the checkpoint's convention is taken
    save_checkpoint(tmp_path / "R" / "R_best.pth", state)
    other = scores_of("--split", "test", "--limit", 3, file="limit3_test_scores")
    assert (other["boundary"], other["images"]) == ("background", 3)
    assert other["per_image"][0]["dice"] != report["per_image"][0]["dice"]


@pytest.mark.parametrize(
    ("bias", "said"), [(-50, "no pixel of any image"), (50, "every pixel of any image"), (0, None)]
)
def test_constant_predictions_are_noted(
    run_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture, bias: float, said: str | None
) -> None:
    run_train("--epochs", 1)
    state = torch.load(tmp_path / "R" / "R_best.pth", weights_only=True)
    state["model"]["3.bias"] += bias
    save_checkpoint(tmp_path / "R" / "R_best.pth", state)
    evaluate.main(["--model", "R", "--save_path", str(tmp_path)])
    out = capsys.readouterr().out
    assert f"note: {said} is predicted as pet" in out if said else "is predicted as pet" not in out


def test_a_score_file_that_cannot_be_written_costs_nothing_else(
    run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def read_only(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    run_train("--epochs", 1)
    monkeypatch.setattr(evaluate, "atomic_write", read_only)
    evaluate.main(["--model", "R", "--save_path", str(tmp_path)])
    said = capsys.readouterr()
    assert "Dice Score: " in said.out
    assert "could not be written (Permission denied)" in said.err


def test_what_the_script_refuses(run_train: Train, tmp_path: Path) -> None:
    run_train("--epochs", 1, "--name", "mine")
    path = tmp_path / "mine" / "mine_best.pth"
    for flags, said in (
        (["--load_model_epoch", "7"], r"no checkpoint .*mine_epoch_7\.pth; there are .*mine_best\.pth"),
        (["--data_path", str(tmp_path)], "no data set at"),
        (["--recipe", "lab2"], "was trained by the recipe default, not by --recipe lab2"),
        (["--model", "U"], "holds the network ResNet34_UNet, not what --model UNet stands for"),
        (["--model", "nothing.pth"], r"no checkpoint nothing\.pth"),
        (["--device", "cuda:99"], "--device cuda:99"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate.main(["--name", "mine", "--save_path", str(tmp_path), *flags])
    with pytest.raises(SystemExit, match="2"):  # which network?
        evaluate.main([])
    path.write_bytes(b"no checkpoint at all")
    with pytest.raises(UserError, match=r"mine_best\.pth is broken"):
        evaluate.main(["--name", "mine", "--save_path", str(tmp_path)])


def test_a_file_here_precedes_one_of_the_save_path(
    drawn_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "saved" / "x.pth", build_network("lab2.UNet").state_dict())
    save_checkpoint(tmp_path / "saved" / "y.pth", {"another": "file"})
    save_checkpoint(tmp_path / "y.pth", build_network("lab2.UNet").state_dict())
    flags = ["--data_path", os.path.relpath(drawn_pets), "--image_size", "32", "--save_path", "saved"]
    for typed, file in (("x.pth", "saved/x.pth"), ("saved/x.pth", "saved/x.pth"), ("y.pth", "y.pth")):
        evaluate.main(["--model", typed, *flags])
        assert f"Loading model from {Path(file)} (weights alone)" in capsys.readouterr().out
    (scores,) = tmp_path.glob("y_*_scores.json")
    assert json.loads(scores.read_text())["data_path"] == str(drawn_pets)  # compare.py may be started elsewhere
