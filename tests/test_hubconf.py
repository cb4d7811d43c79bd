import importlib.util
import subprocess
import sys
from pathlib import Path

from plumbing.cli import REPO, UserError

import numpy as np
import pytest
import torch
from torchvision.models import resnet34

from models import build_network
from predictor import Predictor


def load(name: str, **options: object) -> object:
    return torch.hub.load(str(REPO), name, source="local", **options)


def test_torch_hub_lists_the_networks_and_the_predictor() -> None:
    spec = importlib.util.spec_from_file_location("hubconf", REPO / "hubconf.py")
    hubconf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hubconf)
    public = {name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    assert public == {"unet", "resnet34_unet", "resnet34_unet_small", "unet_plus_plus", "segformer", "predictor"}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "small.pth"
    torch.save(build_network("ResNet34_UNet_small").state_dict(), path)
    return path


def test_a_network_by_name_with_weights(weights: Path) -> None:
    model = load("resnet34_unet_small", weights=weights)
    assert not model.training
    expected = torch.load(weights, weights_only=True)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    with pytest.raises(UserError, match="holds the network ResNet34_UNet_small, not ResNet34_UNet"):
        load("resnet34_unet", weights=weights)


def test_each_entry_point_loads_its_network() -> None:
    names = {"unet": "UNet", "resnet34_unet": "ResNet34_UNet", "resnet34_unet_small": "ResNet34_UNet_small"}
    for name, network in (names | {"unet_plus_plus": "UNetPlusPlus", "segformer": "SegFormer"}).items():
        with torch.device("meta"):
            model, expected = load(name), build_network(network)
        assert not model.training
        assert [value.shape for value in model.parameters()] == [value.shape for value in expected.parameters()]


def test_a_pretrained_encoder(tmp_path: Path) -> None:
    torch.save(resnet34().state_dict(), tmp_path / "resnet34.pth")
    model = load("resnet34_unet", pretrained=str(tmp_path / "resnet34.pth"))
    expected = torch.load(tmp_path / "resnet34.pth")
    assert torch.equal(model.encoder.stem[0].weight, expected["conv1.weight"])
    assert torch.equal(model.encoder.stages[3][-1].norm2.bias, expected["layer4.2.bn2.bias"])


def test_predictor(weights: Path) -> None:
    image = np.zeros((40, 50, 3), np.uint8)
    probs = load("predictor", checkpoint=weights, device="cpu", image_size=32)(image)
    np.testing.assert_array_equal(probs, Predictor(weights, "cpu", image_size=32)(image))


def test_the_callers_own_modules_stay_the_callers(weights: Path, tmp_path: Path) -> None:
    for name in ("models", "losses"):
        (tmp_path / f"{name}.py").write_text("mine = True\n")
    code = f"""
import torch, models
network = torch.hub.load({str(REPO)!r}, "resnet34_unet_small", source="local", weights={str(weights)!r})
predictor = torch.hub.load({str(REPO)!r}, "predictor", source="local", checkpoint={str(weights)!r}, image_size=32)
import losses
assert models.mine and losses.mine
assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 32, 32)
assert predictor(torch.zeros(40, 50, 3, dtype=torch.uint8).numpy()).shape == (40, 50)
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
