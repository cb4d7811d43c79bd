import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from plumbing.cli import UserError
from plumbing.images import decode_image

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import export_onnx
from checkpoint import save_checkpoint
from models import NETWORKS, build_network
from oxford_pet import image_path, read_split
from predictor import Predictor
from recipes import Config

onnx, onnxruntime, _ = (
    pytest.importorskip(package, reason="ONNX needs pip install -r requirements-onnx.txt")
    for package in export_onnx.PACKAGES
)
SIDE = 32
Save = Callable[[str], Path]


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in conftest.py, without RReLU, which ONNX does not know."""
    monkeypatch.setitem(NETWORKS, "UNet", lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 1, 1)))


@pytest.fixture
def save(drawn_pets: Path, tmp_path: Path) -> Save:
    """Save a checkpoint of a network with new weights and statistics as after training."""

    def call(network: str) -> Path:
        torch.manual_seed(0)
        model = build_network(network)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 1, 2)
        config = Config(network, image_size=SIDE, precision="fp32", boundary="background").to_dict()
        path = tmp_path / "it's mine.pth"
        extra = {"data_path": str(drawn_pets), "epoch": 0, "scores": {}, "history": []}
        save_checkpoint(path, {"format": 2, "config": config, "model": model.state_dict(), **extra})
        return path

    return call


def run_export(path: Path, *flags: object) -> None:
    export_onnx.main([str(flag) for flag in ("--model", path, *flags)])


def run_file(path: Path, images: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(path).run(None, {"images": images})[0]


def test_the_printed_lines_run_the_file_without_torch(
    save: Save, drawn_pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save("ResNet34_UNet_small")
    run_export(path)
    printed = capsys.readouterr().out
    assert f"validation images of {drawn_pets}" in printed
    file = path.with_suffix(".onnx")
    metadata = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    network = {"network": "ResNet34_UNet_small", "recipe": "default"}
    assert metadata == network | {"image_size": str(SIDE), "boundary": "background"}
    assert b"site-packages" not in file.read_bytes()

    photo = decode_image(image_path(drawn_pets, read_split(drawn_pets, "test")[0]))
    Image.fromarray(photo).resize((100, 90)).save(tmp_path / "photo.jpg")
    lines = printed.splitlines()[-6:]
    assert lines[0].startswith("import ")
    code = "\n".join([*lines, "import sys", "assert 'torch' not in sys.modules"])
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    with Image.open(tmp_path / "photo_mask.png") as image:
        mask = np.asarray(image)
    assert set(np.unique(mask)) <= {0, 255}
    assert ((mask > 0) == (Predictor(path, "cpu")(tmp_path / "photo.jpg") > 0.5)).mean() > 0.98


SLOW = [network for network in NETWORKS if network != "UNet"]


@pytest.mark.parametrize("network", ["UNet", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_every_network_has_the_same_probabilities_in_onnx(network: str, save: Save) -> None:
    path = save(network)
    run_export(path)  # compares
    random = np.random.default_rng(0)
    reference = Predictor(path, "cpu")
    for shape in ((3, 32, 32), (1, 64, 50), (2, 47, 33)):  # a batch and sizes that were not compared
        images = random.integers(0, 256, (*shape, 3), np.uint8)
        expected = reference.logits(torch.from_numpy(images).permute(0, 3, 1, 2).float())[:, 0].sigmoid()
        probs = run_file(path.with_suffix(".onnx"), images)
        assert (probs.shape, probs.dtype) == (shape, np.float32)
        np.testing.assert_allclose(probs, expected.numpy(), rtol=0, atol=1e-3)  # noise is far from any photo


def test_half_is_half_the_file(save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save("lab2.UNet")
    run_export(path, "--output", tmp_path / "new folder" / "full.onnx")
    run_export(path, "--half")
    assert "bound 1e-02" in capsys.readouterr().out
    full, half = tmp_path / "new folder" / "full.onnx", tmp_path / "it's mine_half.onnx"
    assert half.stat().st_size < 0.6 * full.stat().st_size
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 32, 3), np.uint8)
    difference = np.abs(run_file(full, images) - run_file(half, images)).max()
    assert 0 < difference < 1e-2


def test_a_file_that_differs_is_not_written(
    tiny_network: None, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, file = save("UNet"), tmp_path / "it's mine.onnx"
    file.write_bytes(b"before")
    nan = float("nan")
    monkeypatch.setattr(export_onnx.Predictor, "logits", lambda _, images: torch.full_like(images[:, :1], nan))
    with pytest.raises(UserError, match=r"differ by nan, over 1e-04; .* is not written"):
        run_export(path)
    assert file.read_bytes() == b"before"
    assert sorted(found.name for found in tmp_path.iterdir()) == [file.name, path.name]


def test_drawn_pets_stand_in_for_data_that_is_gone(
    tiny_network: None, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save("UNet")
    state = torch.load(path, weights_only=True)
    save_checkpoint(path, state | {"data_path": str(tmp_path / "gone")})
    run_export(path, "--image_size", 40)
    printed = capsys.readouterr().out
    assert "on drawn pets" in printed and "(40, 40)" in printed


def test_missing_packages_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_onnx, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UserError, match=r"this needs onnxscript: python -m pip install -r .*requirements-onnx\.txt$"):
        export_onnx.main(["--model", "R"])


@pytest.mark.parametrize("flags", [("--output", "R.pth"), ("--limit", "3"), ("--device", "cuda"), ()])
def test_wrong_flags(flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        export_onnx.main([*flags, *(("--model", "R") if flags else ())])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
