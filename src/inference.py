"""Score the test split with a checkpoint and write its masks; or cut the pet out of any photos.

python src/inference.py --model R
python src/inference.py --input photo.jpg
"""

import argparse
import importlib.util
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from plumbing import cli
from plumbing.cli import OUTPUTS, ArgumentParser, choose_device, describe, plural, run_script
from plumbing.files import atomic_write, locked, remove_stale_temp_files
from plumbing.images import decode_image, in_threads

import numpy as np
import torch

from evaluate import ScoringOptions, add_scoring_options, open_checkpoint, parse_scoring_args, score_checkpoint
from photos import (
    PRODUCTS,
    PhotoOptions,
    cut_out_stream,
    encode_png,
    find_photos,
    predict_photos,
    result_path,
    set_pixel_limit,
    write_contact_sheet,
)
from predictor import SMALL_WEIGHTS, Predictor
from report import draw_contact_sheet, gallery_entry, overlay, read_history, read_prediction, thumbnail, write_run_page
from rle import write_rle
from trimap import target_and_weight

LARGE_THUMBNAILS = 60  # of the worst images, 320 pixels; also of a few in the middle and the best; others have 96


def write_prediction(
    output: Path,
    thumbnails: dict[str, Any] | None,
    image_file: Path,
    mask: np.ndarray,
    trimap: np.ndarray,
    boundary: str,
) -> None:
    """Write ``<name>_mask.png``, 0 and 255, and ``<name>_overlay.png``, both at the image's own size.

    Args:
        thumbnails: takes the image's for the page, by its name; None leaves out the overlay too.
        mask, trimap, boundary: as ``score_split`` passes them.
    """
    output.mkdir(parents=True, exist_ok=True)  # here, so that a mistyped name leaves no empty folder
    written = {"mask": mask.astype(np.uint8) * 255}
    if thumbnails is not None:
        image = decode_image(image_file)
        written["overlay"] = overlay(image, mask)
        thumbnails[image_file.stem] = thumbnail(image, trimap, mask, boundary)
    for kind, pixels in written.items():
        with atomic_write(output / f"{image_file.stem}_{kind}.png", sync=False) as file:
            file.write(encode_png(pixels))


