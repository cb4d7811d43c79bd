"""metrics.py: each metric against an independent count, and scores that depend on neither batch size nor ranks."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from plumbing import ranks

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from losses import bce_dice_loss
from metrics import (
    boundary_f_score,
    dice_and_iou,
    evaluate,
    largest_part,
    overlap,
    paired_difference_ci,
    perimeter,
)
from predictor import Predictor
from recipes import Config
from split import Split, images_and_trimaps
from trimap import target_and_weight

CPU = torch.device("cpu")


def as_mask(rows: str) -> Tensor:
    """``"#. .#"`` to (1, 1, 2, 2) bool."""
    return torch.tensor([[character == "#" for character in row] for row in rows.split()])[None, None]


# ---------------------------------------------------------------------------------------------- Dice and IoU


@pytest.mark.parametrize(
    ("pred", "target", "weight", "dice", "iou"),
    [
        ("##.. ....", "##.. ....", "#### ####", 1, 1),
        ("##.. ....", "#... #...", "#### ####", 2 * 1 / 4, 1 / 3),
        ("###. ###.", "#... ....", "#### ####", 2 * 1 / 7, 1 / 6),
        (".... ....", ".... ....", "#### ####", 1, 1),  # both empty
        ("#... ....", ".... ....", "#### ####", 0, 0),
        (".... ....", "#... ....", "#### ####", 0, 0),
        ("##.. ....", "#... #...", "#### ....", 2 * 1 / 3, 1 / 2),  # the missed one does not count
        ("#... ##..", "#... ....", "#### ....", 1, 1),  # nor do the wrong ones
        (".... ##..", ".... #...", "#### ....", 1, 1),  # nothing is left on either side
        ("#... ....", ".... ####", "#### ....", 0, 0),
    ],
)
def test_scores_counted_by_hand(pred: str, target: str, weight: str, dice: float, iou: float) -> None:
    scores = dice_and_iou(*overlap(as_mask(pred), as_mask(target), as_mask(weight)))
    assert [score.item() for score in scores] == pytest.approx([dice, iou])


# ---------------------------------------------------------------------------------------------- outlines


def blobs(seed: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: a few random ellipses, some of them cut off by the border."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(size)
    centres, radii = rng.random((3, 2)) * size, rng.uniform(2, min(size) / 3, (3, 2))
    return sum(
        ((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1 for (y, x), (a, b) in zip(centres, radii, strict=True)
    ).astype(bool)


def neighbours(mask: np.ndarray, row: int, column: int) -> list[bool]:
    places = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
    return [mask[y, x] for y, x in places if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]]


@pytest.mark.parametrize("seed", range(3))
def test_perimeter_is_the_number_of_neighbouring_pixels_that_differ(seed: int) -> None:
    mask = blobs(seed, (23, 31))
    differing = sum(
        bool(mask[place]) != bool(other)
        for place in itertools.product(range(23), range(31))
        for other in neighbours(mask, *place)
    )
    assert perimeter(mask) == differing / 2 > 0
    assert perimeter(np.ones((4, 5), bool)) == perimeter(np.zeros((4, 5), bool)) == 0


@pytest.mark.parametrize("seed", range(4))
def test_boundary_f_score_by_brute_force(seed: int) -> None:
    pred, target = blobs(seed, (150, 210)), blobs(seed, (150, 210))
    pred[np.roll(blobs(seed + 10, (150, 210)), 9)] ^= True
    outlines = [
        np.array([place for place in np.argwhere(mask) if not all(neighbours(mask, *place))]) for mask in (pred, target)
    ]
    distances = np.hypot(*(outlines[0][:, None] - outlines[1][None]).transpose(2, 0, 1))
    tolerance = 0.0075 * np.hypot(150, 210)
    precision, recall = ((distances.min(axis) <= tolerance).mean() for axis in (1, 0))
    assert boundary_f_score(pred, target) == pytest.approx(2 * precision * recall / (precision + recall))
    assert 0.1 < precision < 1
    assert boundary_f_score(target, target) == 1


def test_boundary_f_score_where_there_is_no_outline() -> None:
    empty, full, blob = np.zeros((20, 20), bool), np.ones((20, 20), bool), blobs(0, (20, 20))
    assert boundary_f_score(empty, empty) == boundary_f_score(empty, full) == 1  # the border is no outline
    assert boundary_f_score(empty, blob) == boundary_f_score(blob, full) == 0


def test_largest_part_of_a_mask() -> None:
    mask = np.zeros((20, 20), bool)
    assert largest_part(mask) == largest_part(~mask) == 1
    mask[2:5, 2:5] = mask[5, 5] = mask[10:12, 10] = True  # 9 pixels, one more by its corner, and 2
    assert largest_part(mask) == pytest.approx(10 / 12)


# ---------------------------------------------------------------------------------------------- bootstrap


def test_the_bootstrap_is_paired_seeded_and_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(400)  # what both find hard does not widen the interval
    a, b = hard + 0.01 + rng.normal(0, 0.02, 400), hard + rng.normal(0, 0.02, 400)
    gain, error = paired_difference_ci(a, b), (a - b).std() / np.sqrt(400)
    assert gain == paired_difference_ci(a, b)
    for end, factor in (("low", -1.96), ("mean", 0), ("high", 1.96)):
        assert gain[end] == pytest.approx((a - b).mean() + factor * error, abs=0.2 * error if factor else 1e-9)
    assert [paired_difference_ci(*pair)["verdict"] for pair in ((a, b), (b, a), (a, a))] == ["above", "below", "none"]
    few = np.full(6, 0.5)  # 5 images, though all better, happen by chance in 6%
    assert [paired_difference_ci(few[:n] + 0.1, few[:n])["verdict"] for n in (1, 5, 6)] == ["none", "none", "above"]


# ---------------------------------------------------------------------------------------------- a split


@pytest.fixture
def split() -> Split:
    """7 images of noise; the third has no pet, the fourth only boundary."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (7, 12, 12, 4), generator=generator, dtype=torch.uint8)
    pixels[..., 3] = torch.randint(1, 4, (7, 12, 12), generator=generator, dtype=torch.uint8)
    pixels[2, ..., 3] = 2
    pixels[3, ..., 3] = 2 + pixels[3, ..., 3] % 2
    return Split(Path("nowhere"), "valid", [f"pet_{index}" for index in range(7)], pixels)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize(
    ("boundary", "empty"), [("pet", [2]), ("background", [2, 3]), ("ignore", [2, 3]), ("middle", [2, 3])]
)
def test_scores_are_those_of_the_sets_of_pixels_for_any_batch_size(
    split: Split, batch_size: int, boundary: str, empty: list[int]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 3, padding=1))
    predictor = Predictor.from_model(model, Config("UNet", boundary=boundary), CPU, torch.float32)
    batches: list[tuple[range, Tensor, Tensor]] = []
    scores = evaluate(predictor, split, batch_size, bce_dice_loss, lambda *batch: batches.append(batch))
    indices, logits, trimaps = zip(*batches, strict=True)
    assert [*map(list, indices)] == [[*range(7)][start : start + batch_size] for start in range(0, 7, batch_size)]
    images, logits, trimaps = images_and_trimaps(split.pixels)[0], torch.cat(logits), torch.cat(trimaps)
    assert torch.equal(trimaps, split.pixels[..., 3][:, None])
    torch.testing.assert_close(logits, predictor.logits(images))
    target, weight = target_and_weight(trimaps, boundary)
    assert scores.loss == pytest.approx(bce_dice_loss(logits, target, weight).item(), rel=1e-5)
    pred, target = ({*map(tuple, mask.nonzero().tolist())} for mask in ((logits > 0) & weight, target & weight))
    for index, (dice, iou) in enumerate(zip(scores.dice, scores.iou, strict=True)):
        p, t = ({pixel for pixel in pixels if pixel[0] == index} for pixels in (pred, target))
        assert dice == pytest.approx(2 * len(p & t) / (len(p) + len(t)))
        assert iou == pytest.approx(len(p & t) / len(p | t))
    assert np.flatnonzero(scores.empty_target).tolist() == empty
    assert scores.dice.dtype == np.float64


