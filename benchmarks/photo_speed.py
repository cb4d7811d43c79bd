"""Time what a photo costs: decoding, network, cut-out and PNG, one after the other, and all of inference.py --input.

python benchmarks/photo_speed.py --input photos/
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import statistics
import tempfile
import time

from plumbing.cli import (
    ArgumentParser,
    run_script,
)
from plumbing.images import decode_photo, read_bytes

import torch

from photos import PhotoOptions, clean_mask, cut_out, encode_png, find_photos, predict_photos
from predictor import SMALL_WEIGHTS, Predictor
from record import RESULTS, origin, write_json


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Time what a photo costs.")
    parser.add_argument("--input", nargs="+", required=True, help="photos, folders")
    parser.add_argument("--model", type=Path, default=SMALL_WEIGHTS, help="a checkpoint")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args(argv)
    predictor = Predictor(args.model)
    with tempfile.TemporaryDirectory() as folder:
        options = PhotoOptions(Path(folder), overwrite=True)
        photos = find_photos(args.input, options)
        milliseconds: dict[str, list[float]] = {"decode": [], "network": [], "cut out": [], "PNG": []}
        megapixels = []
        for photo in photos:
            marks = [time.perf_counter()]
            rgba = decode_photo(read_bytes(photo.file), photo.file)
            marks.append(time.perf_counter())
            probs = predictor(rgba[..., :3])
            marks.append(time.perf_counter())
            mask = clean_mask(probs, options)
            cutout = cut_out(rgba, mask)
            marks.append(time.perf_counter())
            encode_png(cutout), encode_png(mask.astype("uint8") * 255)
            marks.append(time.perf_counter())
            megapixels.append(mask.size / 1e6)
            for part, start, end in zip(milliseconds, marks[:-1], marks[1:], strict=True):
                milliseconds[part].append(1000 * (end - start))
        rates = []
        for _ in range(3):
            started = time.perf_counter()
            predict_photos(predictor, photos, options)
            rates.append(len(photos) / (time.perf_counter() - started))
    row = {
        "photos": len(photos),
        "megapixels": round(statistics.median(megapixels), 3),
        "milliseconds": {part: round(statistics.median(times), 2) for part, times in milliseconds.items()},
        "photos_per_second": [round(rate, 1) for rate in rates],
        **origin("photo_speed.py", sys.argv[1:] if argv is None else argv),
    }
    print(row)
    write_json(args.results / f"photo-speed-{'cpu' if not torch.cuda.is_available() else 'gpu'}.json", row)


if __name__ == "__main__":
    run_script(main)
