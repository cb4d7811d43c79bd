"""Count what the networks hold and compute: parameters, and multiply-accumulates of one picture.

python benchmarks/networks.py [--image_size 256]
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "src"))

from models import NETWORKS, build_network, count_parameters  # noqa: E402
from options import image_side, run_script  # noqa: E402


def count_gmacs(model: torch.nn.Module, side: int) -> float:
    """Multiply-accumulates, in 1e9, of the forward pass of one side x side picture, by PyTorch's FLOP counter."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(torch.zeros(1, 3, side, side))
    return counter.get_total_flops() / 2e9


def main() -> None:
    parser = argparse.ArgumentParser(description="Count parameters and multiply-accumulates of the networks.")
    parser.add_argument("--image_size", type=image_side, default=256, help="pixels (default: 256)")
    side = parser.parse_args().image_size
    rows = {}
    for network in NETWORKS:
        model = build_network(network)
        rows[network] = {"parameters": count_parameters(model), "gmacs": round(count_gmacs(model, side), 3)}
        count, gmacs = rows[network].values()
        print(f"{network:18} {count:>12,} parameters {gmacs:8.2f} GMACs at {side}x{side}")
    path = REPO / "benchmarks" / "results" / f"networks-{side}.json"
    path.write_text(json.dumps({"image_size": side, "torch": torch.__version__, "networks": rows}, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main)
