"""benchmarks/study.py on a tiny budget with tiny networks: the runs, the numbers and the page."""

import dataclasses
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import train
from checkpoint import checkpoint_path, load_checkpoint
from cli import REPO, UserError
from oxford_pet import load_split
from recipes import RECIPES


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study", REPO / "benchmarks" / "study.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    sys.modules["study"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture
def run_study(
    study: ModuleType, tiny_network: None, drawn_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """``study.main`` with tiny networks for all systems; further flags as arguments. Gives the folder of the page."""
    tiny = {"U": "Tiny", "R": "Tiny"}
    monkeypatch.setattr(
        study,
        "ABLATIONS",
        {name: dataclasses.replace(recipe, networks=tiny) for name, recipe in study.ABLATIONS.items()},
    )
    for name in list(RECIPES):
        monkeypatch.setitem(RECIPES, name, dataclasses.replace(RECIPES[name], networks=tiny))
    for name, recipe in study.ABLATIONS.items():
        monkeypatch.setitem(RECIPES, name, recipe)  # so that it is gone afterwards

    def call(*flags: str) -> Path:
        output = tmp_path / "page"
        small = ["--data_path", str(drawn_pets), "--image_size", "32", "--epochs", "2", "--train_images", "9"]
        study.main([*small, "--work", str(tmp_path / "work"), "--output", str(output), "--device", "cpu", *flags])
        return output

    return call


def test_the_whole_study(
    study: ModuleType, run_study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = run_study("--seeds", "0", "1")
    page = (output / "STUDY.md").read_text()
    results = json.loads((output / "results" / "study.json").read_text())
    assert len(results["runs"]) == 2 * len(study.SYSTEMS)
    assert {path.name for path in (output / "results").iterdir()} == {
        "study.json", "study-valid.png", "study-lab3.png",
    }  # fmt: skip
    for system in study.TABLE:
        runs = [run for run in results["runs"] if run["system"] == system]
        assert f"{np.mean([run['dice']['test'] for run in runs]):.4f}" in page.split(f"| {system} |")[1].split("\n")[0]
    assert [(d["a"], d["b"]) for d in results["differences"]] == list(study.COMPARISONS)
    for d in results["differences"]:
        assert d["low"] <= d["mean"] <= d["high"]
        assert d["called"] == ("none" if d["low"] <= 0 <= d["high"] else "above" if d["mean"] > 0 else "below")
    assert len(results["claims"]) == 6
    assert not any("ot measured" in answer["answer"] for answer in results["claims"])
    assert "python benchmarks/study.py --image_size 32 --epochs 2 --train_images 9 --seeds 0 1" in page
    assert str(tmp_path) not in page
    assert "test_dice" not in results["runs"][0]  # stays beside the run
    folder = next((tmp_path / "work").iterdir())
    kept = json.loads((folder / "lab2-R-seed1" / "result.json").read_text())
    assert (len(kept["test_dice"]), kept["images"]) == (20, {"train": 9, "valid": 2, "test": 20})
    assert [path.name for path in (folder / "lab2-R-seed1").glob("*.pth")] == ["lab2-R-seed1_best.pth"]

    # Again: nothing is trained, and what was written by hand stays.
    monkeypatch.setattr(train, "main", lambda argv: pytest.fail("a finished run was run again"))
    (output / "STUDY.md").write_text(page + "## What it means\n\nMuch.\n")
    run_study("--seeds", "0", "1")
    assert (output / "STUDY.md").read_text() == page + "## What it means\n\nMuch.\n"


def test_an_interrupted_study_goes_on(
    study: ModuleType, run_study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, done = train.train_step, []

    def train_step(*args: object) -> torch.Tensor:
        done.append(1)
        if len(done) == 3:  # in the third epoch of one batch each: the second system's first
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(train, "train_step", train_step)
    with pytest.raises(SystemExit):
        run_study("--only", "lab2-R", "lab3-R")
    folder = next((tmp_path / "work").iterdir())
    assert (folder / "lab2-R-seed0" / "result.json").is_file()
    assert load_checkpoint(checkpoint_path(folder, "lab3-R-seed0", "last"))["epoch"] == 1
    output = run_study("--only", "lab2-R", "lab3-R")
    assert len(done) == 4  # no step twice
    page = (output / "STUDY.md").read_text()
    assert "Not measured: lab2-unaugmented-R did not run." in page
    assert "| default-U |" not in page
    output = run_study("--only", "lab3-bce-R")  # adds up
    systems = [run["system"] for run in json.loads((output / "results" / "study.json").read_text())["runs"]]
    assert systems == ["lab2-R", "lab3-R", "lab3-bce-R"]

    changed = dataclasses.replace(RECIPES["lab2"], learning_rate=0.5)
    monkeypatch.setitem(RECIPES, "lab2", changed)
    with pytest.raises(UserError, match="recipe lab2 has changed since"):
        run_study("--only", "lab2-R")


def test_ablations_change_one_thing(study: ModuleType) -> None:
    for name, of, field in (("lab2-unaugmented", "lab2", "augmentation"), ("lab3-bce", "lab3", "loss")):
        a, b = study.ABLATIONS[name].to_dict(), RECIPES[of].to_dict()
        assert {key for key in a if a[key] != b[key]} - {"name", "state_dicts"} == {field}


def test_bootstrap_is_paired_seeded_and_as_wide_as_theory_says(study: ModuleType) -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(400)  # what both find hard does not widen the interval
    a, b = hard + 0.01 + rng.normal(0, 0.02, 400), hard + rng.normal(0, 0.02, 400)
    low, high = study.paired_bootstrap(a, b)
    assert (low, high) == study.paired_bootstrap(a, b)
    error = (a - b).std() / np.sqrt(400)
    assert low == pytest.approx((a - b).mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx((a - b).mean() + 1.96 * error, abs=0.2 * error)
    assert study.Difference("a", "b", 0.01, low, high, 1).word == "above"
    assert study.Difference("a", "b", -0.01, -high, -low, 1).word == "below"
    assert study.Difference("a", "b", 0.01, -0.001, 0.02, 1).word == "none"
    assert study.paired_bootstrap(a, a) == (0, 0)


def test_differences_are_over_the_seeds_that_both_have(study: ModuleType) -> None:
    a, b, other = np.array([0.5, 0.7]), np.array([0.4, 0.6]), np.array([0.0, 0.0])
    differences = study.compare({"lab3-R": {0: a, 1: a, 2: other}, "lab3-U": {0: b, 1: b}, "lab2-R": {0: a}})
    assert list(differences) == [("lab3-R", "lab3-U")]
    d = differences["lab3-R", "lab3-U"]
    assert (d.mean, d.low, d.high, d.seeds) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1), 2)


def test_place_alone_is_the_mean_mask_of_train(study: ModuleType, drawn_pets: Path) -> None:
    budget = study.budget_of(drawn_pets, 32, 1, None)
    place = study.place_alone(drawn_pets, budget)
    truth = {mode: (load_split(drawn_pets, mode, 32).pixels[..., 3] != 2).numpy() for mode in ("train", "test")}
    mean = truth["train"].mean(0)

    def dice(mask: np.ndarray, mode: str) -> np.ndarray:
        both = (mask & truth[mode]).sum((1, 2))
        return 2 * both / (mask.sum() + truth[mode].sum((1, 2)))

    assert place.train_dice == pytest.approx(dice(mean > place.threshold, "train").mean(), abs=1e-6)
    assert place.train_dice >= max(dice(mean > t, "train").mean() for t in np.arange(0.1, 0.9, 0.1)) - 1e-3
    np.testing.assert_allclose(place.test_dice, dice(mean > place.threshold, "test"), atol=2e-3)
    np.testing.assert_allclose(place.all_pet, dice(np.ones((32, 32), bool), "test"))
    assert place.middle > place.border


@pytest.mark.parametrize(
    ("valid", "said"),
    [
        ([0.6] * 9 + [0.4] * 3, "9 of the 9 epochs under 10, and in 0 of the 3 from then on: holds."),
        ([0.4] * 12, "0 of the 9 epochs under 10, and in 0 of the 3 from then on: holds in part."),
        ([0.4] * 9 + [0.6] * 3, "0 of the 9 epochs under 10, and in 3 of the 3 from then on: does not hold."),
        ([0.6] * 4, "4 of the 4 epochs under 10: holds as far as 4 epochs tell."),
    ],
)
def test_what_the_curves_answer(study: ModuleType, valid: list[float], said: str) -> None:
    page = study.Study.__new__(study.Study)
    page.runs = {"lab3-R": {0: {"history": {"valid_dice": valid, "train_dice": [0.5] * len(valid)}}}}
    assert f"lab3-R: valid was above train in {said}" in page.claim_1()
    assert page.claim_2() == "Not measured: lab3-U did not run."
