"""Measure the speed beside what others would use.

python benchmarks/speed.py --what step data infer start --image_size 128    # on a CPU
python benchmarks/speed.py --batch_size 32                                  # everything, on a GPU

Contenders take turns in one process, so that a machine that is slow for a while is slow for all of them; figures are
medians over the turns. Peak memory and start-up are measured in a process each. Writes results/<what>-<device>.json.

    step      training steps on one batch on the device
    train     a part of an epoch with its data and augmentation, as train.py does it
    data      decoding and resizing images and trimaps
    infer     the network alone; from image files to mask files
    start     from the start of the process to the end of the first training step, the decoded data being cached
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import argparse
import functools
import re
import statistics
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from plumbing import cli
from plumbing.cli import (
    REPO,
    ArgumentParser,
    UserError,
    choose_device,
    positive_int,
    run_script,
)
from plumbing.stop import StopSignal

import cv2
import numpy as np
import torch
from PIL import Image

from augment import draw_epoch
from engine import TrainingState, compile_forward, create_state, train_one_epoch, train_step
from evaluate import score_split
from inference import write_prediction
from models import network_names
from oxford_pet import (
    DATASET,
    Split,
    decode_all,
    find_root,
    image_path,
    load_dataset,
    load_split,
    read_split,
    trimap_path,
)
from peers import PlainLoop, register
from predictor import Predictor
from recipes import RECIPES
from record import RESULTS, device_slug, origin, write_json
from roofline import count_kernels, measure_ceilings, shortest_seconds, synchronize

WHAT = ("step", "train", "data", "infer", "start")
AGAINST = ("plain", "smp", "compile", "fp32")
SMP = "smp.Unet"  # compared with ResNet34_UNet, because it is one too
START = """
import sys; sys.path.insert(0, sys.argv[1]); import train
args = train.parse_args(sys.argv[2:])
device = cli.choose_device(args.device, args.threads)
train.train_one_epoch(train.build_run(args, device).state, cli.StopSignal())
"""


@dataclass
class Contender:
    """What takes turns with others.

    Attributes:
        work: a part of a turn.
        images: that ``work`` handles.
        calls: of ``work``, in a turn.
        group: contenders of a group are compared with its first one.
        facts: called after the turns with the images per second; what else is recorded.
    """

    work: Callable[[], object]
    images: int
    calls: int = 1
    group: str = ""
    facts: Callable[[float], dict[str, Any]] = lambda rate: {}


# ---------------------------------------------------------------------------------------------- training


def make_state(network: str, args: argparse.Namespace, **changes: Any) -> TrainingState:
    """A training state by ``default``, all at full size, with its data on the device; it has no validation data."""
    sizes = {"image_size": args.image_size} | ({"batch_size": args.batch_size} if args.batch_size else {})
    config = replace(RECIPES["default"](network), progressive=(), **sizes | changes)
    train = load_split(args.data_path, "train", config.image_size, args.images).to(args.device)
    return create_state(config, args.device, train, train)


def our_step(state: TrainingState, compiled: bool = False) -> Contender:
    """Training steps on one batch."""
    size, device = state.config.batch_size, state.device
    plan = draw_epoch(state.config.augmentation, len(state.train), size, 0, 1)
    pixels = next(state.train.batches(plan.order[:size], size, device))
    state.model.train()
    if compiled:
        compile_forward(state)
    step = partial(train_step, state, pixels, plan.theta[:size].to(device), plan.colour[:size].to(device))

    def facts(rate: float) -> dict[str, Any]:
        return {"batch_size": size, **compare_with_roofline(state, step, rate), "largest_costs": largest_costs(step)}

    return Contender(step, size, 20 if device.type == "cuda" else 2, facts=(lambda _: {}) if compiled else facts)


ceilings_of = functools.cache(measure_ceilings)


def compare_with_roofline(state: TrainingState, step: Callable[[], object], rate: float) -> dict[str, Any]:
    """What a step computes, the machine's ceilings, and the fraction of the roofline that a rate reaches."""
    kernels, ceilings = count_kernels(step), ceilings_of(state.device, state.precision)
    size = state.config.batch_size
    best = size / shortest_seconds(kernels, ceilings)
    return {
        "precision": str(state.precision).removeprefix("torch."),
        "operations_per_image": sum(kernel.operations for kernel in kernels) / size,
        "bytes_per_image": sum(kernel.bytes for kernel in kernels) / size,
        "ceiling_teraflops": ceilings.operations / 1e12,
        "ceiling_gigabytes_per_second": ceilings.bytes / 1e9,
        "roofline_images_per_second": best,
        "fraction_of_roofline": rate / best,
    }


