"""Draw the picture that README opens with: evenly spaced test images of `make demo`, their masks and cut-outs.

python benchmarks/readme_picture.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import json

from plumbing.cli import OUTPUTS, REPO, SAVED_MODELS, ArgumentParser, UserError, existing_path, run_script
from plumbing.images import decode_image

import numpy as np
from PIL import Image

from oxford_pet import evenly_spaced, find_root, image_path, read_split
from photos import cut_out
from report import draw_contact_sheet


def on_squares(rgba: np.ndarray, side: int = 12) -> np.ndarray:
    """A transparent image, (H, W, 4) uint8, on grey and white squares of ``side`` pixels; (H, W, 3) uint8."""
    rows, columns = np.indices(rgba.shape[:2]) // side
    squares = np.where((rows + columns) % 2, 255, 205)[..., None]
    alpha = rgba[..., 3:] / 255
    return (rgba[..., :3] * alpha + squares * (1 - alpha)).round().astype(np.uint8)


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Draw the picture that README opens with, from a run's predictions.")
    drawn = REPO / "dataset" / "drawn-pets"
    output = REPO / "benchmarks" / "results" / "drawn-pets.png"
    parser.add_argument("--name", default="demo", help="of the run, scored by inference.py")
    parser.add_argument("--data_path", type=existing_path, default=drawn, help="the data that the run was scored on")
    parser.add_argument("--output", type=Path, default=output, help="the PNG")
    args = parser.parse_args(argv)
    scores = SAVED_MODELS / args.name / f"{args.name}_test_scores.json"
    if not scores.is_file():
        raise UserError(f"{scores} is not there; `make demo` writes it")
    report, root = json.loads(scores.read_text()), find_root(args.data_path)
    dice = {row["name"]: row["dice"] for row in report["per_image"]}
    tiles = []
    for name in evenly_spaced(read_split(root, "test"), 9):
        image = decode_image(image_path(root, name))
        with Image.open(OUTPUTS / args.name / f"{name}_mask.png") as file:
            mask = np.asarray(file)
        cutout = cut_out(np.dstack((image, np.full_like(mask, 255))), mask > 0)
        tiles.append((f"{name}, Dice {dice[name]:.3f}", [image, np.dstack([mask] * 3), on_squares(cutout)]))
    Image.fromarray(draw_contact_sheet(tiles, columns=3, side=128)).save(args.output, optimize=True)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_script(main)
