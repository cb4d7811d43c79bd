"""Measure the speed beside what others would use.

python benchmarks/speed.py --image_size 128    # on a CPU
python benchmarks/speed.py --batch_size 32     # on a GPU

Contenders take turns in one process, so that a machine that is slow for a while is slow for all of them; figures are
medians over the turns. Peak memory is measured in a process each. Writes results/<what>-<device>.json.

    step      training steps on one batch on the device
    train     a part of an epoch with its data and augmentation, as train.py does it
    infer     the network alone; from image files to mask files
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import functools
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from plumbing import cli
from plumbing.cli import ArgumentParser, choose_device, choose_precision, positive_int, run_script
from plumbing.stop import StopSignal

import numpy as np
import torch
from PIL import Image

from augment import draw_epoch
from evaluate import score_split
from inference import write_prediction
from models import network_names
from oxford_pet import DATASET, find_root, image_path, load_dataset, read_split
from peers import PlainLoop, register
from predictor import Predictor
from recipes import RECIPES
from record import RESULTS, device_slug, origin, write_json
from roofline import count_kernels, measure_ceilings, shortest_seconds, synchronize
from split import Split, decode_all, load_split
from train import Trainer

AGAINST = ("plain", "smp", "compile", "fp32")
SMP = "smp.Unet"  # compared with ResNet34_UNet, because it is one too
ceilings_of = functools.cache(measure_ceilings)


@dataclass
class Contender:
    """What takes turns with others."""

    work: Callable[[], object]  # a part of a turn
    images: int  # that ``work`` handles
    calls: int = 1  # of ``work``, in a turn
    group: str = ""  # contenders of a group are compared with its first one, which is ours
    facts: Callable[[float], dict[str, Any]] = lambda rate: {}  # more to record, from the images per second


Builders = dict[str, Callable[[], Contender]]  # by the contender's name


@dataclass(frozen=True)
class Bench:
    """A network on a device, and the sizes of images, batches and turns; each of WHAT is a method."""

    network: str  # a key of models.NETWORKS
    root: Path  # of the data set
    device: torch.device
    image_size: int
    batch_size: int | None  # of training; None: the recipe's
    predict_batch: int
    images: int  # a turn, of train and infer

    def trainer(self, **changes: Any) -> Trainer:
        """A trainer by ``default``, all at full size, with its data on the device; it has no validation data."""
        sizes = {"image_size": self.image_size} | ({"batch_size": self.batch_size} if self.batch_size else {})
        config = replace(RECIPES["default"](self.network), progressive=(), **sizes | changes)
        train = load_split(self.root, "train", config.image_size, self.images).to(self.device)
        trainer = Trainer(config, self.device, train, train, choose_precision(config.precision, self.device))
        trainer.ema.refresh_batchnorm = lambda _: None  # comes once an epoch, of which a turn is a part
        return trainer

    def plain_loop(self) -> PlainLoop:
        return PlainLoop(self.network, self.root, self.image_size, self.batch_size or 16, self.images)

    def our_step(self, is_compiled: bool = False, **changes: Any) -> Contender:
        """Training steps on one batch."""
        trainer = self.trainer(**changes)
        size = trainer.config.batch_size
        plan = draw_epoch(trainer.config.augmentation, len(trainer.train), size, 0, 1)
        pixels = next(trainer.train.batches(plan.order[:size], size, self.device))
        trainer.model.train()
        if is_compiled:
            trainer.forward = torch.compile(trainer.model, dynamic=False)
        how = (plan.theta[:size].to(self.device), plan.colour[:size].to(self.device), self.image_size)
        step = partial(trainer.train_step, pixels, *how)

        def facts(rate: float) -> dict[str, Any]:
            return {} if is_compiled else {"batch_size": size, **compare_with_roofline(trainer, step, rate)}

        return Contender(step, size, 20 if self.device.type == "cuda" else 2, facts=facts)

    def plain_step(self) -> Contender:
        loop = self.plain_loop()
        batch = next(iter(loop.loader))
        loop.model.train()
        return Contender(lambda: loop.step(batch), len(batch["image"]), 2)

    def step(self) -> Builders:
        return {
            "ours": self.our_step,
            "compile": partial(self.our_step, is_compiled=True),
            "fp32": partial(self.our_step, precision="fp32"),
            "smp": replace(self, network=SMP).our_step,
            "plain": self.plain_step,
        }

    def our_epoch(self) -> Contender:
        trainer, stop = self.trainer(), StopSignal()

        def work() -> None:
            trainer.train_epoch(stop)
            trainer.progress.step = 0

        return Contender(work, trainer.steps * trainer.config.batch_size)

    def plain_epoch(self) -> Contender:
        loop = self.plain_loop()
        return Contender(loop.train_one_epoch, len(loop.loader.dataset))

    def train(self) -> Builders:
        return {"ours": self.our_epoch, "smp": replace(self, network=SMP).our_epoch, "plain": self.plain_epoch}

    def test_names(self) -> list[str]:
        """The first ``images`` names of the test split, repeated if it has fewer."""
        names = read_split(self.root, "test")
        return [names[index % len(names)] for index in range(self.images)]

    def predictor(self) -> Predictor:
        """A predictor with fresh weights, which take as long as trained ones."""
        trainer = self.trainer()
        return Predictor({"config": trainer.config, "model": trainer.model.state_dict()}, self.device)

    def network_alone(self, logits: Callable[[torch.Tensor], torch.Tensor]) -> Contender:
        """Predict a batch that is on the device."""
        images = torch.rand(self.predict_batch, 3, self.image_size, self.image_size, device=self.device) * 255
        calls = max(1, self.images // self.predict_batch)
        return Contender(lambda: logits(images), self.predict_batch, calls, "network")

    def files_to_masks(self, with_overlays: bool) -> Contender:
        """Test images decoded, predicted, scored and written as mask files, as by inference.py without a cache."""
        predictor, folder, names = self.predictor(), tempfile.TemporaryDirectory(), self.test_names()

        def work() -> None:
            pixels = torch.from_numpy(np.stack(list(decode_all(self.root, names, self.image_size))))
            split = Split(self.root, "test", names, pixels).to(self.device)
            write = partial(write_prediction, Path(folder.name), {} if with_overlays else None)
            score_split(predictor, split, self.predict_batch, write)

        return Contender(work, len(names), group="files")

    def plain_files_to_masks(self) -> Contender:
        """One image at a time: decode, predict, write the mask with Pillow."""
        loop, folder = self.plain_loop(), tempfile.TemporaryDirectory()
        dataset = load_dataset(self.root, "test")
        dataset.image_size, dataset.filenames = self.image_size, self.test_names()

        def work() -> None:
            for index, name in enumerate(dataset.filenames):
                logits = loop.logits(torch.from_numpy(dataset[index]["image"])[None])
                with Image.open(image_path(dataset.root, name)) as image:
                    mask = Image.fromarray((logits[0, 0] > 0).numpy()).resize(image.size, Image.NEAREST)
                mask.save(Path(folder.name) / f"{name}.png")

        return Contender(work, len(dataset), group="files")

    def infer(self) -> Builders:
        return {
            "network, ours": lambda: self.network_alone(self.predictor().logits),
            "network, smp": lambda: self.network_alone(replace(self, network=SMP).predictor().logits),
            "network, plain": lambda: self.network_alone(self.plain_loop().logits),
            "files to masks, ours": partial(self.files_to_masks, with_overlays=False),
            "files to masks and overlays, ours": partial(self.files_to_masks, with_overlays=True),
            "files to masks, plain": self.plain_files_to_masks,
        }


WHAT = {"step": Bench.step, "train": Bench.train, "infer": Bench.infer}


def contenders(what: str, bench: Bench, against: list[str]) -> Builders:
    left_out = set(AGAINST) - set(against) | (set() if bench.network == "ResNet34_UNet" else {"smp"})
    return {name: build for name, build in WHAT[what](bench).items() if name.split(", ")[-1] not in left_out}


def compare_with_roofline(trainer: Trainer, step: Callable[[], object], rate: float) -> dict[str, Any]:
    """What a step computes, the machine's ceilings, and the fraction of the roofline that a rate reaches."""
    kernels, ceilings = count_kernels(step), ceilings_of(trainer.device, trainer.precision)
    size = trainer.config.batch_size
    best = size / shortest_seconds(kernels, ceilings)
    return {
        "precision": str(trainer.precision).removeprefix("torch."),
        "operations_per_image": sum(kernel.operations for kernel in kernels) / size,
        "bytes_per_image": sum(kernel.bytes for kernel in kernels) / size,
        "ceiling_teraflops": ceilings.operations / 1e12,
        "ceiling_gigabytes_per_second": ceilings.bytes / 1e9,
        "roofline_images_per_second": best,
        "fraction_of_roofline": rate / best,
    }


