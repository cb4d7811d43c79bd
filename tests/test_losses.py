import numpy as np
import pytest
import torch
from torch import Tensor

from losses import LOSSES
from trimap import BOUNDARIES, target_and_weight


@pytest.fixture(params=LOSSES)
def criterion(request: pytest.FixtureRequest):
    """Every loss, so that one which is added is tested as it is."""
    return LOSSES[request.param]


def drawn_batch() -> tuple[Tensor, Tensor]:
    """Logits and trimaps of 3 images."""
    generator = torch.Generator().manual_seed(0)
    trimaps = torch.randint(1, 4, (3, 1, 6, 5), generator=generator, dtype=torch.uint8)
    return torch.randn(3, 1, 6, 5, generator=generator) * 3, trimaps


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("loss", ["bce_dice", "bce", "mse"])
def test_value_is_the_one_of_numpy(loss: str, boundary: str) -> None:
    logits, trimaps = drawn_batch()
    expected = []
    for image, trimap in zip(logits.double().numpy(), trimaps.numpy(), strict=True):
        counts = (trimap != 3) | (boundary != "ignore")
        target = ((trimap == 1) | ((trimap == 3) & (boundary == "pet")))[counts]
        probs = 1 / (1 + np.exp(-image[counts]))
        bce = -np.where(target, np.log(probs), np.log(1 - probs)).mean()
        dice = (2 * probs[target].sum() + 1) / (probs.sum() + target.sum() + 1)
        expected.append({"bce_dice": bce + 1 - dice, "bce": bce, "mse": np.square(probs - target).mean()}[loss])
    found = LOSSES[loss](logits, *target_and_weight(trimaps, boundary))
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_batch_is_the_mean_over_its_images(criterion) -> None:
    logits, trimaps = drawn_batch()
    batch = (logits, *target_and_weight(trimaps, "ignore"))
    alone = [criterion(*(part[i : i + 1] for part in batch)) for i in range(3)]
    torch.testing.assert_close(criterion(*batch), torch.stack(alone).mean())


def test_ignored_pixels_have_no_influence(criterion) -> None:
    logits, trimaps = drawn_batch()
    target, weight = target_and_weight(trimaps, "ignore")
    loss = criterion(logits.requires_grad_(), target, weight)
    loss.backward()
    assert torch.equal(logits.grad != 0, weight)
    other = torch.where(weight, logits.detach(), 50.0)
    torch.testing.assert_close(criterion(other, target, weight), loss.detach(), rtol=0, atol=0)


def test_gradient_raises_pet_and_lowers_background(criterion) -> None:
    logits, trimaps = drawn_batch()
    target, weight = target_and_weight(trimaps, "pet")
    criterion(logits.requires_grad_(), target, weight).backward()
    assert torch.equal(logits.grad < 0, target)
    assert torch.equal(logits.grad > 0, ~target)


@pytest.mark.parametrize("logit", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_stay_finite(criterion, logit: float, dtype: torch.dtype) -> None:
    trimaps = torch.tensor([1, 2, 3], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 4, 4)  # one value an image
    for boundary in BOUNDARIES:
        logits = torch.full((3, 1, 4, 4), logit, dtype=dtype, requires_grad=True)
        loss = criterion(logits, *target_and_weight(trimaps, boundary))
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("trimap", [1, 2])
def test_right_costs_nothing_and_wrong_a_lot(criterion, trimap: int) -> None:
    target, weight = target_and_weight(torch.full((1, 1, 4, 4), trimap, dtype=torch.uint8), "pet")
    right = torch.where(target, 30.0, -30.0)
    assert criterion(right, target, weight).item() == pytest.approx(0, abs=1e-6)
    assert criterion(-right, target, weight).item() > 0.9
