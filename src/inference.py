"""Predict every test picture: print the test Dice, write masks, overlays and a contact sheet.

python src/inference.py --model R
"""

import argparse
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from evaluate import Scores, add_scoring_options, parse_scoring_args, resize_logits, score_checkpoint
from losses import truth_and_weight
from options import OUTPUTS, ArgumentParser, run_script
from oxford_pet import Split, decode_image, decode_trimap, image_path, trimap_path
from report import draw_contact_sheet, overlay


def write_prediction(output: Path, overlays: bool, name: str, picture: Path, logits: np.ndarray) -> None:
    """Write ``<name>_mask.png``, 0 and 255, and ``<name>_overlay.png``, both at the picture's own size.

    Args:
        overlays: whether to write those too.
        picture: its file.
        logits: (S, S) float32.
    """
    if overlays:
        image = decode_image(picture)
        height, width = image.shape[:2]
    else:
        with Image.open(picture) as header:
            width, height = header.size
    mask = resize_logits(logits, height, width) > 0
    output.mkdir(parents=True, exist_ok=True)  # here, so that a mistyped name leaves no empty folder
    Image.fromarray(mask.astype(np.uint8) * 255).save(output / f"{name}_mask.png", compress_level=3)
    if not overlays:
        return
    laid = cv2.cvtColor(overlay(image, mask), cv2.COLOR_RGB2BGR)
    (output / f"{name}_overlay.png").write_bytes(cv2.imencode(".png", laid, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])


def write_contact_sheet(output: Path, scores: Scores, split: Split, rows: int = 6) -> Path:
    """Write the best, the middle and the worst predictions, a column each: picture, truth and prediction in a tile."""
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
            truth = overlay(image, truth_and_weight(trimap, scores.boundary)[0].numpy())
            with Image.open(output / f"{name}_mask.png") as mask:
                prediction = overlay(image, np.asarray(mask) > 0)
            tiles.append((f"{which}: {name}, Dice {scores.dice[index]:.3f}", [image, truth, prediction]))
    sheet = draw_contact_sheet(tiles, columns=3)
    path = output / "contact_sheet.png"
    Image.fromarray(sheet).save(path)
    return path


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Predict the test pictures with a checkpoint.")
    add_scoring_options(parser)
    parser.add_argument("--masks_only", action="store_true", help="no overlays, which take longer to write than masks")
    parser.add_argument(
        "--output", type=Path, help=f"folder of the pictures (default: {OUTPUTS.name}/ and the run's name)"
    )
    return parse_scoring_args(parser, argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    output = args.output or OUTPUTS / args.name
    started = time.monotonic()
    scores, split = score_checkpoint(args, "test", partial(write_prediction, output, not args.masks_only))
    sheet = write_contact_sheet(output, scores, split)
    what = "masks" if args.masks_only else "masks and overlays"
    print(f"wrote {len(split)} {what} to {output} in {time.monotonic() - started:.1f} s\nlook at {sheet}")


if __name__ == "__main__":
    run_script(main)