def largest_costs(step: Callable[[], object], rows: int = 6) -> list[list[Any]]:
    """What a step's time goes into, by ``torch.profiler``: kernels (on a CPU, operators) and their fractions."""
    on_cuda = torch.cuda.is_available()
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_cuda else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        step()
    events = profiler.key_averages()
    spent = [(event.key, event.self_cpu_time_total) for event in events]
    if on_cuda:
        kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        spent = [(event.key, event.self_device_time_total) for event in kernels if not event.is_user_annotation]
    total = sum(microseconds for _, microseconds in spent)
    ranked = sorted(spent, key=lambda pair: -pair[1])[:rows]
    return [[key[:80], round(microseconds / total, 4)] for key, microseconds in ranked]


def our_epoch(state: TrainingState) -> Contender:
    def work() -> None:
        train_one_epoch(state, StopSignal())
        state.step = 0

    return Contender(work, state.steps_per_epoch * state.config.batch_size)


def plain_loop(network: str, args: argparse.Namespace) -> PlainLoop:
    return PlainLoop(network, args.data_path, args.image_size, args.batch_size or 16, args.images)


def plain_step(loop: PlainLoop) -> Contender:
    batch = next(iter(loop.loader))
    loop.model.train()
    return Contender(lambda: loop.step(batch), len(batch["image"]), 2)


def plain_epoch(loop: PlainLoop) -> Contender:
    return Contender(loop.train_one_epoch, len(loop.loader.dataset))


# ---------------------------------------------------------------------------------------------- data and inference


def sample_names(mode: str, args: argparse.Namespace) -> tuple[Path, list[str]]:
    """The data set's folder, and the first ``--images`` names of a split, repeated where it has fewer."""
    root = find_root(args.data_path)
    names = read_split(root, mode)
    return root, [names[index % len(names)] for index in range(args.images)]


def decoders(args: argparse.Namespace) -> dict[str, Callable[[], Contender]]:
    """Decoding and resizing: ours, and in a loop on one core with OpenCV or Pillow."""
    (root, names), size = sample_names("train", args), (args.image_size, args.image_size)

    def with_opencv(image: Path, trimap: Path) -> None:
        cv2.resize(cv2.imread(str(image)), size, interpolation=cv2.INTER_LINEAR)
        cv2.resize(cv2.imread(str(trimap), cv2.IMREAD_UNCHANGED), size, interpolation=cv2.INTER_NEAREST)

    def with_pillow(image: Path, trimap: Path) -> None:
        np.array(Image.open(image).convert("RGB").resize(size, Image.BILINEAR))
        np.array(Image.open(trimap).resize(size, Image.NEAREST))

    def loop(decode: Callable[[Path, Path], None]) -> Contender:
        paths = [(image_path(root, name), trimap_path(root, name)) for name in names]
        return Contender(lambda: [decode(*pair) for pair in paths], len(names))

    ours = Contender(lambda: deque(decode_all(root, names, args.image_size), maxlen=0), len(names))
    return {
        "a thread a core": lambda: ours,
        "OpenCV, one core": lambda: loop(with_opencv),
        "Pillow, one core": lambda: loop(with_pillow),
    }


def predictor_of(network: str, args: argparse.Namespace) -> Predictor:
    """A predictor with fresh weights, which take as long as trained ones."""
    state = make_state(network, args)
    return Predictor({"config": state.config, "model": state.model.state_dict()}, args.device)


