import numpy as np
import pytest
import torch
from torch import Tensor

from losses import BOUNDARIES, bce_dice_loss, truth_and_weight


def drawn_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and trimaps of 3 pictures."""
    generator = torch.Generator().manual_seed(seed)
    trimaps = torch.randint(1, 4, (3, 1, 6, 5), generator=generator, dtype=torch.uint8)
    return torch.randn(3, 1, 6, 5, generator=generator) * 3, trimaps


def loss_by_hand(logits: np.ndarray, trimaps: np.ndarray, boundary: str, dice_weight: float) -> float:
    losses = []
    for picture, trimap in zip(logits.astype(np.float64), trimaps, strict=True):
        counts = np.full(trimap.shape, True) if boundary != "ignore" else trimap != 3
        truth = ((trimap == 1) | ((trimap == 3) & (boundary == "pet")))[counts]
        probs = 1 / (1 + np.exp(-picture[counts]))
        bce = -np.where(truth, np.log(probs), np.log(1 - probs)).mean()
        dice = (2 * probs[truth].sum() + 1) / (probs.sum() + truth.sum() + 1)
        losses.append(bce + dice_weight * (1 - dice))
    return float(np.mean(losses))


@pytest.mark.parametrize(
    ("boundary", "truth", "weight"),
    [("pet", [1, 0, 1], [1, 1, 1]), ("background", [1, 0, 0], [1, 1, 1]), ("ignore", [1, 0, None], [1, 1, 0])],
)
def test_what_a_boundary_counts_as(boundary: str, truth: list, weight: list) -> None:
    got_truth, got_weight = truth_and_weight(torch.tensor([1, 2, 3], dtype=torch.uint8).view(1, 1, 1, 3), boundary)
    assert (got_truth.shape, got_weight.shape) == ((1, 1, 1, 3), (1, 1, 1, 3))
    assert got_truth.dtype == got_weight.dtype == torch.bool
    assert got_weight.flatten().tolist() == weight
    assert all(got == want for got, want in zip(got_truth.flatten().tolist(), truth, strict=True) if want is not None)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("dice_weight", [0.0, 1.0, 0.3])
def test_loss_is_the_one_counted_by_hand(boundary: str, dice_weight: float) -> None:
    logits, trimaps = drawn_batch()
    loss = bce_dice_loss(logits, *truth_and_weight(trimaps, boundary), dice_weight)
    assert loss.item() == pytest.approx(loss_by_hand(logits.numpy(), trimaps.numpy(), boundary, dice_weight), rel=1e-5)


def test_loss_of_a_batch_is_the_mean_over_its_pictures() -> None:
    logits, trimaps = drawn_batch()
    truth, weight = truth_and_weight(trimaps, "ignore")
    one_by_one = [bce_dice_loss(logits[i : i + 1], truth[i : i + 1], weight[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(bce_dice_loss(logits, truth, weight), torch.stack(one_by_one).mean())


def test_ignored_pixels_have_no_influence() -> None:
    logits, trimaps = drawn_batch()
    truth, weight = truth_and_weight(trimaps, "ignore")
    logits.requires_grad_()
    loss = bce_dice_loss(logits, truth, weight)
    loss.backward()
    assert not logits.grad[trimaps == 3].any()
    assert (logits.grad[trimaps != 3] != 0).all()
    elsewhere = torch.where(weight, logits.detach(), torch.full_like(logits, 50.0))
    torch.testing.assert_close(bce_dice_loss(elsewhere, truth, weight), loss.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("dice_weight", [0.0, 1.0])
def test_gradient_raises_pet_and_lowers_background(dice_weight: float) -> None:
    logits, trimaps = drawn_batch()
    truth, weight = truth_and_weight(trimaps, "pet")
    bce_dice_loss(logits.requires_grad_(), truth, weight, dice_weight).backward()
    assert (logits.grad[truth] < 0).all()
    assert (logits.grad[~truth] > 0).all()


@pytest.mark.parametrize("trimap", [1, 2, 3])
@pytest.mark.parametrize("logit", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_stay_finite(trimap: int, logit: float, boundary: str, dtype: torch.dtype) -> None:
    logits = torch.full((2, 1, 4, 4), logit, dtype=dtype, requires_grad=True)
    trimaps = torch.full((2, 1, 4, 4), trimap, dtype=torch.uint8)
    loss = bce_dice_loss(logits, *truth_and_weight(trimaps, boundary))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("trimap", [1, 2])
def test_being_right_costs_nothing_and_wrong_a_lot(trimap: int) -> None:
    truth, weight = truth_and_weight(torch.full((1, 1, 4, 4), trimap, dtype=torch.uint8), "pet")
    right = torch.where(truth, 30.0, -30.0)
    assert bce_dice_loss(right, truth, weight).item() == pytest.approx(0, abs=1e-6)
    assert bce_dice_loss(-right, truth, weight).item() > 10
