"""Commands that messages propose work when they are pasted, also where a path has a space."""

import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from plumbing.cli import UserError

import cv2
import numpy as np
import pytest
from conftest import Train

import compare
import draw_pets
import import_masks
import inference
import shrink_data
import train
from oxford_pet import read_split, trimap_path

QUICK = ("--epochs", "1", "--image_size", "32", "--batch_size", "4")


def proposed(text: str) -> list[str]:
    """The words of the last command in a text, up to the line's end."""
    return shlex.split(re.findall(r"python (?:src|tools)/\w+\.py.*", text)[-1])


def paste(text: str, *more: object) -> None:
    _, script, *words = proposed(text)
    importlib.import_module(Path(script).stem).main([*words, *map(str, more)])


@pytest.fixture
def folder(tmp_path: Path, tiny_network: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(inference, "OUTPUTS", tmp_path / "my outputs")
    monkeypatch.setattr(compare, "OUTPUTS", tmp_path / "my outputs")
    (tmp_path / "my folder").mkdir()
    return tmp_path / "my folder"


def test_from_any_tool_to_the_test_dice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pets = folder / "drawn pets"
    draw_pets.main([str(pets), "--count", "40", "--size", "48", "72"])
    drawn = capsys.readouterr().out
    shrink_data.main([str(pets), str(folder / "small pets"), "--size", "32"])
    shrunk = capsys.readouterr().out
    for kind in ("photos", "masks"):
        (folder / kind).mkdir()
    for index in range(24):
        image = np.random.default_rng(index).integers(0, 256, (40, 40, 3), np.uint8)
        cv2.imwrite(str(folder / "photos" / f"{index}.png"), image)
        cv2.imwrite(
            str(folder / "masks" / f"{index}.png"), cv2.circle(np.zeros((40, 40), np.uint8), (20, 20), 9, 255, -1)
        )
    import_masks.main(
        [str(folder / "photos"), str(folder / "masks"), "--output", str(folder / "own data"), "--valid", "0.4"]
    )
    imported = capsys.readouterr().out
    for name, text in {"drawn": drawn, "shrunk": shrunk, "imported": imported}.items():
        saved = folder / f"runs of {name}"
        saved.mkdir()
        paste(text, *QUICK, "--save_path", saved)  # train.py
        paste(capsys.readouterr().out)  # inference.py
        assert "Dice Score: " in capsys.readouterr().out


def test_what_to_do_with_a_run_that_is_there(
    run_train: Train, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--save_path", folder, "--epochs", 1)
    run_train(*flags)
    with pytest.raises(UserError, match="holds a run already") as error:
        run_train(*flags)
    assert re.findall(r"--\w+", str(error.value)) == ["--resume", "--overwrite", "--name"]
    run_train(*flags, "--overwrite")
    run_train(*flags, "--name", "NAME")
    with pytest.raises(UserError, match=r"all 1 epochs are done; .*: --load_model_epoch final --epochs MORE"):
        run_train("--save_path", folder, "--resume")
    run_train("--save_path", folder, "--load_model_epoch", "final", "--epochs", 2)
    for split in ("valid", "test"):
        for _ in range(2):  # a run at a time
            with pytest.raises(UserError, match=r"no scores .*; to write them") as error:
                compare.main(["R", "NAME", "--save_path", str(folder), "--split", split])
            paste(str(error.value))
        compare.main(["R", "NAME", "--save_path", str(folder), "--split", split])
    capsys.readouterr()


def test_a_limited_run_can_be_compared(run_train: Train, folder: Path) -> None:
    for name in ("a", "b"):
        run_train("--save_path", folder, "--epochs", 1, "--limit", 6, "--name", name)
    for _ in range(2):  # a run at a time
        with pytest.raises(UserError) as error:
            compare.main(["a", "b", "--save_path", str(folder)])
        paste(str(error.value))
    compare.main(["a", "b", "--save_path", str(folder)])


def test_how_to_find_all_wrong_files(
    pets: Path, folder: Path, tiny_network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pets.rename(folder / "pets")
    path = trimap_path(data, read_split(data, "train")[0])
    damage: dict[str, Callable[[], object]] = {
        "has .* pixels, its trimap": lambda: cv2.imwrite(str(path), np.ones((9, 9), np.uint8)),
        "is listed but": path.unlink,
    }
    for message, do in damage.items():
        do()
        with pytest.raises(UserError, match=message) as error:
            train.main(["--model", "R", "--data_path", str(data), *QUICK, "--save_path", str(folder)])
        with pytest.raises(SystemExit, match="1"):  # as check_data does where something is wrong
            paste(str(error.value))
        assert f"{path.stem}" in capsys.readouterr().out