# ---------------------------------------------------------------------------------------------- taking turns


def take_turns(builders: Builders, repeats: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Let all contenders take turns, the first round to warm up; returns each one's figures."""
    made = {name: build() for name, build in builders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in made}  # per image, turn by turn
    for _ in range(repeats + 1):
        for name, contender in made.items():
            started = time.perf_counter()
            for _ in range(contender.calls):
                contender.work()
            synchronize(device)
            seconds[name].append((time.perf_counter() - started) / contender.calls / contender.images)
    rows: dict[str, dict[str, Any]] = {}
    for name, contender in made.items():
        base = next(other for other in made if made[other].group == contender.group)
        (first, *its), (_, *ours) = seconds[name], seconds[base]
        rate = 1 / statistics.median(its)
        rows[name] = {
            "images_per_second": rate,
            "times_as_fast_ours": statistics.median(a / b for a, b in zip(its, ours, strict=True)),  # of a round
            "seconds_per_image": its,
            "seconds_per_image_first_turn": first,
            "images_per_turn": contender.images * contender.calls,
            **contender.facts(rate),
        }
    return rows


def peak_memory(what: str, network: str, name: str, argv: list[str]) -> int | None:
    """Bytes that a process takes which has only this contender; on CUDA, of the GPU's memory. None: it failed."""
    command = [sys.executable, __file__, *argv, "--what", what, "--models", network, "--memory_of", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return int(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def run_alone(build: Callable[[], Contender], device: torch.device) -> None:
    """One call of a contender; print the peak memory of this process."""
    build().work()
    status = Path("/proc/self/status")  # on Linux; getrusage would also count what the parent had before the start
    peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text() if status.exists() else "")
    print(torch.cuda.max_memory_reserved() if device.type == "cuda" else int(peak[1]) * 1024 if peak else 0)


def table(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The rows of all networks as Markdown."""
    lines = ["| network | what | images/s | times as fast: ours | of the roofline | peak memory, GB |"]
    lines.append("| --- " * 6 + "|")
    for network, named in rows.items():
        for name, row in named.items():
            rates = f"{row['images_per_second']:,.1f} | {row['times_as_fast_ours']:.2f}"
            of_roofline = f"{row['fraction_of_roofline']:.2f}" if "fraction_of_roofline" in row else ""
            memory = f"{row['peak_memory_bytes'] / 1e9:.1f}" if row.get("peak_memory_bytes") else ""
            lines.append(f"| {network} | {name} | {rates} | {of_roofline} | {memory} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = ArgumentParser("Measure the speed beside what others would use.")
    add = parser.add_argument
    add("--what", nargs="+", choices=WHAT, default=list(WHAT), help="what to measure")
    add("--models", nargs="+", choices=network_names(), default=["U", "R"], metavar="NETWORK", help="which networks")
    add("--against", nargs="*", choices=AGAINST, default=list(AGAINST), help="peers and variants; nothing: ours alone")
    add("--data_path", type=cli.existing_path, default=DATASET, help="the data set's folder")
    add("--image_size", type=cli.image_size, default=256, help="pixels of height and width")
    add("--batch_size", type=positive_int, help="images a training step (default: the recipe's)")
    add("--predict_batch", type=positive_int, default=32, help="images a batch, for inference")
    add("--images", type=positive_int, help="a turn, of train and infer (default: 128, on CUDA 3000)")
    add("--repeats", type=positive_int, default=5, help="turns of each contender")
    add("--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU if there is one")
    add("--threads", type=positive_int, help="of the CPU (default: one for each core)")
    add("--results", type=Path, default=RESULTS, help="folder of the JSON")
    add("--memory_of", metavar="CONTENDER", help="run it alone, once, and print the peak memory in bytes")
    args = parser.parse_args(argv)
    register()
    torch.backends.cudnn.benchmark = True
    device = choose_device(args.device, args.threads)
    images = args.images or (3000 if device.type == "cuda" else 128)
    sizes = (args.image_size, args.batch_size, args.predict_batch, images)
    networks = dict.fromkeys(network_names()[name] for name in args.models)
    benches = {network: Bench(network, find_root(args.data_path), device, *sizes) for network in networks}
    if args.memory_of:
        bench = next(iter(benches.values()))
        run_alone(contenders(args.what[0], bench, args.against)[args.memory_of], device)
        return
    for what in args.what:
        rows = {}
        for network, bench in benches.items():
            rows[network] = take_turns(contenders(what, bench, args.against), args.repeats, device)
            for name, row in rows[network].items():
                row["peak_memory_bytes"] = peak_memory(what, network, name, argv)
        report = {**origin("speed.py", argv), "image_size": args.image_size, "rows": rows}
        path = args.results / f"{what}-{device_slug(device)}.json"
        write_json(path, report)
        print(f"\n{what}, {report['machine']}\n\n{table(rows)}\n\nwrote {path}\n", flush=True)


if __name__ == "__main__":
    run_script(main)
