"""inference.py and evaluate.py as scripts: the files that they write and the scores that they print."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import inference
import train
from checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from models import build_network
from cli import UserError
from oxford_pet import decode_image, decode_trimap, image_path, read_split, trimap_path

Script = Callable[..., None]


@pytest.fixture
def trained(tiny_network: None, drawn_pets: Path, tmp_path: Path) -> list[str]:
    """A run of a tiny network; the flags that find it."""
    where = ["--model", "R", "--save_path", str(tmp_path / "saved")]
    data = ["--data_path", str(drawn_pets), "--image_size", "32", "--batch_size", "4", "--learning_rate", "0.05"]
    train.main([*where, *data, "--epochs", "4"])
    return where


def hand_dice(pred: np.ndarray, truth: np.ndarray) -> float:
    return 2 * (pred & truth).sum() / (pred.sum() + truth.sum())


def test_inference_writes_masks_overlays_sheet_and_scores(
    trained: list[str], drawn_pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    inference.main([*trained, "--output", str(output)])
    names = read_split(drawn_pets, "test")
    expected = {f"{name}_{kind}.png" for name in names for kind in ("mask", "overlay")} | {"contact_sheet.png"}
    assert {path.name for path in output.iterdir()} == expected

    report = json.loads((tmp_path / "saved" / "R" / "R_test_scores.json").read_text())
    assert report["images"] == len(names) == len(report["per_image"])
    assert (report["boundary"], report["image_size"], report["checkpoint"]) == ("pet", 32, "R_best.pth")
    assert [row["name"] for row in report["per_image"]] == names
    for key in ("dice", "iou", "dice_original"):
        assert report[key] == pytest.approx(np.mean([row[key] for row in report["per_image"]]))
    assert 0 < report["iou"] < report["dice"] < 1

    for row in report["per_image"]:  # the masks on the disk are the ones that were scored, on the pixels of the picture
        image = decode_image(image_path(drawn_pets, row["name"]))
        mask = cv2.imread(str(output / f"{row['name']}_mask.png"), cv2.IMREAD_UNCHANGED)
        overlay = cv2.imread(str(output / f"{row['name']}_overlay.png"))
        assert mask.shape == image.shape[:2]
        assert overlay.shape == image.shape
        assert set(np.unique(mask)) <= {0, 255}
        truth = decode_trimap(trimap_path(drawn_pets, row["name"])) != 2
        assert hand_dice(mask > 0, truth) == pytest.approx(row["dice_original"])

    out = capsys.readouterr().out
    assert f"Dice Score: {report['dice']:.4f}\n" in out
    assert f"mean over {len(names)} test images at 32x32, boundary counted as pet, R_best.pth" in out


def test_scores_do_not_depend_on_the_batch_size(trained: list[str], tmp_path: Path) -> None:
    reports = []
    for size in ("1", "7", "64"):
        evaluate.main([*trained, "--split", "test", "--batch_size", size])
        reports.append(json.loads((tmp_path / "saved" / "R" / "R_test_scores.json").read_text()))
    for report in reports[1:]:
        assert [row["dice"] for row in report["per_image"]] == pytest.approx(
            [row["dice"] for row in reports[0]["per_image"]],
            abs=0.01,  # a pixel of 1024 may fall to the other side
        )


def test_evaluate_scores_valid_by_default_as_training_did(trained: list[str], tmp_path: Path) -> None:
    evaluate.main(trained)
    report = json.loads((tmp_path / "saved" / "R" / "R_valid_scores.json").read_text())
    best = load_checkpoint(tmp_path / "saved" / "R" / "R_best.pth")
    assert report["dice"] == pytest.approx(best["scores"]["valid_dice"], abs=1e-3)
    assert (report["split"], report["epoch"]) == ("valid", best["epoch"])
    evaluate.main([*trained, "--flip_average"])
    flipped = json.loads((tmp_path / "saved" / "R" / "R_valid_scores_flip.json").read_text())
    assert flipped["dice"] != report["dice"]


def test_boundary_and_limit(trained: list[str], tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path / "saved", "R", "best")
    state = load_checkpoint(path)
    dice = {}
    for boundary in ("pet", "background", "ignore"):
        state["run"]["boundary"] = boundary
        save_checkpoint(path, state)
        evaluate.main([*trained, "--split", "test", "--limit", "3"])
        report = json.loads(path.with_name("R_test_scores.json").read_text())
        assert (report["boundary"], report["images"]) == (boundary, 3)
        dice[boundary] = report["dice"]
    assert len(set(dice.values())) == 3


def test_a_trimap_without_pet_is_counted(
    tiny_network: None, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = read_split(pets, "test")[3]
    size = decode_trimap(trimap_path(pets, name)).shape
    Image.fromarray(np.full(size, 2, np.uint8)).save(trimap_path(pets, name))
    where = ["--model", "R", "--save_path", str(tmp_path / "saved")]
    train.main([*where, "--data_path", str(pets), "--image_size", "32", "--epochs", "1"])
    inference.main([*where, "--output", str(tmp_path / "out")])
    report = json.loads((tmp_path / "saved" / "R" / "R_test_scores.json").read_text())
    assert report["empty_truths"] == 1
    row = report["per_image"][3]
    assert row["empty_truth"] and row["dice"] in (0, 1)
    assert "1 of them have no pet in the truth" in capsys.readouterr().out


def test_a_picture_that_is_not_what_its_name_says(trained: list[str], drawn_pets: Path, tmp_path: Path) -> None:
    """An RGBA PNG under .jpg, as the real data set has: its mask has its size."""
    copy = shutil.copytree(drawn_pets, tmp_path / "copy")
    name = read_split(copy, "test")[0]
    image = decode_image(image_path(copy, name))
    Image.fromarray(image).convert("RGBA").save(image_path(copy, name), format="PNG")
    inference.main([*trained, "--data_path", str(copy), "--output", str(tmp_path / "out")])
    with Image.open(tmp_path / "out" / f"{name}_mask.png") as mask:
        assert mask.size == image.shape[1::-1]


@pytest.mark.parametrize("limit", ["1", "2"])
def test_very_few_pictures(trained: list[str], tmp_path: Path, limit: str) -> None:
    inference.main([*trained, "--output", str(tmp_path / "out"), "--limit", limit])
    assert (tmp_path / "out" / "contact_sheet.png").exists()


def test_mistakes(trained: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint .*R_epoch_7\.pth; there are .*R_best\.pth"):
        evaluate.main([*trained, "--load_model_epoch", "7"])
    with pytest.raises(UserError, match="no data set at"):
        evaluate.main([*trained, "--data_path", str(tmp_path)])
    path = checkpoint_path(tmp_path / "saved", "R", "best")
    path.write_bytes(b"no checkpoint at all")
    with pytest.raises(UserError, match=r"R_best\.pth is broken"):
        evaluate.main(trained)


def test_a_checkpoint_of_the_other_network_is_refused(drawn_pets: Path, tmp_path: Path) -> None:
    """With the real networks, end to end: U is trained, asked for as R, and used as what it is."""
    where = ["--name", "mine", "--save_path", str(tmp_path / "saved")]
    data = ["--data_path", str(drawn_pets), "--image_size", "32", "--batch_size", "8", "--limit", "8"]
    train.main(["--model", "UNet", *where, *data, "--epochs", "1"])
    with pytest.raises(UserError, match="holds a UNet, not what --model R stands for"):
        inference.main(["--model", "R", *where, "--output", str(tmp_path / "out")])
    inference.main(["--model", "U", *where, "--output", str(tmp_path / "out"), "--limit", "4"])
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 4


def test_what_is_loaded_predicts_what_was_trained(trained: list[str], tmp_path: Path) -> None:
    state = load_checkpoint(checkpoint_path(tmp_path / "saved", "R", "best"))
    state["run"]["precision"] = "fp32"
    predictor = evaluate.load_predictor(state, torch.device("cpu"))
    model = build_network(state["network"]).eval()
    model.load_state_dict(state["model"])
    images = torch.rand(2, 3, 32, 48) * 255
    torch.testing.assert_close(predictor(images), model(predictor.normalise(images)).detach())


def test_masks_only(trained: list[str], tmp_path: Path) -> None:
    """The same masks and sheet without the overlays."""
    for folder, flags in (("all", []), ("masks", ["--masks_only"])):
        inference.main([*trained, "--output", str(tmp_path / folder), *flags])
    every = {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()}
    masks = {path.name: path.read_bytes() for path in (tmp_path / "masks").iterdir()}
    assert masks == {name: data for name, data in every.items() if not name.endswith("_overlay.png")}
