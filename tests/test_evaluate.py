"""evaluate.py: scores at both sizes under each boundary convention, the score file, and what is refused."""

import errno
import json
import os
import shutil
from pathlib import Path

from plumbing.cli import UserError

import numpy as np
import pytest
import torch
from conftest import Train

import evaluate
from checkpoint import load_checkpoint, save_checkpoint
from metrics import boundary_f_score, largest_part, mean_ci, perimeter
from models import build_network
from trimap import BOUNDARIES


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_scores_at_the_images_own_size(boundary: str) -> None:
    rng = np.random.default_rng(0)
    pred, trimap = rng.random((20, 30)) < 0.5, rng.integers(1, 5, (20, 30), np.uint8)
    pet = {"pet": (1, 3, 4), "middle": (1, 4), "background": (1,), "ignore": (1,)}
    target = np.isin(trimap, pet[boundary])
    counted = trimap < 3 if boundary == "ignore" else np.full(trimap.shape, True)
    both, areas = (pred & target & counted).sum(), (pred & counted).sum() + (target & counted).sum()
    outlined = np.where(counted, pred, target)  # ignored pixels cannot be wrong
    scores, counts = evaluate.score_at_own_size(pred, trimap, boundary)
    assert counts[BOUNDARIES.index(boundary)].tolist() == [both, areas]
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


def test_intervals_under_each_convention_are_those_of_its_images_and_of_their_pixels() -> None:
    rng = np.random.default_rng(0)
    areas = rng.integers(10, 1000, (50, 2, 4)).astype(float)
    both = np.floor(rng.random((50, 2, 4)) * areas / 2)
    areas[0], both[0] = 0, 0  # nothing there, nothing predicted: 1
    table = evaluate.scores_by_boundary(np.stack((both, areas), -1))
    for under, boundary in enumerate(BOUNDARIES):
        for at, size in enumerate(("model", "own")):
            i, a, scores = both[:, at, under], areas[:, at, under], table[boundary][size]
            dice = np.divide(2 * i, a, out=np.ones(50), where=a > 0)
            assert scores["dice"] == pytest.approx(mean_ci(dice))
            assert scores["dice_set"]["mean"] == pytest.approx(2 * i.sum() / a.sum())
            assert scores["iou_set"]["mean"] == pytest.approx(i.sum() / (a.sum() - i.sum()))
            drawn = np.random.default_rng(1).integers(0, 50, (4000, 50))
            for end, percent in (("low", 2.5), ("high", 97.5)):
                expected = np.percentile(2 * i[drawn].sum(1) / a[drawn].sum(1), percent)
                assert scores["dice_set"][end] == pytest.approx(expected, abs=0.01)


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
        assert other["boundary"] == boundary
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
    assert "is predicted as foreground" not in out  # not constant


@pytest.mark.parametrize(("bias", "said"), [(-50, "no pixel of any image"), (50, "every pixel of any image")])
def test_constant_predictions_are_noted(
    run_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture, bias: float, said: str
) -> None:
    run_train("--epochs", 1)
    state = torch.load(tmp_path / "R" / "R_best.pth", weights_only=True)
    state["model"]["3.bias"] += bias
    save_checkpoint(tmp_path / "R" / "R_best.pth", state)
    evaluate.main(["--model", "R", "--save_path", str(tmp_path)])
    assert f"note: {said} is predicted as foreground" in capsys.readouterr().out


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


def test_a_reader_that_goes_away_costs_no_score_file(
    run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_train("--epochs", 1)

    def broken_pipe(_: object) -> None:  # `| head`
        raise BrokenPipeError

    monkeypatch.setattr(evaluate, "print_scores", broken_pipe)
    with pytest.raises(BrokenPipeError):
        evaluate.main(["--model", "R", "--save_path", str(tmp_path)])
    assert (tmp_path / "R" / "R_valid_scores.json").is_file()


def test_images_that_were_trained_on_are_noted(
    run_train: Train, drawn_pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run_train("--epochs", 1)
    root = tmp_path / "split anew"
    shutil.copytree(drawn_pets, root)
    names = [line.split()[0] for line in (root / "annotations" / "trainval.txt").read_text().splitlines()]
    (root / "annotations" / "test.txt").write_text("\n".join(names[:5]))
    for where, count in ((drawn_pets, 0), (root, 4)):  # names[0] was validated on
        evaluate.main(["--name", "R", "--save_path", str(tmp_path), "--split", "test", "--data_path", str(where)])
        assert ("note: 4 of these 5 images were trained on" in capsys.readouterr().out) == (count > 0)
        (path,) = (tmp_path / "R").glob(f"R_{'data-' if count else ''}*test_scores.json")
        assert json.loads(path.read_text())["trained_on"] == count


def test_another_network_or_recipe_than_typed_is_refused(run_train: Train, tmp_path: Path) -> None:
    run_train("--epochs", 1, "--name", "mine")
    for flags, said in (
        (["--recipe", "lab2"], "was trained by the recipe default, not by --recipe lab2"),
        (["--model", "U"], "holds the network ResNet34_UNet, not what --model UNet stands for"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate.main(["--name", "mine", "--save_path", str(tmp_path), *flags])
    for flags in ([], ["--model", "mine.pth", "--load_model_epoch", "7"]):
        with pytest.raises(SystemExit, match="2"):
            evaluate.main(flags)


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
