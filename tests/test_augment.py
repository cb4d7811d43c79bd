"""The plan of an epoch, and the warp against OpenCV and imutils."""

from dataclasses import replace

import cv2
import imutils
import numpy as np
import pytest
import torch
from torch import Tensor

from augment import Augmentation, Normalise, affine, draw_epoch, recolour, warp
from recipes import Config
from trimap import BACKGROUND, BOUNDARY, PET

GEOMETRY = {"horizontal_flip": 0.5, "vertical_flip": 0.5, "rotation": 30, "zoom": 1.5, "stretch": 1.5, "shift": 0.2}
STRONG = Augmentation(**GEOMETRY, brightness=0.2, contrast=1.5)


def theta(degrees=0.0, scale_x=1.0, scale_y=1.0, shift_x=0.0, shift_y=0.0) -> Tensor:
    """One sample's warp, (1, 2, 3)."""
    values = (degrees, scale_x, scale_y, shift_x, shift_y)
    return torch.from_numpy(affine(*(np.array([value]) for value in values))).float()


def smooth_image(side: int) -> np.ndarray:
    """(side, side, 3) float32, 40 to 215, without symmetry."""
    noise = np.random.default_rng(0).random((side, side, 3), np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 40, 215, cv2.NORM_MINMAX)


def drawn_trimap(side: int) -> np.ndarray:
    """(side, side) uint8: an L of pet with a boundary, off the centre, without symmetry."""
    pet = np.zeros((side, side), np.uint8)
    pet[side // 4 : side * 3 // 4, side // 3 : side // 2] = 1
    pet[side // 2 : side * 3 // 4, side // 3 : side * 4 // 5] = 1
    around = cv2.dilate(pet, np.ones((5, 5)))
    return np.where(pet == 1, PET, np.where(around == 1, BOUNDARY, BACKGROUND)).astype(np.uint8)


def warp_arrays(
    image: np.ndarray, trimap: np.ndarray, theta: Tensor, side: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """``warp`` of one sample, given and returned as (H, W, C) and (H, W)."""
    sample = torch.from_numpy(image).permute(2, 0, 1)[None], torch.from_numpy(trimap)[None, None]
    images, trimaps = warp(*sample, theta, side)
    return images[0].permute(1, 2, 0).numpy(), trimaps[0, 0].numpy()


# ---------------------------------------------------------------------------------------------- the plan of an epoch


def test_plan_depends_on_seed_and_epoch_alone() -> None:
    plan, again = (draw_epoch(STRONG, 50, 8, seed=3, epoch=7) for _ in range(2))
    others = [draw_epoch(STRONG, 50, 8, seed, epoch) for seed, epoch in ((3, 8), (4, 7), (4, 6), (7, 3))]
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


def test_no_augmentation_is_the_identity() -> None:
    plan = draw_epoch(Augmentation(), 5, 2, seed=0, epoch=1)
    assert torch.equal(plan.theta, torch.eye(2, 3).expand(6, 2, 3))
    assert torch.equal(plan.colour, torch.tensor([1.0, 0]).expand(6, 2))


def test_strengths_are_spread_over_their_ranges() -> None:
    def drawn(**strength: float) -> tuple[np.ndarray, np.ndarray]:
        plan = draw_epoch(Augmentation(**strength), 4000, 10, seed=1, epoch=1)
        return plan.theta.double().numpy(), plan.colour.double().numpy()

    def degrees(theta: np.ndarray) -> np.ndarray:
        return np.degrees(np.arctan2(theta[:, 1, 0], theta[:, 0, 0]))

    def assert_uniform(values: np.ndarray, limit: float) -> None:
        """From -limit to limit."""
        assert np.abs(values).max() <= limit * 1.0001
        np.testing.assert_allclose(np.quantile(values, (0.1, 0.5, 0.9)) / limit, (-0.8, 0, 0.8), atol=0.06)

    mirrored = drawn(horizontal_flip=0.3)[0][:, 0, 0]
    inverted = drawn(vertical_flip=0.7)[0][:, 1, 1]
    assert set(mirrored) == set(inverted) == {-1, 1}
    np.testing.assert_allclose(((mirrored < 0).mean(), (inverted < 0).mean()), (0.3, 0.7), atol=0.03)
    assert_uniform(degrees(drawn(rotation=15)[0]), 15)
    whole = degrees(drawn(rotation=15, integer_degrees=True)[0])
    np.testing.assert_allclose(whole, whole.round(), atol=1e-4)
    assert np.unique(whole.round()).tolist() == list(range(-15, 15))
    zoomed = drawn(zoom=1.5)[0]
    np.testing.assert_allclose(zoomed[:, 0, 0], zoomed[:, 1, 1])
    assert_uniform(np.log(zoomed[:, 0, 0]), np.log(1.5))
    stretched = drawn(stretch=1.3)[0]
    np.testing.assert_allclose(np.linalg.det(stretched[:, :, :2]), 1, rtol=1e-5)
    assert_uniform(np.log(stretched[:, 1, 1] / stretched[:, 0, 0]), np.log(1.3))
    right, down = drawn(shift=0.1)[0][:, :, 2].T / 2  # fractions of the side, which is 2 long in these coordinates
    assert_uniform(right, 0.1)
    assert_uniform(down, 0.1)
    assert abs(np.corrcoef(right, down)[0, 1]) < 0.1
    assert_uniform(drawn(brightness=0.2)[1][:, 1], 0.2 * 255)
    assert_uniform(np.log(drawn(contrast=1.4)[1][:, 0]), np.log(1.4))


def test_augmentation_grows_to_its_full_strength() -> None:
    config = Config("UNet", augmentation=STRONG, ramp_epochs=4)
    half = config.augmentation_at(2)
    assert (half.rotation, half.shift, half.brightness) == (15, 0.1, 0.1)
    assert (half.zoom**2, half.stretch**2, half.contrast**2) == pytest.approx((1.5, 1.5, 1.5))
    assert config.augmentation_at(4) == config.augmentation_at(500) == STRONG
    assert STRONG.scaled(0) == Augmentation(horizontal_flip=0.5, vertical_flip=0.5)  # the flips stay


# ---------------------------------------------------------------------------------------------- the warp


@pytest.mark.parametrize("side", [64, 63])
@pytest.mark.parametrize("degrees", [-15, 14, 90])
def test_rotation_is_that_of_imutils(side: int, degrees: float) -> None:
    image, centre = smooth_image(side), ((side - 1) / 2, (side - 1) / 2)
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
    degrees, scale_x, scale_y, shift_x, shift_y = rng.uniform((-40, 0.7, 0.7, -0.2, -0.2), (40, 1.4, 1.4, 0.2, 0.2))
    scale_x *= rng.choice((-1, 1))
    forward = cv2.getRotationMatrix2D((0, 0), degrees, 1)[:, :2] @ np.diag((scale_x, scale_y))
    centre = np.full(2, (side - 1) / 2)
    offset = centre - forward @ centre + np.array((shift_x, shift_y)) * side
    matrix = np.column_stack((forward, offset))

    image, trimap = smooth_image(side), drawn_trimap(side)
    warped, warped_trimap = warp_arrays(image, trimap, theta(degrees, scale_x, scale_y, shift_x, shift_y))
    inside = cv2.warpAffine(np.ones_like(trimap, np.float32), matrix, (side, side)) > 0.999
    difference = np.abs(warped - cv2.warpAffine(image, matrix, (side, side)))
    assert difference[inside].max() < 1.5
    assert inside.mean() > 0.3
    reference = cv2.warpAffine(trimap, matrix, (side, side), flags=cv2.INTER_NEAREST, borderValue=BACKGROUND)
    assert (warped_trimap != reference).mean() < 0.02  # pixels whose source lies between two


@pytest.mark.parametrize("side", [32, 33])
@pytest.mark.parametrize(("scale", "axis"), [((1, 1), ()), ((-1, 1), 1), ((1, -1), 0), ((-1, -1), (0, 1))])
def test_identity_and_flips_are_exact(side: int, scale: tuple[int, int], axis: int | tuple[int, ...]) -> None:
    image, trimap = smooth_image(side), drawn_trimap(side)
    warped, warped_trimap = warp_arrays(image, trimap, theta(0, *scale))
    np.testing.assert_allclose(warped, np.flip(image, axis), atol=1e-2)
    np.testing.assert_array_equal(warped_trimap, np.flip(trimap, axis))


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, 5), (-4, 2)])
def test_shifts_by_whole_pixels_are_exact_and_bring_in_black_background(right: int, down: int) -> None:
    side = 40
    image, trimap = smooth_image(side), drawn_trimap(side)
    trimap[:, :2] = trimap[-2:] = PET  # what leaves on one side must not return on the other
    warped, warped_trimap = warp_arrays(image, trimap, theta(0, 1, 1, right / side, down / side))
    for before, after, outside, tolerance in ((image, warped, 0, 1e-2), (trimap, warped_trimap, BACKGROUND, 0)):
        margins = [(8, 8), (8, 8), (0, 0)][: before.ndim]
        padded = np.pad(before, margins, constant_values=outside)
        expected = padded[8 - down : 8 - down + side, 8 - right : 8 - right + side]
        np.testing.assert_allclose(after, expected, atol=tolerance)


