from dataclasses import replace

import cv2
import imutils
import numpy as np
import pytest
import torch
from torch import Tensor

from augment import BACKGROUND, BOUNDARY, PET, Augmentation, Normalise, affine, draw_epoch, recolour, warp
from recipes import RECIPES

STRONG = Augmentation(
    horizontal_flip=0.5,
    vertical_flip=0.5,
    rotation=30,
    zoom=1.5,
    stretch=1.3,
    shift=0.2,
    brightness=0.2,
    contrast=1.5,
)
GEOMETRY = {"horizontal_flip": 1, "vertical_flip": 1, "rotation": 30, "zoom": 1.5, "stretch": 1.5, "shift": 0.2}


def theta(degrees=0.0, scale_x=1.0, scale_y=1.0, shift_x=0.0, shift_y=0.0) -> Tensor:
    """One sample's warp, (1, 2, 3)."""
    return torch.from_numpy(
        affine(*(np.array([value]) for value in (degrees, scale_x, scale_y, shift_x, shift_y)))
    ).float()


def smooth_picture(side: int, seed: int = 0) -> np.ndarray:
    """(side, side, 3) float32, 40 to 215, without symmetry."""
    noise = np.random.default_rng(seed).random((side, side, 3), np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 40, 215, cv2.NORM_MINMAX)


