"""Score the test split with a checkpoint: print the test Dice, write masks, overlays and a contact sheet.

python src/inference.py --model R
"""

import cli

if __name__ == "__main__":
    cli.start()

import argparse
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from cli import OUTPUTS, ArgumentParser, run_script
from evaluate import Scores, add_scoring_options, parse_scoring_args, score_checkpoint
from images import decode_image
from oxford_pet import Split, image_path, trimap_path
from predictor import resize_logits
from report import draw_contact_sheet, overlay
from trimap import decode_trimap, target_and_weight


def write_prediction(output: Path, overlays: bool, name: str, image_file: Path, logits: np.ndarray) -> None:
    """Write ``<name>_mask.png``, 0 and 255, and ``<name>_overlay.png``, both at the image's own size.

    Args:
        overlays: whether to write those too.
        logits: (S, S) float32.
    """
    if overlays:
        image = decode_image(image_file)
        height, width = image.shape[:2]
    else:
        with Image.open(image_file) as header:
            width, height = header.size
    mask = resize_logits(logits, height, width) > 0
    output.mkdir(parents=True, exist_ok=True)  # here, so that a mistyped name leaves no empty folder
    Image.fromarray(mask.astype(np.uint8) * 255).save(output / f"{name}_mask.png", compress_level=3)
    if not overlays:
        return
    drawn = cv2.cvtColor(overlay(image, mask), cv2.COLOR_RGB2BGR)
    (output / f"{name}_overlay.png").write_bytes(cv2.imencode(".png", drawn, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])


def write_contact_sheet(output: Path, scores: Scores, split: Split, rows: int = 6) -> Path:
    """Write the best, the middle and the worst predictions, a column each: image, target and prediction in a tile."""
    ranked = np.argsort(-scores.dice, kind="stable")
    rows = min(rows, max(1, len(ranked) // 3))
    middle = (len(ranked) - rows) // 2
    columns = {"best": ranked[:rows], "middle": ranked[middle : middle + rows], "worst": ranked[::-1][:rows]}
    tiles = []
    for row in range(rows):
        for which, indices in columns.items():
            index = indices[row]
            name = scores.names[index]
            image = decode_image(image_path(split.root, name))
            trimap = torch.from_numpy(decode_trimap(trimap_path(split.root, name)))
            target = overlay(image, target_and_weight(trimap, scores.boundary)[0].numpy())
            with Image.open(output / f"{name}_mask.png") as mask:
                prediction = overlay(image, np.asarray(mask) > 0)
            tiles.append((f"{which}: {name}, Dice {scores.dice[index]:.3f}", [image, target, prediction]))
    path = output / "contact_sheet.png"
    Image.fromarray(draw_contact_sheet(tiles, columns=3)).save(path)
    return path


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Predict the test images with a checkpoint.")
    add_scoring_options(parser)
    parser.add_argument("--masks_only", action="store_true", help="no overlays, which take longer to write than masks")
    parser.add_argument(
        "--output", type=Path, help=f"folder of the masks and overlays (default: {OUTPUTS.name}/ and the run's name)"
    )
    return parse_scoring_args(parser, argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    output = args.output or OUTPUTS / args.name
    started = time.monotonic()
    scores, split = score_checkpoint(args, "test", partial(write_prediction, output, not args.masks_only))
    sheet = write_contact_sheet(output, scores, split)
    what = "masks" if args.masks_only else "masks and overlays"
    print(f"wrote {len(split)} {what} to {output} in {time.monotonic() - started:.1f} s; the contact sheet is {sheet}")


if __name__ == "__main__":
    run_script(main)