@pytest.mark.parametrize("world", [2, 3, 5])
def test_scores_do_not_depend_on_the_number_of_ranks(split: Split, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    predictor = Predictor.from_model(nn.Conv2d(3, 1, 3, padding=1), Config("UNet"), CPU, torch.float32)
    alone, parts, batches = evaluate(predictor, split, 3, bce_dice_loss), [], []

    def between(of_rank: Iterator[Tensor]) -> Iterator[Tensor]:
        for pixels in of_rank:
            batches.append(len(pixels))
            yield pixels

    def all_sum(part: Tensor) -> Tensor:
        parts.append(part)
        return torch.stack(parts).sum(0)

    monkeypatch.setattr(ranks, "world", lambda: world)
    monkeypatch.setattr(ranks, "all_sum", all_sum)
    for rank in range(world):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        scores = evaluate(predictor, split, 3, bce_dice_loss, between=between)
    assert batches == [3, 3, 1] * world  # also a rank without an image of its own: the others wait for it there
    np.testing.assert_array_equal(scores.empty_target, alone.empty_target)
    np.testing.assert_allclose(scores.dice, alone.dice, rtol=1e-12)
    np.testing.assert_allclose(scores.iou, alone.iou, rtol=1e-12)
    assert scores.loss == pytest.approx(alone.loss, rel=1e-6)
