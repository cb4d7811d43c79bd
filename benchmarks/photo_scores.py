"""Score photos as ``inference.py --input`` cuts them out, at their own size: what each step of it brings, and costs.

python benchmarks/photo_scores.py --data_path dataset/oxford-iiit-pet --checkpoint weights/small.pth
"""

import argparse
import json
import time
from pathlib import Path

from plumbing.cli import ArgumentParser, existing_path, machine, run_script
from plumbing.files import atomic_write

import numpy as np
import torch

from checkpoint import load_checkpoint, provenance
from evaluate import score_at_own_size
from oxford_pet import MODES, find_root, image_path, read_split, trimap_path
from photos import PhotoOptions, clean_mask
from predictor import SMALL_WEIGHTS, Predictor, load_photo
from trimap import BOUNDARIES, decode_trimap, split_boundary

VARIANTS = {  # flips, second look, specks removed
    "one look": (False, False, False),
    "flips": (True, False, False),
    "second look": (False, True, False),
    "flips, second look": (True, True, False),
    "flips, second look, specks removed": (True, True, True),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Score photos as inference.py --input cuts them out.")
    add = parser.add_argument
    add("--checkpoint", type=existing_path, default=SMALL_WEIGHTS, help="whose masks")
    add("--data_path", type=existing_path, required=True, help="a data set of full-size photos")
    add("--split", choices=MODES, default="valid", help="which photos")
    add("--output", type=Path, help="JSON file for the figures")
    return parser.parse_args(argv)


def score(predictor: Predictor, root: Path, names: list[str], is_cleaned: bool) -> dict[str, float]:
    """Mean Dice under each boundary convention, boundary F-score under ``middle``, and milliseconds a photo."""
    options, rows, seconds = PhotoOptions(Path()), [], 0.0
    for name in names:
        image, trimap = load_photo(image_path(root, name)), split_boundary(decode_trimap(trimap_path(root, name)))
        started = time.perf_counter()
        probs = predictor(image)
        mask = clean_mask(probs, options) if is_cleaned else probs > options.threshold
        seconds += time.perf_counter() - started
        scores = {boundary: score_at_own_size(mask, trimap, boundary)[0] for boundary in BOUNDARIES}
        rows.append([*(one["dice_original"] for one in scores.values()), scores["middle"]["boundary_f"]])
    columns = [*(f"dice_{boundary}" for boundary in BOUNDARIES), "boundary_f_middle"]
    return dict(zip(columns, np.mean(rows, axis=0).tolist(), strict=True)) | {"ms": 1000 * seconds / len(names)}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    root, state = find_root(args.data_path), load_checkpoint(args.checkpoint)
    names, table = read_split(root, args.split), {}
    print(f"{len(names)} photos of {root}, {args.split}; {args.checkpoint}")
    for variant, (flips, second, is_cleaned) in VARIANTS.items():
        predictor = Predictor(state, flip_average=flips, second_look=second)
        predictor(np.zeros((64, 64, 3), np.uint8))  # warm up
        table[variant] = score(predictor, root, names, is_cleaned)
        print(f"{variant:36}" + ", ".join(f"{key} {value:.4f}" for key, value in table[variant].items()), flush=True)
    if args.output:
        facts = {"photos": len(names), "machine": machine(torch.device("cpu")), "threads": torch.get_num_threads()}
        with atomic_write(args.output) as file:
            file.write(json.dumps(facts | provenance() | {"variants": table}, indent=1).encode())


if __name__ == "__main__":
    run_script(main)