def write_ranked_sheet(output: Path, report: dict[str, Any], rows: int = 6) -> Path:
    """Write the best, the middle and the worst predictions, a column each: image, target and prediction in a tile.

    Args:
        report: of ``score_checkpoint``.
    """
    ranked = sorted(report["per_image"], key=lambda row: -row["dice"])
    rows = min(rows, max(1, len(ranked) // 3))
    middle = (len(ranked) - rows) // 2
    columns = {"best": ranked[:rows], "middle": ranked[middle : middle + rows], "worst": ranked[::-1][:rows]}
    tiles = []
    for tier in zip(*columns.values(), strict=True):
        for which, row in zip(columns, tier, strict=True):
            image, trimap, mask = read_prediction(output, Path(report["data_path"]), row["name"])
            target, _ = target_and_weight(torch.from_numpy(trimap), report["boundary"])
            caption = f"{which}: {row['name']}, Dice {row['dice']:.3f}"
            tiles.append((caption, [image, overlay(image, target.numpy()), overlay(image, mask)]))
    path = output / "contact_sheet.png"
    with atomic_write(path) as file:
        file.write(encode_png(draw_contact_sheet(tiles, columns=3, labels=("image", "target", "prediction"))))
    return path


def write_page(output: Path, report: dict[str, Any], thumbnails: dict[str, Any], folder: Path) -> Path:
    """Write ``report.html``: the scores, where they come from, and all images, the worst ones larger.

    Args:
        thumbnails: of all images, by name.
        folder: of the run, where its history is.
    """
    rows, root = report["per_image"], Path(report["data_path"])
    ranked = [row["name"] for row in sorted(rows, key=lambda row: row["dice"])]
    middle = len(ranked) // 2
    worst = dict.fromkeys([*ranked[:LARGE_THUMBNAILS], *ranked[max(0, middle - 6) : middle + 6], *ranked[-6:]])
    predictions = in_threads(partial(read_prediction, output, root), worst)
    large = {name: thumbnail(*one, report["boundary"], 320) for name, one in zip(worst, predictions, strict=True)}
    thumbnails = thumbnails | large
    entries = [gallery_entry(row, [thumbnails[row["name"]]], [row["dice"]]) for row in rows]
    history = read_history(folder / f"{report['name']}_history.csv") or report["trained"]["history"] or []
    return write_run_page(output / "report.html", report, history, entries)


TEST_FLAGS = ("limit", "data_path", "batch_size", "masks_only")
PHOTO_FLAGS = (
    "write",
    "recursive",
    "threshold",
    "largest_only",
    "matting",
    "no_flip_average",
    "no_second_look",
    "overwrite",
)
PHOTO_FLAGS += ("pixel_limit",)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Predict the test images, or any photos, with a checkpoint.")
    add_scoring_options(parser)
    parser.add_argument("--masks_only", action="store_true", help="no overlays and no page, which take longer")
    parser.add_argument(
        "--output",
        type=cli.new_path,
        help=f"folder of the results (default: {OUTPUTS.name}/ and the run's name; of photos, {OUTPUTS.name}/photos)",
    )
    parser.add_argument(
        "--rle",
        type=cli.new_path,
        metavar="FILE.csv",
        help="write all masks run-length encoded too (Kaggle)",
    )
    add = parser.add_argument_group(
        "photos", "cut the pet out of photos of your own; no data set is needed"
    ).add_argument
    add(
        "--input",
        nargs="+",
        type=os.path.expanduser,
        metavar="PHOTO",
        help="files, folders, patterns, or - for standard input and output",
    )
    add("--write", nargs="+", default=["mask,cutout"], help=f"which of {','.join(PRODUCTS)}, with commas between")
    add("--recursive", action="store_true", help="include subfolders")
    add("--threshold", type=cli.fraction, default=0.5, help="a pixel is pet above this probability")
    add("--largest_only", action="store_true", help="keep the largest connected part of the mask only")
    add("--matting", action="store_true", help="cut out with fur and whiskers; slower; needs pymatting")
    add("--no_flip_average", action="store_true", help="do not average with the mirrored photo: faster")
    add("--no_second_look", action="store_true", help="do not predict again, zoomed in on the pet: faster")
    add("--overwrite", action="store_true", help="replace results that are there")
    add("--pixel_limit", type=cli.megapixels, default=89.0, metavar="MEGAPIXELS", help="refuse larger photos")
    args = parse_scoring_args(parser, argv)
    for flag in TEST_FLAGS if args.input else PHOTO_FLAGS:
        if getattr(args, flag) != parser.get_default(flag):
            parser.error(f"--{flag} works only {'without' if args.input else 'with'} --input")
    args.write = tuple(dict.fromkeys(",".join(args.write).split(",")))  # PowerShell splits at commas
    if not set(args.write) <= set(PRODUCTS):
        parser.error(f"--write takes {', '.join(PRODUCTS)}, with commas between")
    if args.matting and not importlib.util.find_spec("pymatting"):
        parser.error("--matting needs pymatting: pip install pymatting")
    if "-" in (args.input or []) and (len(args.input) > 1 or args.rle):
        parser.error("--input - takes one photo, and no other inputs or outputs")
    if args.rle and "mask" not in args.write:
        parser.error("--rle needs the masks: add mask to --write")
    return args


def cut_out_photos(
    inputs: list[str], path: Path, predictor: Predictor, options: PhotoOptions, rle: Path | None
) -> None:
    """Cut the pet out of photos.

    Args:
        inputs: of ``--input``.
        path: the checkpoint's file.
        rle: CSV file for all masks; not written if a photo fails.
    """
    is_stream = inputs == ["-"]
    photos = [] if is_stream else find_photos(inputs, options)
    side = predictor.config.image_size
    print(
        f"{predictor.config.network} of {path} at {side}x{side}, on {describe(predictor.device, predictor.precision)}",
        file=sys.stderr if is_stream else sys.stdout,
        flush=True,
    )
    if is_stream:
        cut_out_stream(predictor, options)
        return
    with locked(options.output / ".lock", wait=True):
        for folder in {result_path(photo, "mask", options).parent for photo in photos}:
            remove_stale_temp_files(folder, *(f"*_{product}.png" for product in PRODUCTS))
        errors = predict_photos(predictor, photos, options)
        if len(photos) > 1 and "cutout" in options.write:
            write_contact_sheet(photos, options)
        if rle and not errors:
            write_rle(rle, {photo.target.as_posix(): result_path(photo, "mask", options) for photo in photos})
    if errors:
        sys.exit(1)


def predict_test_split(
    path: Path, state: dict[str, Any], device: torch.device, options: ScoringOptions, output: Path, masks_only: bool
) -> list[str]:
    """Score the test split, as ``score_checkpoint``, and write its masks, overlays, contact sheet and page.

    Returns:
        The images' names.
    """
    started = time.monotonic()
    thumbnails: dict[str, Any] | None = None if masks_only else {}
    with locked(output.parent / f".{output.name}.lock"):
        remove_stale_temp_files(output, "*_mask.png", "*_overlay.png", "contact_sheet.png", "report.html")
        write = partial(write_prediction, output, thumbnails)
        report = score_checkpoint(path, state, "test", device, options, write)
        sheet = write_ranked_sheet(output, report)
        what = "masks" if masks_only else "masks and overlays"
        seconds = time.monotonic() - started
        print(f"wrote {report['images']} {what} to {output} in {seconds:.1f} s; the contact sheet is {sheet}")
        if thumbnails:
            started = time.monotonic()
            page = write_page(output, report, thumbnails, path.parent)
            print(f"wrote the page {page} ({page.stat().st_size / 1e6:.1f} MB) in {time.monotonic() - started:.1f} s")
    names = [row["name"] for row in report["per_image"]]
    stale = [path.name for path in output.glob("*_mask.png") if path.name.removesuffix("_mask.png") not in names]
    if stale:
        print(f"note: {output} still holds {plural(len(stale), 'mask')} of other images, {min(stale)} first")
    return names


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    path = args.checkpoint or cli.shown(SMALL_WEIGHTS)
    state, device = open_checkpoint(path, args.model, args.recipe), choose_device(args.device, args.threads)
    if args.input:
        set_pixel_limit(args.pixel_limit)
        output = args.output or cli.shown(OUTPUTS / "photos")
        options = PhotoOptions(
            output, args.write, args.threshold, args.largest_only, args.matting, args.overwrite, args.recursive
        )
        flips, second_look = not args.no_flip_average, not args.no_second_look
        predictor = Predictor(state, device, flips, args.image_size, second_look=second_look)
        cut_out_photos(args.input, path, predictor, options, args.rle)
        return
    options = ScoringOptions(
        args.name, args.which, args.data_path, args.image_size, args.limit, args.batch_size, args.flip_average
    )
    output = args.output or cli.shown(OUTPUTS / args.name)
    names = predict_test_split(path, state, device, options, output, args.masks_only)
    if args.rle:
        write_rle(args.rle, {name: output / f"{name}_mask.png" for name in names})


if __name__ == "__main__":
    run_script(main)
