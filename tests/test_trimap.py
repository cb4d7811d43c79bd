from pathlib import Path

from plumbing.cli import UserError

import numpy as np
import pytest
import torch
from PIL import Image

from trimap import decode_trimap, resize_trimap, split_boundary, target_and_weight, without_split


@pytest.mark.parametrize(
    ("boundary", "target", "weight"),
    [
        ("pet", [1, 0, 1, 1], [1, 1, 1, 1]),
        ("background", [1, 0, 0, 0], [1, 1, 1, 1]),
        ("ignore", [1, 0, None, None], [1, 1, 0, 0]),
        ("middle", [1, 0, 0, 1], [1, 1, 1, 1]),
    ],
)
def test_what_a_boundary_counts_as(boundary: str, target: list, weight: list) -> None:
    got_target, got_weight = target_and_weight(torch.tensor([1, 2, 3, 4], dtype=torch.uint8).view(1, 1, 1, 4), boundary)
    assert (got_target.shape, got_weight.shape) == ((1, 1, 1, 4), (1, 1, 1, 4))
    assert got_target.dtype == got_weight.dtype == torch.bool
    assert got_weight.flatten().tolist() == weight
    assert all(got == want for got, want in zip(got_target.flatten().tolist(), target, strict=True) if want is not None)


def test_a_band_pixel_goes_to_the_nearer_side() -> None:
    """Against the distance to each pixel of either side, on random blobs."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        trimap = np.kron(rng.integers(1, 4, (6, 5)), np.ones((4, 4))).astype(np.uint8)
        pixels = np.argwhere(trimap)  # all of them
        to_pet, to_background = (
            np.linalg.norm(pixels[:, None] - np.argwhere(trimap == value)[None], axis=2).min(1) for value in (1, 2)
        )
        nearer = (to_pet <= to_background + 1e-4).reshape(trimap.shape)
        np.testing.assert_array_equal(split_boundary(trimap), np.where((trimap == 3) & nearer, 4, trimap))
        np.testing.assert_array_equal(without_split(split_boundary(trimap)), trimap)


@pytest.mark.parametrize(
    ("trimap", "split"),
    [
        ([1, 3, 3, 3, 3, 2], [1, 4, 4, 3, 3, 2]),
        ([1, 3, 3, 3, 2, 2], [1, 4, 4, 3, 2, 2]),  # a tie counts as pet
        ([1, 3, 1, 1, 3, 1], [1, 4, 1, 1, 4, 1]),  # no background
        ([2, 3, 3, 3, 3, 2], [2, 3, 3, 3, 3, 2]),  # no pet
        ([3, 3, 3, 3, 3, 3], [3, 3, 3, 3, 3, 3]),  # neither
        ([2, 3, 2, 2, 2, 1], [2, 3, 2, 2, 2, 1]),  # a band that touches background alone
        ([2, 1, 1, 1, 3, 1], [2, 1, 1, 1, 4, 1]),  # a band that touches pet alone
        ([1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2]),  # no band
    ],
)
def test_bands_that_have_no_middle(trimap: list[int], split: list[int]) -> None:
    assert split_boundary(np.array([trimap], np.uint8)).tolist() == [split]


@pytest.mark.parametrize("kind", ["8-bit", "16-bit", "palette"])
def test_trimap_is_read_by_value(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "trimap.png"
    trimap = np.random.default_rng(0).integers(1, 4, (13, 17), dtype=np.uint8)
    image = Image.fromarray(trimap.astype(np.uint16) if kind == "16-bit" else trimap)
    if kind == "palette":
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    image.save(path)
    decoded = decode_trimap(path)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, trimap)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.array([[0, 255], [255, 0]], np.uint8), "the values 0, 255"),
        (np.array([[1, 2], [3, 4]], np.uint8), "the values 1, 2, 3, 4"),
        (np.full((2, 2, 3), 2, np.uint8), "3 channels of the values 2"),
        (np.array([[257, 258], [258, 259]], np.uint16), "the values 257, 258, 259"),
    ],
    ids=["mask of 0 and 255", "a fourth value", "RGB", "16 bit"],
)
def test_other_values_are_refused_and_named(tmp_path: Path, pixels: np.ndarray, said: str) -> None:
    path = tmp_path / "pet_1.png"
    Image.fromarray(pixels).save(path)
    with pytest.raises(UserError, match=rf"pet_1\.png is not a trimap of 1 \(pet\).*{said}"):
        decode_trimap(path)


@pytest.mark.parametrize(("height", "width"), [(47, 65), (63, 51), (21, 25)])
def test_resizing_takes_the_nearest_pixel_by_centres(height: int, width: int) -> None:
    """From odd sizes no centre falls between two pixels."""
    trimap = np.random.default_rng(0).integers(1, 4, (height, width), dtype=np.uint8)
    for side in (24, 31):
        centres = [((np.arange(side) + 0.5) * full / side).astype(int) for full in (height, width)]
        np.testing.assert_array_equal(resize_trimap(trimap, side, side), trimap[np.ix_(*centres)])
