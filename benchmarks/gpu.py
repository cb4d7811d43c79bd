"""Everything that a GPU is wanted for, most valuable first, within a time budget; start it again to go on.

python benchmarks/gpu.py --minutes 9

The CUDA tests come first each time: without them, no figure counts. A command that has its file in results/ is not run
again; one that ran out of time goes on (a training) or begins anew. The minutes of the commands have not been measured.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import subprocess
import time

from plumbing.cli import REPO, ArgumentParser, UserError, choose_device, positive_float, run_script, shell

from oxford_pet import DATASET, find_root
from record import RESULTS, device_slug

TESTS = ("-m", "pytest", "-m", "", "tests/test_cuda.py")
SPEED = ("benchmarks/speed.py", "--batch_size", "32", "--images", "600", "--repeats", "2", "--what")
STUDY = ("benchmarks/study.py", "--queue", "benchmarks/queue-gpu.txt", "--only")
COMMANDS = {  # by the file in results/ that each writes; GPU stands for the card's name
    "step-GPU.json": (*SPEED, "step"),
    "run-fast-R-256.json": (*STUDY, "fast-R-256"),
    "train-GPU.json": (*SPEED, "train"),
    "run-fast-U-256.json": (*STUDY, "fast-U-256"),
    "infer-GPU.json": (*SPEED, "infer"),
    "run-R-128.json": (*STUDY, "R-128"),
    "run-R-256.json": (*STUDY, "R-256"),
    "run-U-128.json": (*STUDY, "U-128"),
    "run-lab2-R-256.json": (*STUDY, "lab2-R-256"),
    "run-lab3-R-256.json": (*STUDY, "lab3-R-256"),
    "run-lab2-U-256.json": (*STUDY, "lab2-U-256"),
    "run-lab3-U-256.json": (*STUDY, "lab3-U-256"),
    "run-U-256.json": (*STUDY, "U-256"),
}


def run_for(seconds: float, command: tuple[str, ...]) -> bool:
    """Run a command, and return whether it succeeded; a SIGTERM ends it in time, which a training answers by saving."""
    print(f"\n+ {shell('python', *command)}", flush=True)
    with subprocess.Popen([sys.executable, *command], cwd=REPO) as process:
        try:
            process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            process.terminate()
    return process.returncode == 0


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(
        "Measure all that a GPU is wanted for, on dataset/oxford-iiit-pet; start it again to go on."
    )
    parser.add_argument("--minutes", type=positive_float, default=9.0, help="when to stop; what is left is named")
    args = parser.parse_args(argv)
    find_root(DATASET)
    until = time.monotonic() + 60 * args.minutes
    gpu = device_slug(choose_device("cuda"))
    if not run_for(60 * args.minutes, TESTS):
        raise UserError("the CUDA tests failed, or took too long; nothing is measured")
    files = {RESULTS / name.replace("GPU", gpu): command for name, command in COMMANDS.items()}
    for path, command in files.items():
        if not path.is_file() and time.monotonic() < until:
            run_for(until - time.monotonic(), command)
    left = [path.stem for path in files if not path.is_file()]
    print(f"\nleft: {', '.join(left) or 'nothing'}" + ("; the same command goes on" if left else ""))


if __name__ == "__main__":
    run_script(main)