def network_alone(logits: Callable[[torch.Tensor], torch.Tensor], args: argparse.Namespace) -> Contender:
    """Predict a batch that is on the device."""
    size, batch = args.image_size, args.predict_batch
    images = torch.rand(batch, 3, size, size, device=args.device) * 255
    return Contender(lambda: logits(images), batch, max(1, args.images // batch), "network")


def files_to_masks(network: str, args: argparse.Namespace, overlays: bool) -> Contender:
    """Test images decoded, predicted, scored and written as mask files, as by inference.py without a cache."""
    predictor, folder = predictor_of(network, args), tempfile.TemporaryDirectory()
    root, names = sample_names("test", args)

    def work() -> None:
        pixels = torch.from_numpy(np.stack(list(decode_all(root, names, args.image_size))))
        split = Split(root, "test", names, pixels).to(args.device)
        score_split(
            predictor, split, args.predict_batch, partial(write_prediction, Path(folder.name), {} if overlays else None)
        )

    return Contender(work, len(names), group="files")


def plain_files_to_masks(network: str, args: argparse.Namespace) -> Contender:
    """One image at a time: decode, predict, write the mask with Pillow."""
    loop, folder = plain_loop(network, args), tempfile.TemporaryDirectory()
    dataset = load_dataset(args.data_path, "test")
    dataset.image_size, (_, dataset.filenames) = args.image_size, sample_names("test", args)

    def work() -> None:
        for index, name in enumerate(dataset.filenames):
            logits = loop.logits(torch.from_numpy(dataset[index]["image"])[None])
            with Image.open(image_path(dataset.root, name)) as image:
                mask = Image.fromarray((logits[0, 0] > 0).numpy()).resize(image.size, Image.NEAREST)
            mask.save(Path(folder.name) / f"{name}.png")

    return Contender(work, len(dataset), group="files")


def spawn(*command: object) -> None:
    done = subprocess.run([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise UserError(f"a process that was measured ended with exit code {done.returncode}")


# ---------------------------------------------------------------------------------------------- taking turns


def contenders(what: str, network: str, args: argparse.Namespace) -> dict[str, Callable[[], Contender]]:
    """What takes turns, by name; a call builds it. The first of each group is ours."""
    state, loop = partial(make_state, network, args), partial(plain_loop, network, args)
    against = set(args.against) - (set() if network == "ResNet34_UNet" else {"smp"})
    flags = ["--model", network, "--data_path", args.data_path, "--image_size", args.image_size]
    one_step = [*flags, "--train_images", 16, "--batch_size", 16, "--overwrite"]
    by_peer: dict[str, dict[str, Callable[[], Contender]]] = {
        "step": {
            "ours": lambda: our_step(state()),
            "compile": lambda: our_step(state(), compiled=True),
            "fp32": lambda: our_step(state(precision="fp32")),
            "smp": lambda: our_step(make_state(SMP, args)),
            "plain": lambda: plain_step(loop()),
        },
        "train": {
            "ours": lambda: our_epoch(state()),
            "smp": lambda: our_epoch(make_state(SMP, args)),
            "plain": lambda: plain_epoch(loop()),
        },
        "infer": {
            "network, ours": lambda: network_alone(predictor_of(network, args).logits, args),
            "network, smp": lambda: network_alone(predictor_of(SMP, args).logits, args),
            "network, plain": lambda: network_alone(loop().logits, args),
            "files to masks, ours": lambda: files_to_masks(network, args, overlays=False),
            "files to masks and overlays, ours": lambda: files_to_masks(network, args, overlays=True),
            "files to masks, plain": lambda: plain_files_to_masks(network, args),
        },
        "start": {
            "train.py": lambda: Contender(lambda: spawn("-c", START, REPO / "src", *one_step), 1),
            "import torch": lambda: Contender(lambda: spawn("-c", "import torch"), 1),
        },
    }
    left_out = set(AGAINST) - against
    named = decoders(args) if what == "data" else by_peer[what]
    return {name: build for name, build in named.items() if name.split(", ")[-1] not in left_out}


def take_turns(what: str, network: str, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Let all contenders take turns, the first round to warm up; each one's figures."""
    made = {name: build() for name, build in contenders(what, network, args).items()}
    seconds: dict[str, list[float]] = {name: [] for name in made}  # per image, turn by turn
    for _ in range(args.repeats + 1):
        for name, contender in made.items():
            started = time.perf_counter()
            for _ in range(contender.calls):
                contender.work()
            synchronize(args.device)
            seconds[name].append((time.perf_counter() - started) / contender.calls / contender.images)
    rows: dict[str, dict[str, Any]] = {}
    for name, contender in made.items():
        base = next(other for other in made if made[other].group == contender.group)
        (_, *its), (_, *ours) = seconds[name], seconds[base]
        rate = 1 / statistics.median(its)
        rows[name] = {
            "images_per_second": rate,
            "times_as_fast_ours": statistics.median(a / b for a, b in zip(its, ours, strict=True)),  # of a round
            "seconds_per_image": its,
            "seconds_per_image_first_turn": seconds[name][0],
            "images_per_turn": contender.images * contender.calls,
            **contender.facts(rate),
        }
    return rows


def peak_memory(what: str, network: str, name: str, argv: list[str]) -> int | None:
    """Bytes that a process takes which has only this contender; on CUDA, of the GPU's memory. None: it failed."""
    command = [sys.executable, __file__, *argv, "--what", what, "--models", network, "--memory_of", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return int(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def run_alone(args: argparse.Namespace) -> None:
    """One call of the contender ``--memory_of``; print the peak memory of this process."""
    contenders(args.what[0], args.models[0], args)[args.memory_of]().work()
    status = Path("/proc/self/status")  # on Linux; getrusage would also count what the parent had before the start
    peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text() if status.exists() else "")
    print(torch.cuda.max_memory_reserved() if args.device.type == "cuda" else int(peak[1]) * 1024 if peak else 0)


def table(what: str, rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The rows of all networks as Markdown."""
    rate = "seconds" if what == "start" else "images/s"
    lines = [
        f"| network | what | {rate} | times as fast: ours | of the roofline | peak memory, GB |",
        "| --- " * 6 + "|",
    ]
    for network, named in rows.items():
        for name, row in named.items():
            value = row["images_per_second"] if what != "start" else 1 / row["images_per_second"]
            of_roofline = f"{row['fraction_of_roofline']:.2f}" if "fraction_of_roofline" in row else ""
            memory = f"{row['peak_memory_bytes'] / 1e9:.1f}" if row.get("peak_memory_bytes") else ""
            ratio = f"{row['times_as_fast_ours']:.2f}"
            lines.append(f"| {network} | {name} | {value:,.1f} | {ratio} | {of_roofline} | {memory} |")
    return "\n".join(lines)


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser("Measure the speed beside what others would use.")
    add = parser.add_argument
    add("--what", nargs="+", choices=WHAT, default=list(WHAT), help="what to measure")
    add("--models", nargs="+", choices=network_names(), default=["U", "R"], metavar="NETWORK", help="which networks")
    add("--against", nargs="*", choices=AGAINST, default=list(AGAINST), help="peers and variants; nothing: ours alone")
    add("--data_path", type=cli.existing_path, default=DATASET, help="the data set's folder")
    add("--image_size", type=cli.image_size, default=256, help="pixels of height and width")
    add("--batch_size", type=positive_int, help="images a training step (default: the recipe's)")
    add("--predict_batch", type=positive_int, default=32, help="images a batch, for inference")
    add("--images", type=positive_int, help="a turn, of train, data and infer (default: 128, on CUDA 3000)")
    add("--repeats", type=positive_int, default=5, help="turns of each contender")
    add("--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU if there is one")
    add("--threads", type=positive_int, help="of the CPU (default: one for each core)")
    add("--results", type=Path, default=RESULTS, help="folder of the JSON")
    add("--memory_of", metavar="CONTENDER", help="run it alone, once, and print the peak memory in bytes")
    args = parser.parse_args(argv)
    args.device = choose_device(args.device, args.threads)
    args.images = args.images or (3000 if args.device.type == "cuda" else 128)
    args.models = list(dict.fromkeys(network_names()[name] for name in args.models))
    return args


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    register()
    torch.backends.cudnn.benchmark = True
    if args.memory_of:
        run_alone(args)
        return
    find_root(args.data_path)
    for what in args.what:
        networks = {"data": ["any"], "start": args.models[-1:]}.get(what, args.models)
        rows = {network: take_turns(what, network, args) for network in networks}
        for network, named in rows.items() if what in ("step", "train", "infer") else ():
            for name, row in named.items():
                row["peak_memory_bytes"] = peak_memory(what, network, name, argv)
        report = {**origin("speed.py", argv), "image_size": args.image_size, "rows": rows}
        path = args.results / f"{what}-{device_slug(args.device)}.json"
        write_json(path, report)
        print(f"\n{what}, {report['machine']}\n\n{table(what, rows)}\n\nwrote {path}\n", flush=True)


if __name__ == "__main__":
    run_script(main)