def drawn_trimap(side: int) -> np.ndarray:
    """(side, side) uint8: an L of pet with a boundary, off the centre, without symmetry."""
    pet = np.zeros((side, side), np.uint8)
    pet[side // 4 : side * 3 // 4, side // 3 : side // 2] = 1
    pet[side // 2 : side * 3 // 4, side // 3 : side * 4 // 5] = 1
    around = cv2.dilate(pet, np.ones((5, 5)))
    return np.where(pet == 1, PET, np.where(around == 1, BOUNDARY, BACKGROUND)).astype(np.uint8)


def warp_arrays(image: np.ndarray, trimap: np.ndarray, theta: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """``warp`` of one sample, given and returned as (H, W, C) and (H, W)."""
    images, trimaps = warp(torch.from_numpy(image).permute(2, 0, 1)[None], torch.from_numpy(trimap)[None, None], theta)
    return images[0].permute(1, 2, 0).numpy(), trimaps[0, 0].numpy()


# ---------------------------------------------------------------------------------------------- the plan of an epoch


def test_plan_depends_on_seed_and_epoch_alone() -> None:
    plan, again = (draw_epoch(STRONG, 50, 8, seed=3, epoch=7) for _ in range(2))
    others = [draw_epoch(STRONG, 50, 8, seed=3, epoch=8), draw_epoch(STRONG, 50, 8, seed=4, epoch=7)]
    for part in ("order", "theta", "colour"):
        assert torch.equal(getattr(plan, part), getattr(again, part))
        assert not any(torch.equal(getattr(plan, part), getattr(other, part)) for other in others)


@pytest.mark.parametrize(("samples", "batch_size", "slots"), [(50, 8, 56), (48, 8, 48), (3, 8, 8), (5, 1, 5)])
def test_plan_has_every_sample_once_then_the_first_again(samples: int, batch_size: int, slots: int) -> None:
    plan = draw_epoch(STRONG, samples, batch_size, seed=0, epoch=1)
    order = plan.order.tolist()
    assert sorted(order[:samples]) == list(range(samples))
    assert len(order) == slots
    assert all(order[slot] == order[slot - samples] for slot in range(samples, slots))
    assert (plan.order.dtype, plan.theta.dtype, plan.colour.dtype) == (torch.int64, torch.float32, torch.float32)
    assert (plan.theta.shape, plan.colour.shape) == ((slots, 2, 3), (slots, 2))


def test_no_augmentation_changes_nothing() -> None:
    plan = draw_epoch(Augmentation(), 5, 2, seed=0, epoch=1)
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(6, 2, 3)
    torch.testing.assert_close(plan.theta, identity, rtol=0, atol=0)
    torch.testing.assert_close(plan.colour, torch.tensor([1.0, 0]).expand(6, 2), rtol=0, atol=0)
    image, trimap = smooth_picture(33), drawn_trimap(33)
    warped, warped_trimap = warp_arrays(image, trimap, plan.theta[:1])
    np.testing.assert_allclose(warped, image, atol=1e-3)
    np.testing.assert_array_equal(warped_trimap, trimap)
    images = torch.from_numpy(image).permute(2, 0, 1)[None]
    torch.testing.assert_close(recolour(images, plan.colour[:1]), images)


def test_strengths_are_spread_over_their_ranges() -> None:
    samples = 4000

    def drawn(**strength: float) -> tuple[np.ndarray, np.ndarray]:
        plan = draw_epoch(Augmentation(**strength), samples, 10, seed=1, epoch=1)
        return plan.theta.double().numpy(), plan.colour.double().numpy()

    def spread(values: np.ndarray, limit: float) -> None:
        """Uniform from -limit to limit."""
        assert np.abs(values).max() <= limit * 1.0001
        np.testing.assert_allclose(np.quantile(values, (0.1, 0.5, 0.9)) / limit, (-0.8, 0, 0.8), atol=0.06)

    mirrored = drawn(horizontal_flip=0.3)[0][:, 0, 0]
    inverted = drawn(vertical_flip=0.7)[0][:, 1, 1]
    assert set(mirrored) == set(inverted) == {-1, 1}
    np.testing.assert_allclose(((mirrored < 0).mean(), (inverted < 0).mean()), (0.3, 0.7), atol=0.03)
    turned = drawn(rotation=15)[0]
    spread(np.degrees(np.arctan2(turned[:, 1, 0], turned[:, 0, 0])), 15)
    zoomed = drawn(zoom=1.5)[0]
    np.testing.assert_allclose(zoomed[:, 0, 0], zoomed[:, 1, 1])
    spread(np.log(zoomed[:, 0, 0]), np.log(1.5))
    stretched = drawn(stretch=1.3)[0]
    np.testing.assert_allclose(np.linalg.det(stretched[:, :, :2]), 1, rtol=1e-5)
    spread(np.log(stretched[:, 1, 1] / stretched[:, 0, 0]), np.log(1.3))
    shifted = drawn(shift=0.1)[0][:, :, 2] / 2  # of the side, which is 2 long in these coordinates
    spread(shifted[:, 0], 0.1)
    spread(shifted[:, 1], 0.1)
    assert abs(np.corrcoef(shifted.T)[0, 1]) < 0.1
    spread(drawn(brightness=0.2)[1][:, 1], 0.2 * 255)
    spread(np.log(drawn(contrast=1.4)[1][:, 0]), np.log(1.4))


# ---------------------------------------------------------------------------------------------- the warp


@pytest.mark.parametrize("side", [64, 63])
@pytest.mark.parametrize("degrees", [-15, 7.5, 14, 90])
def test_rotation_is_that_of_imutils(side: int, degrees: float) -> None:
    image = smooth_picture(side)
    centre = ((side - 1) / 2, (side - 1) / 2)
    warped, _ = warp_arrays(image, drawn_trimap(side), theta(degrees))
    inside = imutils.rotate(np.ones((side, side), np.float32), degrees, center=centre) > 0.999
    difference = np.abs(warped - imutils.rotate(image, degrees, center=centre))
    assert difference[inside].max() < 1  # OpenCV rounds coordinates to 1/32 of a pixel
    assert difference.mean() < 0.5  # the border pixels fade to black in both
    assert inside.mean() > 0.6


@pytest.mark.parametrize("seed", range(4))
def test_whole_warp_is_that_of_opencv(seed: int) -> None:
    """Scale, then rotate counter-clockwise, then shift, about the centre."""
    side, rng = 61, np.random.default_rng(seed)
    degrees, scale_x, scale_y, shift_x, shift_y = rng.uniform((-40, 0.8, 0.8, -0.2, -0.2), (40, 1.4, 1.4, 0.2, 0.2))
    scale_x *= rng.choice((-1, 1))
    forward = cv2.getRotationMatrix2D((0, 0), degrees, 1)[:, :2] @ np.diag((scale_x, scale_y))
    centre = np.full(2, (side - 1) / 2)
    offset = centre - forward @ centre + np.array((shift_x, shift_y)) * side
    matrix = np.column_stack((forward, offset))

    image, trimap = smooth_picture(side), drawn_trimap(side)
    warped, warped_trimap = warp_arrays(image, trimap, theta(degrees, scale_x, scale_y, shift_x, shift_y))
    inside = cv2.warpAffine(np.ones_like(trimap, np.float32), matrix, (side, side)) > 0.999
    difference = np.abs(warped - cv2.warpAffine(image, matrix, (side, side)))
    assert difference[inside].max() < 1.5
    assert inside.mean() > 0.3
    reference = cv2.warpAffine(
        trimap, matrix, (side, side), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=BACKGROUND
    )
    assert (warped_trimap != reference).mean() < 0.02  # pixels whose source lies between two


@pytest.mark.parametrize("side", [32, 33])
@pytest.mark.parametrize(("scale", "axis"), [((-1, 1), 1), ((1, -1), 0), ((-1, -1), (0, 1))])
def test_flips_are_exact(side: int, scale: tuple[int, int], axis: int) -> None:
    image, trimap = smooth_picture(side), drawn_trimap(side)
    warped, warped_trimap = warp_arrays(image, trimap, theta(0, *scale))
    np.testing.assert_allclose(warped, np.flip(image, axis), atol=1e-2)
    np.testing.assert_array_equal(warped_trimap, np.flip(trimap, axis))


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, 5), (-4, 2)])
def test_shifts_by_whole_pixels_are_exact_and_bring_in_black_background(right: int, down: int) -> None:
    side = 40
    image, trimap = smooth_picture(side), drawn_trimap(side)
    trimap[:, :2] = trimap[-2:] = PET  # so that what leaves on one side is seen not to return on the other
    warped, warped_trimap = warp_arrays(image, trimap, theta(0, 1, 1, right / side, down / side))
    matrix = np.array([[1.0, 0, right], [0, 1, down]])
    np.testing.assert_allclose(warped, cv2.warpAffine(image, matrix, (side, side)), atol=1e-2)
    expected = np.full_like(trimap, BACKGROUND)
    rows, columns = (np.arange(side) - shift for shift in (down, right))
    there = np.ix_((rows >= 0) & (rows < side), (columns >= 0) & (columns < side))
    expected[there] = trimap[np.ix_(rows[(rows >= 0) & (rows < side)], columns[(columns >= 0) & (columns < side)])]
    np.testing.assert_array_equal(warped_trimap, expected)


