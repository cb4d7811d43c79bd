"""Draw the picture that README opens with: evenly spaced test pets of `make demo`, not chosen ones.

python benchmarks/readme_picture.py
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "src"))

from options import OUTPUTS, SAVED_MODELS, UserError, run_script  # noqa: E402
from oxford_pet import decode_image, decode_trimap, evenly_spaced, image_path, read_split, trimap_path  # noqa: E402
from report import draw_contact_sheet, overlay  # noqa: E402


def main() -> None:
    root, masks = REPO / "dataset" / "drawn-pets", OUTPUTS / "demo"
    scores = SAVED_MODELS / "demo" / "demo_test_scores.json"
    if not scores.is_file():
        raise UserError(f"{scores} is not there: `make demo` makes it")
    dice = {row["name"]: row["dice"] for row in json.loads(scores.read_text())["per_image"]}
    tiles = []
    for name in evenly_spaced(read_split(root, "test"), 9):
        image, truth = decode_image(image_path(root, name)), decode_trimap(trimap_path(root, name)) != 2
        with Image.open(masks / f"{name}_mask.png") as mask:
            prediction = np.asarray(mask) > 0
        tiles.append((f"{name}, Dice {dice[name]:.3f}", [image, overlay(image, truth), overlay(image, prediction)]))
    path = REPO / "benchmarks" / "results" / "drawn-pets.png"
    Image.fromarray(draw_contact_sheet(tiles, columns=3, side=128)).save(path, optimize=True)
    print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main)