@pytest.mark.parametrize("side", [32, 16])
def test_smaller_side_is_a_resize(side: int) -> None:
    image, trimap = smooth_image(64), drawn_trimap(64)
    warped, warped_trimap = warp_arrays(image, trimap, theta(), side)
    np.testing.assert_allclose(warped, cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR), atol=1e-2)
    assert warped_trimap.shape == (side, side)
    step = 64 // side
    sources = [trimap[y::step, x::step] for y in (step // 2 - 1, step // 2) for x in (step // 2 - 1, step // 2)]
    assert (warped_trimap == sources).any(0).all()  # one of the four pixels in the middle of its square


@pytest.mark.parametrize("strength", [*({k: v} for k, v in GEOMETRY.items()), GEOMETRY], ids=[*GEOMETRY, "all"])
def test_image_and_trimap_stay_aligned(strength: dict[str, float]) -> None:
    plan = draw_epoch(replace(Augmentation(), **strength), 8, 8, seed=0, epoch=1)
    trimaps = torch.from_numpy(drawn_trimap(64)).expand(8, 1, 64, 64)
    images = (trimaps == torch.arange(1, 4).view(1, 3, 1, 1)).float()  # a channel for each value of the trimap
    warped, warped_trimaps = warp(images, trimaps, plan.theta)
    assert warped_trimaps.dtype == torch.uint8
    assert any(not torch.equal(trimap, trimaps[0]) for trimap in warped_trimaps)
    certain = (warped > 0.999).any(1, keepdim=True)  # the four source pixels are alike
    assert certain.float().mean() > 0.5
    assert torch.equal((warped.argmax(1, keepdim=True) + 1)[certain], warped_trimaps[certain].long())
    assert {PET, BACKGROUND, BOUNDARY} == set(warped_trimaps[certain].tolist())


# ---------------------------------------------------------------------------------------------- colour


def test_contrast_is_about_each_images_own_mean_then_brightness_is_added() -> None:
    images = torch.stack([torch.rand(3, 16, 16) * high for high in (60, 255, 150, 255, 255)])
    colour = torch.tensor([[1.0, 0.0], [1.0, 30.0], [1.4, -30.0], [0.5, 0.0], [3.0, 0.0]])
    before = images.clone()
    recoloured = recolour(images, colour)
    assert torch.equal(images, before)
    for image, found, (factor, offset) in zip(images.numpy(), recoloured.numpy(), colour.numpy(), strict=True):
        expected = (image - image.mean()) * factor + image.mean() + offset
        np.testing.assert_allclose(found, expected.clip(0, 255), rtol=1e-4, atol=1e-3)


def test_normalise() -> None:
    mean, std = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
    images = torch.rand(2, 3, 5, 7) * 255
    normalised = Normalise(mean, std)(images)
    expected = (images.numpy() - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1))
    np.testing.assert_allclose(normalised.numpy(), expected, atol=1e-5)
    assert normalised.dtype == torch.float32
    assert normalised.is_contiguous(memory_format=torch.channels_last)
