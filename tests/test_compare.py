"""compare.py: what is compared, what is refused, and the verdicts."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from plumbing.cli import UserError

import numpy as np
import pytest
from conftest import Train
from PIL import Image

import compare
import evaluate
import inference
from metrics import mean_ci, paired_difference_ci

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write the score file of a run, from its images' Dice and the entries that differ from the usual ones."""
    monkeypatch.setattr(compare, "OUTPUTS", tmp_path / "outputs")

    def call(name: str, dice: np.ndarray, **other: object) -> None:
        shape = {"empty_target": False, "target_fraction": 0.4, "pred_fraction": 0.4, "largest_part": 1.0}
        shape |= {"intersection": 1, "areas": 2, "perimeter": 4, "target_perimeter": 4}
        rows = [{"name": f"pet_{k}", "dice": value, "dice_original": value} for k, value in enumerate(dice.tolist())]
        rows = [row | shape for row in rows]
        report = {"name": name, "split": "test", "boundary": "pet", "image_size": 32, "fingerprint": "f", "iou": 0.5}
        report |= {"flip_average": False, "dice": dice.mean(), "images": len(dice), "data_path": "nowhere"}
        report |= {"config": {"seed": int(name.partition("-seed")[2] or 0), "epochs": 5}, "per_image": rows}
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{name}_test_scores.json").write_text(json.dumps(report | other))

    return call


def run(tmp_path: Path, *flags: str) -> None:
    compare.main([*flags, "--save_path", str(tmp_path)])


def read_result(tmp_path: Path, stem: str) -> dict:
    return json.loads((tmp_path / "outputs" / "compare" / f"{stem}.json").read_text())


def test_seeds_are_grouped_and_pairs_have_a_verdict(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(60) * 0.5
    dice = {
        name: hard + shift + rng.normal(0, 0.01, 60)
        for name, shift in (("R-seed0", 0.1), ("R-seed1", 0.2), ("U", 0.15), ("V", 0.05))
    }
    for name, values in dice.items():
        write(name, values)
    run(tmp_path, "R", "U", "V")  # R has no run of its own: its seeds
    result = read_result(tmp_path, "R_U_V_test")
    mean = (dice["R-seed0"] + dice["R-seed1"]) / 2
    group = result["groups"]["R"]
    assert group["runs"] == ["R-seed0", "R-seed1"]
    assert group["dice"] == mean_ci(mean)
    assert group["std"] == pytest.approx(abs(dice["R-seed0"].mean() - dice["R-seed1"].mean()) / 2**0.5)
    assert result["groups"]["U"]["std"] is None
    pairs = {(pair.pop("a"), pair.pop("b")): pair for pair in result["pairs"]}
    assert pairs["R", "V"] == paired_difference_ci(mean, dice["V"])
    assert [pairs[pair]["verdict"] for pair in (("R", "U"), ("R", "V"), ("U", "V"))] == ["none", "above", "above"]
    out = capsys.readouterr().out
    text = (tmp_path / "outputs" / "compare" / "R_U_V_test.txt").read_text()
    assert text in out
    assert f"R    2      {group['std']:.4f}          0.5000  {group['dice']['mean']:.4f} (" in text
    page = (tmp_path / "outputs" / "compare" / "R_U_V_test.html").read_text()
    for written in (text, page):
        assert "U - V" in written
        assert "U better" in written
    assert "does not show U" in out  # no masks are there


@pytest.mark.parametrize("typed", [["R"], ["R", "R-seed2"], ["R-seed10", "R", "R"]])
def test_one_run_of_many_seeds_is_enough_and_each_counts_once(write: Write, tmp_path: Path, typed: list[str]) -> None:
    for seed, dice in ((2, 0.5), (10, 0.6)):
        write(f"R-seed{seed}", np.full(8, dice))
    run(tmp_path, *typed)
    result = read_result(tmp_path, "R_test")
    assert (result["groups"]["R"]["dice"]["mean"], result["pairs"]) == (pytest.approx(0.55), [])
    assert sorted(result["groups"]["R"]["runs"], key=len) == ["R-seed2", "R-seed10"]


def test_a_mistyped_or_single_name_is_answered_with_what_is_there(write: Write, tmp_path: Path) -> None:
    for name in ("R", "R-seed0", "Old-seed3"):
        write(name, np.full(8, 0.5))
    for typed in (["R", "r"], ["Old-seed", "R"], ["R", "R-seed7"]):
        with pytest.raises(UserError, match=r"no run \S+ in .*; there are Old-seed3, R, R-seed0$"):
            run(tmp_path, *typed)
    for typed in (["R", "R"], ["Old"]):
        with pytest.raises(UserError, match=r"only one run, \S+: name two runs"):
            run(tmp_path, *typed)


def test_scores_with_flips_are_compared_by_their_flag(write: Write, tmp_path: Path) -> None:
    for name, dice in (("R", 0.5), ("U", 0.7)):
        write(name, np.full(8, dice), flip_average=True)
        (tmp_path / name / f"{name}_test_scores.json").rename(tmp_path / name / f"{name}_test_scores_flip.json")
        write(name, np.full(8, 0.1))
    run(tmp_path, "R", "U", "--flip_average")
    result = read_result(tmp_path, "R_U_test_flip")
    assert (result["flip_average"], result["groups"]["U"]["dice"]["mean"]) == (True, pytest.approx(0.7))


@pytest.mark.parametrize(
    ("name", "other", "said"),
    [
        ("U", {"fingerprint": "g"}, "cannot compare R and U: fingerprint f and g"),
        ("U", {"boundary": "ignore"}, "cannot compare R and U: boundary pet and ignore"),
        ("R-seed1", {"config": {"seed": 0, "epochs": 5}}, "R and R-seed1 are not two seeds .* they differ in nothing"),
        ("R-seed1", {"config": {"seed": 1, "epochs": 9}}, "not two seeds .* they differ in seed, epochs"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    write: Write, tmp_path: Path, name: str, other: dict[str, object], said: str
) -> None:
    write("R", np.full(5, 0.5))
    write(name, np.full(5, 0.5), **other)
    with pytest.raises(UserError, match=said):
        run(tmp_path, "R", name)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda report: report["per_image"][0].update(name="../../etc/passwd"),
        lambda report: report["per_image"][0].update(name=7),
        lambda report: report["per_image"][0].update(dice="high"),
        lambda report: report["per_image"][0].update(dice=float("nan")),
        lambda report: report["per_image"][0].pop("target_fraction"),
        lambda report: report.update(per_image=[]),
        lambda report: report.update(per_image=[3]),
        lambda report: report.update(config=None),
        lambda report: report.update(name="U"),
        lambda report: report.pop("iou"),
    ],
)
def test_a_score_file_of_something_else_is_one_line(
    write: Write, tmp_path: Path, change: Callable[[dict], object]
) -> None:
    for name in ("R", "S"):
        write(name, np.full(5, 0.5))
    path = tmp_path / "R" / "R_test_scores.json"
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))
    with pytest.raises(UserError, match=r"no scores .*R_test_scores.json \(.+\); to write them: python"):
        run(tmp_path, "R", "S")


