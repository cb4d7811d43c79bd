"""Count the networks' parameters, and the multiply-accumulates of one image.

python benchmarks/networks.py --image_size 256
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import cli

if __name__ == "__main__":
    cli.start()

import torch
from torch.utils.flop_counter import FlopCounterMode

from cli import ArgumentParser, image_size, run_script
from models import NETWORKS, build_network, count_parameters, network_names
from record import RESULTS, origin, write_json


def count_gmacs(model: torch.nn.Module, size: int) -> float:
    """Multiply-accumulates, in 1e9, of the forward pass of one size x size image, by PyTorch's FLOP counter."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() / 2e9


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Count the networks' parameters, and the multiply-accumulates of one image.")
    parser.add_argument("--image_size", type=image_size, default=256, help="pixels of height and width")
    parser.add_argument("--models", nargs="+", choices=network_names(), metavar="NETWORK", help="(default: all)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args(argv)
    rows = {}
    for name in args.models or NETWORKS:
        network = network_names()[name]
        model = build_network(network)
        gmacs = count_gmacs(model, args.image_size)
        rows[network] = {"parameters": count_parameters(model), "gmacs": round(gmacs, 3)}
        print(f"{network:20} {rows[network]['parameters']:>12,} parameters {gmacs:8.2f} GMACs")
    if not args.models:
        path = args.results / f"networks-{args.image_size}.json"
        about = origin("networks.py", sys.argv[1:] if argv is None else argv)
        write_json(path, {**about, "image_size": args.image_size, "networks": rows})
        print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main)
