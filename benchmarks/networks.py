"""Measure what a network costs: parameters, multiply-accumulates, and the time for a photo.

python benchmarks/networks.py --image_size 256    # all networks, on one thread
python benchmarks/networks.py --input photos/     # one checkpoint: decoding, network, cut-out, PNG, and all together
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import statistics
import tempfile
import time
from itertools import pairwise
from typing import Any

from plumbing.cli import ArgumentParser, image_size, run_script
from plumbing.images import decode_photo, read_bytes

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import NETWORKS, build_network, count_parameters, network_names
from photos import PhotoOptions, clean_mask, cut_out, encode_png, find_photos, predict_photos
from predictor import SMALL_WEIGHTS, Predictor
from recipes import Config
from record import RESULTS, device_slug, origin, write_json


def count_gmacs(model: torch.nn.Module, size: int) -> float:
    """Multiply-accumulates, in 1e9, of the forward pass of one size x size image, by PyTorch's FLOP counter."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() / 2e9


def milliseconds_a_photo(model: torch.nn.Module, network: str, size: int, repeats: int = 5) -> float:
    """Median CPU time of a ``Predictor`` for one size x size photo on one thread, after two calls to warm up.

    On one thread, CPU time is the time passed, less what other processes took.
    """
    predictor = Predictor({"config": Config(network, image_size=size), "model": model.state_dict()}, "cpu")
    photo = np.zeros((size, size, 3), np.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    marks = []
    for _ in range(repeats + 2):
        predictor(photo)
        marks.append(time.process_time())
    torch.set_num_threads(threads)
    return 1000 * statistics.median(end - start for start, end in pairwise(marks))


def measure_network(network: str, size: int) -> dict[str, Any]:
    """A network's row of networks-SIZE.json; printed too."""
    model = build_network(network)
    row = {"parameters": count_parameters(model), "gmacs": round(count_gmacs(model, size), 3)}
    row["milliseconds_a_photo"] = round(milliseconds_a_photo(model, network, size), 1)
    print(f"{network:20} {row['parameters']:>12,} parameters {row['gmacs']:8.2f} GMACs", end="")
    print(f" {row['milliseconds_a_photo']:8.1f} ms a photo", flush=True)
    return row


def time_photos(predictor: Predictor, inputs: list[str]) -> dict[str, Any]:
    """Median milliseconds of each part of cutting out one photo, and three rates of ``predict_photos`` on all."""
    parts, megapixels, rates = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        options = PhotoOptions(Path(folder), overwrite=True)
        photos = find_photos(inputs, options)
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
            parts.append([1000 * (end - start) for start, end in pairwise(marks)])
            megapixels.append(mask.size / 1e6)
        for _ in range(3):
            started = time.perf_counter()
            predict_photos(predictor, photos, options)
            rates.append(round(len(photos) / (time.perf_counter() - started), 1))
    medians = np.median(parts, axis=0).round(2).tolist()
    return {
        "photos": len(photos),
        "megapixels": round(statistics.median(megapixels), 3),
        "milliseconds": dict(zip(("decode", "network", "cut out", "PNG"), medians, strict=True)),
        "photos_per_second": rates,
    }


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Measure what a network costs: parameters, multiply-accumulates, the time for a photo.")
    parser.add_argument("--image_size", type=image_size, default=256, help="pixels of height and width")
    parser.add_argument("--models", nargs="+", choices=network_names(), metavar="NETWORK", help="(default: all)")
    parser.add_argument("--input", nargs="+", metavar="PHOTO", help="photos, folders: time --weights on them instead")
    parser.add_argument("--weights", type=Path, default=SMALL_WEIGHTS, help="a checkpoint, for --input")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args(argv)
    about = origin("networks.py", sys.argv[1:] if argv is None else argv)
    if args.input:
        predictor = Predictor(args.weights)
        path = args.results / f"photo-speed-{device_slug(predictor.device)}.json"
        row = time_photos(predictor, args.input)
        print(row)
        write_json(path, {**row, **about})
    else:
        names = dict.fromkeys(network_names()[name] for name in args.models or NETWORKS)
        path = args.results / f"networks-{args.image_size}.json"
        rows = {network: measure_network(network, args.image_size) for network in names}
        if args.models:  # the file is of all networks
            return
        write_json(path, {**about, "image_size": args.image_size, "networks": rows})
    print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main)
