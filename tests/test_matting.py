"""matting.py: a soft alpha with the pet's own colours, at the photo's size."""

import sys

import numpy as np
import pytest

import inference
import matting


@pytest.mark.parametrize("solved", [2**18, 60 * 60])
def test_alpha_and_colours_of_a_blend_are_found_again(solved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grey disc with a soft edge on green, also when alpha is solved smaller and enlarged."""
    monkeypatch.setattr(matting, "SOLVED", solved)
    rows, columns = np.indices((160, 200))
    alpha = np.clip((60 - np.hypot(rows - 80, columns - 100)) / 8 + 0.5, 0, 1)  # 8 pixels from 0 to 1
    colour, background = np.array([200, 190, 180]), np.array([20, 160, 40])
    image = (alpha[..., None] * colour + (1 - alpha[..., None]) * background).round().astype(np.uint8)
    rgba = np.dstack((image, np.full(alpha.shape, 255, np.uint8)))
    cutout = matting.matte(rgba, alpha.astype(np.float32), alpha > 0.5)
    assert np.abs(cutout[..., 3] / 255 - alpha).max() < 0.15
    edge = (alpha > 0.3) & (alpha < 0.7)
    assert np.abs(cutout[edge][:, :3].astype(int) - colour).mean() < 12  # not greenish, as the photo is there
    assert not cutout[cutout[..., 3] == 0].any()


def test_no_pet_and_nothing_but_pet() -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (40, 50, 4), np.uint8)
    assert not matting.matte(rgba, np.zeros((40, 50), np.float32), np.zeros((40, 50), bool)).any()
    cutout = matting.matte(rgba, np.ones((40, 50), np.float32), np.ones((40, 50), bool))
    np.testing.assert_array_equal(cutout[..., 3], rgba[..., 3])


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(inference.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        inference.main(["--input", sys.executable, "--matting"])
    assert "--matting needs pymatting: pip install pymatting" in capsys.readouterr().err
