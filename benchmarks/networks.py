"""Count the networks' parameters and the multiply-accumulates of one image, and time a photo on one thread.

python benchmarks/networks.py --image_size 256
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import statistics
import time
from itertools import pairwise

from plumbing.cli import ArgumentParser, image_size, run_script

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import NETWORKS, build_network, count_parameters, network_names
from predictor import Predictor
from recipes import Config
from record import RESULTS, origin, write_json


def count_gmacs(model: torch.nn.Module, size: int) -> float:
    """Multiply-accumulates, in 1e9, of the forward pass of one size x size image, by PyTorch's FLOP counter."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() / 2e9


def milliseconds_a_photo(model: torch.nn.Module, network: str, size: int, repeats: int = 5) -> float:
    """Of a ``Predictor`` for one size x size photo on one thread of the CPU, the median after a first call.

    It is CPU time: on one thread that is the time passed, less what other processes took.
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


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Count the networks' parameters and multiply-accumulates, and time a photo on one thread.")
    parser.add_argument("--image_size", type=image_size, default=256, help="pixels of height and width")
    parser.add_argument("--models", nargs="+", choices=network_names(), metavar="NETWORK", help="(default: all)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args(argv)
    rows = {}
    for name in args.models or NETWORKS:
        network = network_names()[name]
        model = build_network(network)
        gmacs = count_gmacs(model, args.image_size)
        photo = milliseconds_a_photo(model, network, args.image_size)
        counted = {"parameters": count_parameters(model), "gmacs": round(gmacs, 3)}
        rows[network] = {**counted, "milliseconds_a_photo": round(photo, 1)}
        print(f"{network:20} {counted['parameters']:>12,} parameters {gmacs:8.2f} GMACs {photo:8.1f} ms a photo")
    if not args.models:
        path = args.results / f"networks-{args.image_size}.json"
        about = origin("networks.py", sys.argv[1:] if argv is None else argv)
        write_json(path, {**about, "image_size": args.image_size, "networks": rows})
        print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main)
