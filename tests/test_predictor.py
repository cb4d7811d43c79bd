"""predictor.py: images in, probabilities and masks out, at the images' own size."""

import re
from collections.abc import Callable
from pathlib import Path

from plumbing.cli import UserError
from plumbing.images import resize_image

import numpy as np
import pytest
import torch
from conftest import Train, shake_norms
from PIL import Image
from torch import Tensor, nn

from models import build_network
from oxford_pet import image_path, read_split
from predictor import Predictor, fold_batchnorm
from recipes import Config

CPU = torch.device("cpu")


def predictor_of(model: nn.Module, flip_average: bool = False) -> Predictor:
    config = Config("UNet", image_size=32, mean=(127.0,) * 3, std=(70.0,) * 3, precision="fp32")
    predictor = Predictor.from_model(model, config, CPU, torch.float32)
    predictor.flip_average = flip_average
    return predictor


@pytest.fixture
def predictor() -> Predictor:
    torch.manual_seed(0)
    return predictor_of(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 3, padding=1)))


class Ramp(nn.Module):
    """A logit that grows to the right by ``step`` a pixel, 0 in the middle, whatever the image."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, images: Tensor) -> Tensor:
        width = images.shape[-1]
        return ((torch.arange(width) - (width - 1) / 2) * self.step).expand_as(images[:, :1])


# ---------------------------------------------------------------------------------------------- arrays and files in


def test_probabilities_and_masks_have_the_images_own_size(
    predictor: Predictor, drawn_pets: Path, tmp_path: Path
) -> None:
    photo = image_path(drawn_pets, read_split(drawn_pets, "test")[0])
    with Image.open(photo) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    probs = predictor(pixels)
    assert (probs.shape, probs.dtype) == (pixels.shape[:2], np.float32)
    assert 0 < probs.min() < 0.5 < probs.max() < 1
    np.testing.assert_array_equal(predictor(tmp_path / "photo.png"), probs)
    (mask,) = predictor.masks([pixels])
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, probs > 0.5)
    with pytest.raises(UserError, match=r"none\.jpg cannot be read"):
        predictor(tmp_path / "none.jpg")


def test_many_images_are_predicted_in_order_and_a_batch_at_a_time(predictor: Predictor) -> None:
    rng, taken = np.random.default_rng(0), []
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((20, 30), (32, 32), (1, 1), (90, 41), (33, 7))]
    predicted = predictor.predict((taken.append(1) or image for image in images), batch_size=2)
    for index, (image, probs) in enumerate(zip(images, predicted, strict=True)):
        assert len(taken) == min(5, index // 2 * 2 + 2)
        np.testing.assert_allclose(probs, predictor(image), atol=1e-6)


def test_the_sigmoid_comes_after_the_resizing_and_never_overflows() -> None:
    image = np.zeros((16, 64, 3), np.uint8)
    x = np.clip((np.arange(64) + 0.5) / 2 - 0.5, 0, 31) - 15.5  # of the pixels, on the network's 32
    for step in (0.1, 1000.0):
        probs = predictor_of(Ramp(step))(image)
        np.testing.assert_allclose(probs[5], torch.tensor(x * step).sigmoid(), atol=1e-6)


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(20, 30, 3, dtype=torch.uint8),
        Image.new("RGB", (30, 20)),
        np.zeros((20, 30), np.uint8),
        np.zeros((20, 30, 4), np.uint8),
        np.zeros((3, 20, 30), np.uint8),
        np.zeros((1, 20, 30, 3), np.uint8),
        np.zeros((20, 30, 3), np.float32),
        np.zeros((0, 30, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(predictor: Predictor, image: object) -> None:
    found = f"{type(image).__name__} {getattr(image, 'shape', '')} {getattr(image, 'dtype', '')}".strip()
    with pytest.raises(ValueError, match=r"expected .* \(height, width, 3\) of uint8; got " + re.escape(found) + "$"):
        predictor(image)


def test_a_photo_is_no_sharper_than_the_training_images_were(drawn_pets: Path) -> None:
    """They had at most 24 pixels and were enlarged to 32; those of the data set itself are not touched."""
    seen = []

    class Spy(nn.Identity):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images[:, :1]

    predictor = predictor_of(Spy())
    photo = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    own = photo[:24, :18]
    for source_side, image, expected in (
        (24, photo, resize_image(photo, 24, 24)),
        (24, own, own),
        (32, photo, photo),
        (500, photo, photo),
        (None, photo, photo),
    ):
        predictor.source_side = source_side
        predictor(image)
        pixels = torch.from_numpy(resize_image(expected, 32, 32)).permute(2, 0, 1)[None].float()
        torch.testing.assert_close(seen.pop(), predictor.normalise(pixels), rtol=0, atol=0)


def test_a_checkpoint_predicts_what_was_trained_at_any_image_size(run_train: Train, tmp_path: Path) -> None:
    run_train("--epochs", 1, "--precision", "fp32")
    best = tmp_path / "R" / "R_best.pth"
    state = torch.load(best, weights_only=True)
    model = build_network("ResNet34_UNet")
    model.load_state_dict(state["model"])
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    probs = {size: Predictor(best, device="cpu", image_size=size)(image) for size in (None, 32, 64)}
    expected = Predictor.from_model(model, Config.from_dict(state["config"]), CPU, torch.float32)(image)
    assert Predictor(best, device="cpu").source_side == 72
    np.testing.assert_allclose(probs[None], expected, atol=1e-5)
    np.testing.assert_array_equal(probs[None], probs[32])
    assert np.abs(probs[64] - probs[32]).max() > 1e-4
    torch.save(state["model"], tmp_path / "weights.pth")  # of a network that is tiny by every name
    assert Predictor(str(tmp_path / "weights.pth"), device="cpu").config.image_size == 256


# ---------------------------------------------------------------------------------------------- logits


def test_bfloat16_weights_are_cast_once_and_norms_stay_float32() -> None:
    torch.manual_seed(0)
    state = build_network("SegFormer").state_dict()
    rough, exact = (
        Predictor({"config": Config("SegFormer", precision=precision), "model": state}, "cpu")
        for precision in ("bf16", "fp32")
    )
    dtypes = {type(module): module.weight.dtype for module in rough.model.modules() if hasattr(module, "weight")}
    assert dtypes == {nn.Conv2d: torch.bfloat16, nn.Linear: torch.bfloat16, nn.LayerNorm: torch.float32}
    images = torch.rand(1, 3, 64, 64) * 255
    expected = exact.logits(images)
    torch.testing.assert_close(rough.logits(images), expected, rtol=0, atol=0.05 * expected.abs().max().item())


def test_logits_are_float32_in_evaluation_mode_and_leave_the_network_as_it_is(predictor: Predictor) -> None:
    predictor.model.train()
    before = {name: value.clone() for name, value in predictor.model.state_dict().items()}
    logits = predictor.logits(torch.rand(3, 3, 40, 24) * 255)
    assert (logits.shape, logits.dtype, logits.requires_grad) == ((3, 1, 40, 24), torch.float32, False)
    assert not predictor.model.training
    assert all(torch.equal(value, before[name]) for name, value in predictor.model.state_dict().items())


def test_flip_average_is_the_mean_with_the_mirrored_images_logits(predictor: Predictor) -> None:
    images = torch.rand(2, 3, 32, 32) * 255
    assert not predictor_of(Ramp(1.0), flip_average=True).logits(images).any()
    averaged = predictor_of(predictor.model, flip_average=True)
    expected = (predictor.logits(images) + predictor.logits(images.flip(-1)).flip(-1)) / 2
    torch.testing.assert_close(averaged.logits(images), expected)
    assert not torch.allclose(averaged.logits(images), predictor.logits(images))


# ---------------------------------------------------------------------------------------------- folded BatchNorm


class Branching(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[:, :1] if images.mean() > 0 else -images[:, :1]


class SharedConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList((nn.BatchNorm2d(3), nn.BatchNorm2d(3)))

    def forward(self, images: Tensor) -> Tensor:
        for norm in self.norms:
            images = norm(self.conv(images))
        return images


@pytest.mark.parametrize("build", [Branching, SharedConvolution])
def test_a_network_that_cannot_be_folded_stays_as_it_is(build: Callable[[], nn.Module]) -> None:
    model = shake_norms(build()).eval()
    assert fold_batchnorm(model) is model


def test_the_second_look_averages_the_logits_around_the_pet() -> None:
    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(0, 60, (90, 120, 3), np.uint8)
    image[30:60, 50:80] += 150  # bright: the pet
    model = nn.Sequential(nn.AvgPool2d(5, 1, 2), nn.Conv2d(3, 1, 1))
    nn.init.ones_(model[1].weight)
    config = Config("UNet", image_size=64)
    once, twice = (Predictor.from_model(model, config, torch.device("cpu"), torch.float32) for _ in range(2))
    twice.second_look = True

    def logits(pixels: np.ndarray) -> np.ndarray:
        return np.log(once(pixels)) - np.log1p(-once(pixels))

    rows, columns = np.nonzero(once(image) > 0.5)
    down, across = round(0.05 * (np.ptp(rows) + 1)), round(0.05 * (np.ptp(columns) + 1))
    box = np.s_[rows.min() - down : rows.max() + 1 + down, columns.min() - across : columns.max() + 1 + across]
    expected = logits(image)
    expected[box] = (expected[box] + logits(image[box])) / 2
    np.testing.assert_allclose(twice(image), 1 / (1 + np.exp(-expected)), atol=1e-4)
    assert not np.allclose(twice(image), once(image), atol=1e-2)
    assert np.isfinite(twice(np.zeros_like(image))).all()  # nothing found
