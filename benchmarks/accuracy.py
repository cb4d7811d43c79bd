"""Train, score on test, record: one command for the accuracy table of README, also on a GPU.

    python benchmarks/accuracy.py --data_path dataset/oxford-iiit-pet --image_size 256 --epochs 200

Each network is trained by `src/train.py` and scored by `src/inference.py`, with masks and contact sheet. A finished run
is only scored again, an interrupted one is resumed. Writes results/accuracy-<device>-<size>.json.
"""

import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import torch

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "src"))

from atomic import atomic_write  # noqa: E402
from checkpoint import checkpoint_path, load_checkpoint  # noqa: E402
from options import SAVED_MODELS, ArgumentParser, UserError, image_side, model_letter, positive_int, run_script  # noqa: E402
from oxford_pet import cpu_cores  # noqa: E402


def processor() -> str:
    """The model of the machine's GPU, or of its CPU and how many cores of it there are."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return f"{names[0].split(': ')[1] if names else platform.processor()}, {cpu_cores()} cores"


def call(script: str, *flags: object) -> None:
    command = [sys.executable, str(REPO / "src" / script), *map(str, flags)]
    print("+", " ".join(command[1:]), flush=True)
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{script} did not finish; this command goes on where it stopped")


def main() -> None:
    parser = ArgumentParser("Train both networks, score them on test, record the scores.")
    parser.add_argument("--models", type=model_letter, nargs="+", default=["U", "R"], help="which networks")
    parser.add_argument("--data_path", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--image_size", type=image_side, default=256, help="pixels, height and width")
    parser.add_argument("--epochs", type=positive_int, default=200, help="passes over the training images")
    parser.add_argument("--save_path", type=Path, default=SAVED_MODELS, help="folder of all runs")
    args = parser.parse_args()
    rows = {}
    for letter in args.models:
        run = ["--model", letter, "--save_path", args.save_path]
        data = ["--data_path", args.data_path, "--image_size", args.image_size, "--epochs", args.epochs]
        last, final = (checkpoint_path(args.save_path, letter, which) for which in ("last", "final"))
        if not final.is_file():
            call("train.py", *run, *data, *(["--load_model_epoch", "last"] if last.is_file() else []))
        state = load_checkpoint(final)
        was = {**state["run"], "epochs": state["recipe"]["epochs"], "recipe": state["recipe"]["name"]}
        asked = {"image_size": args.image_size, "epochs": args.epochs, "recipe": "default", "limit": None}
        other = {key: was[key] for key in asked if was[key] != asked[key]}
        if other:
            raise UserError(f"{final} is of another run ({other}): give another --save_path")
        call("inference.py", *run, "--data_path", args.data_path)
        scores = json.loads((args.save_path / letter / f"{letter}_test_scores.json").read_text())
        del scores["per_image"]
        rows[letter] = {
            "train_command": " ".join(map(str, ["src/train.py", *run[:2], *data])),
            "test": scores,
            "best_valid_dice": max(row["valid_dice"] for row in state["history"]),
            "training_seconds": round(sum(row["seconds"] for row in state["history"]), 1),
            "images_per_second": round(statistics.median(row["images_per_second"] for row in state["history"]), 1),
            "seed": state["run"]["seed"],
            "history": state["history"],
        }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = {
        "machine": processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "command": " ".join(["benchmarks/accuracy.py", *sys.argv[1:]]),
        "networks": rows,
    }
    path = REPO / "benchmarks" / "results" / f"accuracy-{device}-{args.image_size}.json"
    with atomic_write(path) as file:
        file.write((json.dumps(report, indent=1) + "\n").encode())
    print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main)