@pytest.mark.parametrize(("scale_x", "scale_y"), [(1.5, 1.5), (0.5, 0.5), (2, 1), (1, 0.7)])
def test_zoom_above_one_grows_the_pet(scale_x: float, scale_y: float) -> None:
    trimap = np.full((80, 80), BACKGROUND, np.uint8)
    trimap[30:50, 25:55] = PET
    _, warped = warp_arrays(smooth_picture(80), trimap, theta(0, scale_x, scale_y))
    rows, columns = np.nonzero(warped == PET)
    assert abs(np.ptp(rows) + 1 - 20 * scale_y) <= 1
    assert abs(np.ptp(columns) + 1 - 30 * scale_x) <= 1


def test_outside_is_black_and_background() -> None:
    image, trimap = np.full((40, 40, 3), 200, np.float32), np.full((40, 40), PET, np.uint8)
    warped, warped_trimap = warp_arrays(image, trimap, theta(45, 0.5, 0.5))
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert warped[corner].tolist() == [0, 0, 0]
        assert warped_trimap[corner] == BACKGROUND
    assert warped[20, 20] == pytest.approx(200)
    assert warped_trimap[20, 20] == PET


@pytest.mark.parametrize("strength", [*({k: v} for k, v in GEOMETRY.items()), GEOMETRY], ids=[*GEOMETRY, "all"])
def test_image_and_trimap_stay_aligned(strength: dict[str, float]) -> None:
    plan = draw_epoch(replace(Augmentation(), **strength), 8, 8, seed=0, epoch=1)
    trimap = drawn_trimap(64)
    trimaps = torch.from_numpy(trimap)[None, None].expand(8, 1, 64, 64)
    values = torch.arange(1, 4).view(1, 3, 1, 1)
    images = (trimaps == values).float()  # a channel for each value of the trimap
    warped, warped_trimaps = warp(images, trimaps, plan.theta)
    assert warped_trimaps.dtype == torch.uint8
    assert sum(not torch.equal(one, trimaps[0]) for one in warped_trimaps) > 4
    certain = (warped > 0.999).any(1, keepdim=True)  # the four source pixels are alike
    assert certain.float().mean() > 0.5
    said = warped.argmax(1, keepdim=True) + 1
    assert torch.equal(said[certain], warped_trimaps[certain].long())
    assert {PET, BACKGROUND, BOUNDARY} == set(warped_trimaps[certain].tolist())