def test_images_are_paired_by_name_and_training_images_are_noted(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("R", "S"):
        write(name, np.linspace(0, 1, 9), trained_on=3 if name == "S" else 0)
    path = tmp_path / "R" / "R_test_scores.json"
    report = json.loads(path.read_text())
    report["per_image"].reverse()
    path.write_text(json.dumps(report))
    run(tmp_path, "R", "S")
    assert read_result(tmp_path, "R_S_test")["pairs"][0]["high"] == 0
    assert "note: S was trained on 3 of these images\n" in capsys.readouterr().out


def test_missing_scores_are_answered_with_the_command(write: Write, tmp_path: Path) -> None:
    write("R", np.full(5, 0.5))
    (tmp_path / "U").mkdir()
    with pytest.raises(
        UserError, match=r"\(No such file or directory\).*evaluate.py --name U --split test --save_path "
    ):
        run(tmp_path, "R", "U")
    (tmp_path / "R" / "R_test_scores.json").write_text("{")
    with pytest.raises(UserError, match=r"Expecting.*evaluate.py --name R --split test"):
        run(tmp_path, "R", "U")
    with pytest.raises(UserError, match=r"evaluate.py --name R --split valid --flip_average --save_path "):
        run(tmp_path, "R", "U", "--split", "valid", "--flip_average")


def test_the_page_shows_where_two_trained_runs_differ_most(
    run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(compare, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(inference, "OUTPUTS", tmp_path / "outputs")
    reports = []
    for name, epochs in (("R-seed0", 1), ("U", 4)):
        run_train("--name", name, "--epochs", epochs, "--learning_rate", 0.05)
        inference.main(["--name", name, "--save_path", str(tmp_path)])
        evaluate.main(["--name", name, "--save_path", str(tmp_path)])
        reports.append(json.loads((tmp_path / name / f"{name}_test_scores.json").read_text())["per_image"])
    run(tmp_path, "R", "U")
    page = (tmp_path / "outputs" / "compare" / "R_U_test.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["runs"] == ["R", "U"]
    spread = {row["name"]: abs(row["dice"] - other["dice"]) for row, other in zip(*reports, strict=True)}
    assert [entry["name"] for entry in data["entries"]] == sorted(spread, key=lambda name: -spread[name])
    assert all(len(entry["maps"]) == 2 for entry in data["entries"])
    assert page.count("<polyline") == 4  # Dice and loss of both
    capsys.readouterr()
    run(tmp_path, "R", "U", "--split", "valid")
    assert "note: the page shows no images: masks are written of the test split only" in capsys.readouterr().out

    with open(tmp_path / "U" / "U_history.csv", "a") as history:  # the run goes on, and becomes better
        history.write("5,0.1,0.1,0.999,0.1,1.0,1.0\n")
    run(tmp_path, "R", "U", "--split", "valid")
    assert re.findall("note: (.*) was scored at epoch .; its best is now 5", capsys.readouterr().out) == ["U"]

    worst = tmp_path / "outputs" / "U" / f"{data['entries'][0]['name']}_mask.png"
    worst.write_bytes((tmp_path / "outputs" / "R-seed0" / worst.name).read_bytes())  # of another run
    Image.new("L", (7, 5)).save(tmp_path / "outputs" / "R-seed0" / worst.name)  # of the same data at another size
    run(tmp_path, "R", "U")
    assert capsys.readouterr().out.count("another prediction of ") == 2
    assert '<script type="application/json"' not in (tmp_path / "outputs" / "compare" / "R_U_test.html").read_text()
