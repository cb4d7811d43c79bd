from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index

from augment import Normalise
from evaluate import Predictor, dice_and_iou, dice_score, evaluate, fold_batchnorm
from losses import BOUNDARIES, bce_dice_loss, truth_and_weight
from models import NETWORKS, build_network
from oxford_pet import Split, images_and_trimaps

CPU = torch.device("cpu")


def as_mask(rows: str) -> Tensor:
    """``"#. .#"`` to (1, 1, 2, 2) bool."""
    return torch.tensor([[character == "#" for character in row] for row in rows.split()])[None, None]


def score(pred: str, truth: str, weight: str | None = None) -> tuple[float, float]:
    truth_mask = as_mask(truth)
    weight_mask = as_mask(weight) if weight else torch.ones_like(truth_mask)
    dice, iou = dice_and_iou(as_mask(pred), truth_mask, weight_mask)
    return dice.item(), iou.item()


def predictor_of(model: nn.Module, flip_average: bool = False) -> Predictor:
    return Predictor(model, Normalise((0, 0, 0), (1, 1, 1)), CPU, torch.float32, flip_average)


@pytest.fixture
def split() -> Split:
    """7 pictures of noise; the third has no pet, the fourth only boundary."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (7, 12, 12, 4), generator=generator, dtype=torch.uint8)
    pixels[..., 3] = torch.randint(1, 4, (7, 12, 12), generator=generator, dtype=torch.uint8)
    pixels[2, ..., 3] = 2
    pixels[3, ..., 3] = 2 + pixels[3, ..., 3] % 2
    return Split(Path("nowhere"), "valid", [f"pet_{index}" for index in range(7)], pixels)


@pytest.fixture
def predictor() -> Predictor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 3, padding=1))
    return Predictor(model, Normalise((127.0,) * 3, (70.0,) * 3), CPU, torch.float32)


# ---------------------------------------------------------------------------------------------- Dice and IoU


@pytest.mark.parametrize(
    ("pred", "truth", "dice", "iou"),
    [
        ("##.. ....", "##.. ....", 1, 1),
        ("##.. ....", "..## ....", 0, 0),
        ("##.. ....", "#... #...", 2 * 1 / 4, 1 / 3),
        ("###. ###.", "#... ....", 2 * 1 / 7, 1 / 6),
        ("#... ....", "###. ###.", 2 * 1 / 7, 1 / 6),
        (".... ....", ".... ....", 1, 1),
        ("#... ....", ".... ....", 0, 0),
        (".... ....", "#... ....", 0, 0),
    ],
)
def test_hand_counted_scores(pred: str, truth: str, dice: float, iou: float) -> None:
    assert score(pred, truth) == pytest.approx((dice, iou))


@pytest.mark.parametrize(
    ("pred", "truth", "dice", "iou"),
    [
        ("##.. ....", "#... #...", 2 * 1 / 3, 1 / 2),  # the missed one does not count
        ("#... ##..", "#... ....", 1, 1),  # nor do the wrong ones
        (".... ##..", ".... #...", 1, 1),  # nothing is left on either side
        ("#... ....", ".... ####", 0, 0),
    ],
)
def test_pixels_without_weight_count_nowhere(pred: str, truth: str, dice: float, iou: float) -> None:
    assert score(pred, truth, "#### ....") == pytest.approx((dice, iou))


def test_scores_are_those_of_an_independent_library() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(2, 20, 1, 1, 1, generator=generator)
    pred, truth = torch.rand(2, 20, 1, 30, 20, generator=generator) < shares
    weight = torch.rand(20, 1, 30, 20, generator=generator) < 0.8
    dice, iou = dice_and_iou(pred, truth, weight)
    assert (dice.dtype, dice.shape, iou.shape) == (torch.float64, (20,), (20,))
    for index in range(20):
        counted = pred[index][weight[index]].int(), truth[index][weight[index]].int()
        assert dice[index].item() == pytest.approx(binary_f1_score(*counted).item(), abs=1e-6)
        assert iou[index].item() == pytest.approx(binary_jaccard_index(*counted).item(), abs=1e-6)


def test_dice_score_is_the_mean_over_a_batch_of_masks_or_probabilities() -> None:
    truth = torch.cat((as_mask("##.. ...."), as_mask(".... ....")))
    probs = torch.tensor([[0.9, 0.5, 0.1, 0.2, 0, 0, 0, 0.51], [0.5, 0, 0, 0, 0, 0, 0, 0]]).view(2, 1, 2, 4)
    expected = (2 * 1 / 4 + 1) / 2  # exactly 0.5 is not pet
    assert dice_score(probs, truth.float()).item() == pytest.approx(expected)
    assert dice_score((probs > 0.5).float(), truth).item() == pytest.approx(expected)
    assert dice_score(probs > 0.5, truth.to(torch.uint8)).item() == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_scores_do_not_depend_on_the_batch_size(
    predictor: Predictor, split: Split, batch_size: int, boundary: str
) -> None:
    scores = evaluate(predictor, split, boundary, batch_size, bce_dice_loss)
    images, trimaps = images_and_trimaps(split.pixels)
    truth, weight = truth_and_weight(trimaps, boundary)
    dice, iou = dice_and_iou(predictor(images) > 0, truth, weight)
    np.testing.assert_array_equal(scores.dice, dice.numpy())
    np.testing.assert_array_equal(scores.iou, iou.numpy())
    assert scores.loss == pytest.approx(bce_dice_loss(predictor(images), truth, weight).item(), rel=1e-5)
    assert (scores.names, scores.boundary) == (split.names, boundary)
    assert 0 < scores.dice.mean() < 1
    assert scores.dice.dtype == np.float64


@pytest.mark.parametrize(("boundary", "empty"), [("pet", [2]), ("background", [2, 3]), ("ignore", [2, 3])])
def test_empty_truths_are_told_by_the_convention(
    predictor: Predictor, split: Split, boundary: str, empty: list[int]
) -> None:
    scores = evaluate(predictor, split, boundary, 4)
    assert np.flatnonzero(scores.empty_truth).tolist() == empty
    assert np.isnan(scores.loss)


class EverythingIsPet(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.ones_like(images[:, :1])


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_what_a_boundary_counts_as_decides_the_score(split: Split, boundary: str) -> None:
    scores = evaluate(predictor_of(EverythingIsPet()), split, boundary, 4)
    for dice, iou, trimap in zip(scores.dice, scores.iou, split.pixels[..., 3].numpy(), strict=True):
        pet, background, border = ((trimap == value).sum() for value in (1, 2, 3))
        true = pet + border if boundary == "pet" else pet
        all_counted = pet + background if boundary == "ignore" else trimap.size
        assert dice == pytest.approx(2 * true / (true + all_counted))
        assert iou == pytest.approx(true / all_counted)


def test_network_is_in_evaluation_mode_and_unchanged(predictor: Predictor, split: Split) -> None:
    predictor.model.train()
    before = {name: value.clone() for name, value in predictor.model.state_dict().items()}
    evaluate(predictor, split, "pet", 3)
    assert not predictor.model.training
    assert all(torch.equal(value, before[name]) for name, value in predictor.model.state_dict().items())


def test_visit_sees_every_sample_in_order(predictor: Predictor, split: Split) -> None:
    seen = []
    evaluate(predictor, split, "pet", 3, visit=lambda start, logits: seen.append((start, logits.clone())))
    assert [start for start, _ in seen] == [0, 3, 6]
    logits = torch.cat([part for _, part in seen])
    torch.testing.assert_close(logits, predictor(images_and_trimaps(split.pixels)[0]))
    assert (logits.shape, logits.dtype) == ((7, 1, 12, 12), torch.float32)


@pytest.mark.parametrize("network", NETWORKS)
def test_folding_the_batchnorm_changes_nothing(network: str) -> None:
    torch.manual_seed(0)
    model = build_network(network)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(value, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    images = torch.rand(2, 3, 48, 80)
    expected = model.eval()(images).detach()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold_batchnorm(model)
    left = [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == (["head.3"] if network == "lab3.ResNet34_UNet" else [])  # which stands behind a ReLU
    torch.testing.assert_close(folded(images), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(folded(images[:1, :, :33, :70]), model(images[:1, :, :33, :70]), rtol=1e-3, atol=1e-3)


def test_a_network_that_cannot_be_traced_stays_as_it_is() -> None:
    class Branching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images[:, :1] if images.mean() > 0 else -images[:, :1]

    model = Branching()
    assert fold_batchnorm(model) is model


class Columns(nn.Module):
    """A logit that grows to the right, whatever the picture: as asymmetric as can be."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.arange(images.shape[-1], dtype=torch.float32).expand_as(images[:, :1])


def test_flip_average_is_the_mean_with_the_mirrored_picture(predictor: Predictor, split: Split) -> None:
    images = images_and_trimaps(split.pixels)[0]
    assert (predictor_of(Columns(), flip_average=True)(images) == 5.5).all()
    symmetric = nn.Conv2d(3, 1, 1)
    torch.testing.assert_close(predictor_of(symmetric, flip_average=True)(images), predictor_of(symmetric)(images))
    averaged = Predictor(predictor.model, predictor.normalise, CPU, torch.float32, flip_average=True)
    expected = (predictor(images) + predictor(images.flip(-1)).flip(-1)) / 2
    torch.testing.assert_close(averaged(images), expected)
    assert not torch.allclose(averaged(images), predictor(images))
    torch.testing.assert_close(averaged(images.flip(-1)), averaged(images).flip(-1))