# ---------------------------------------------------------------------------------------------- colour


def test_contrast_is_about_each_pictures_own_mean() -> None:
    images = torch.stack([torch.rand(3, 16, 16) * 60 + 40, torch.rand(3, 16, 16) * 60 + 150])
    before = images.clone()
    after = recolour(images, torch.tensor([[1.4, 0.0], [0.5, 0.0]]))
    assert torch.equal(images, before)
    means = images.mean(dim=(1, 2, 3))
    torch.testing.assert_close(after.mean(dim=(1, 2, 3)), means)
    for picture, coloured, mean, factor in zip(images, after, means, (1.4, 0.5), strict=True):
        torch.testing.assert_close(coloured - mean, (picture - mean) * factor, rtol=1e-4, atol=1e-3)


def test_brightness_is_added_and_values_stay_in_range() -> None:
    images = torch.linspace(0, 255, 3 * 8 * 8).view(1, 3, 8, 8).repeat(3, 1, 1, 1)
    after = recolour(images, torch.tensor([[1.0, 30.0], [1.0, -30.0], [3.0, 0.0]]))
    torch.testing.assert_close(after[0], (images[0] + 30).clamp_max(255))
    torch.testing.assert_close(after[1], (images[1] - 30).clamp_min(0))
    assert (after[2].min(), after[2].max()) == (0, 255)


def test_normalise() -> None:
    mean, std = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
    images = torch.rand(2, 3, 5, 7) * 255
    normalised = Normalise(mean, std)(images)
    expected = (images.numpy() - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1))
    np.testing.assert_allclose(normalised.numpy(), expected, atol=1e-5)
    assert normalised.dtype == torch.float32
    assert normalised.is_contiguous(memory_format=torch.channels_last)


def test_scaled_reaches_from_the_flips_alone_to_all_of_it() -> None:
    full = RECIPES["default"].augmentation
    assert full.scaled(1) == full
    assert full.scaled(0) == Augmentation(horizontal_flip=full.horizontal_flip, vertical_flip=full.vertical_flip)
    half = full.scaled(0.5)
    assert half.rotation == full.rotation / 2
    assert half.zoom**2 == pytest.approx(full.zoom)


def test_the_recipe_reaches_further_from_epoch_to_epoch() -> None:
    recipe = RECIPES["default"]
    rotations = [recipe.augmentation_at(epoch).rotation for epoch in (1, 2, recipe.ramp_epochs, 500)]
    full = recipe.augmentation.rotation
    assert rotations == pytest.approx([full / recipe.ramp_epochs, 2 * full / recipe.ramp_epochs, full, full])
