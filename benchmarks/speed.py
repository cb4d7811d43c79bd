"""How fast it is, measured beside what others would use: one command for the speed tables of the README.

    python benchmarks/speed.py --what step data infer start --image_size 128      # on a CPU
    python benchmarks/speed.py --data_path dataset/oxford-iiit-pet --batch_size 32      # everything, on a GPU

Every contender is a process of its own, started before any is timed; then they take turns, one at a time, so that a
machine that is slow for a while is slow for all of them. Figures are medians over the turns. Writes
results/<what>-<device>.json and prints what stands in it as a table.

    step      training steps, the data on the device
    train     an epoch's part as train.py does it, the data and its augmentation with it
    data      decoding into the cache; making a batch of it
    infer     the network alone; from picture files to mask files
    start     from the start of the process to the end of its first training step, the cache being warm
    to_dice   until the valid Dice is first as high as --dice, by the recipe fast
    growth    how time and memory grow with image size and batch
"""

import argparse
import contextlib
import io
import json
import os
import platform
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "src"))

import evaluate  # noqa: E402
import inference  # noqa: E402
import options  # noqa: E402
import oxford_pet  # noqa: E402
import train  # noqa: E402
from accuracy import processor  # noqa: E402
from atomic import atomic_write  # noqa: E402
from augment import draw_epoch, recolour, warp  # noqa: E402
from checkpoint import checkpoint_path, save_checkpoint  # noqa: E402
from evaluate import load_predictor  # noqa: E402
from options import (  # noqa: E402
    DATASET,
    ArgumentParser,
    StopSignal,
    UserError,
    choose_device,
    image_side,
    positive_int,
    run_script,
    share,
)
from oxford_pet import cpu_cores, decode_all, find_root, image_path, images_and_trimaps, read_split, trimap_path  # noqa: E402
from roofline import Ceilings, Kernel, count_kernels, measure_ceilings, shortest_seconds, synchronize  # noqa: E402
from synthetic_pet import write_dataset  # noqa: E402

WHAT = ("step", "train", "data", "infer", "start", "to_dice", "growth")
DRAWN = REPO / "dataset" / "drawn-pets"
NAMES = {"U": "UNet", "R": "ResNet34_UNet"}
Turn = Callable[[], dict[str, Any]]  # does some work; says how many images it was, and what else there is to say
SCRATCH = tempfile.TemporaryDirectory(prefix="speed-")  # of this process, and gone with it


def scratch() -> Path:
    return Path(tempfile.mkdtemp(dir=SCRATCH.name))


# ---------------------------------------------------------------------------------------------- the contenders


def prepare_run(letter: str, args: argparse.Namespace, recipe: str = "default", **more: object) -> train.Run:
    """A run of train.py that is ready for its first step."""
    if recipe == "smp":
        from peers import register_smp

        register_smp()
    flags = {"model": letter, "recipe": recipe, "data_path": args.data_path, "image_size": args.image_size}
    flags |= {"batch_size": args.batch_size, "save_path": scratch(), **more}
    typed = [str(part) for flag, value in flags.items() if value is not None for part in (f"--{flag}", value)]
    return train.prepare(train.parse_args(typed))


def step_of(
    letter: str,
    args: argparse.Namespace,
    recipe: str,
    captured: bool | None = None,
    compiled: bool = False,
    keeps_memory: bool = True,
    **more: object,
) -> Turn:
    """Training steps on one batch that lies on the device.

    Args:
        captured: see ``train.CapturedStep``.
        compiled: put the network through torch.compile.
        keeps_memory: as ``options.keep_freed_memory`` has it; false leaves the C library as it is.
    """
    if not keeps_memory:
        options.keep_freed_memory = lambda: None
    run = prepare_run(letter, args, recipe, **more)
    if compiled:
        run.model.compile()
    size, device = run.recipe.batch_size, run.device
    plan = draw_epoch(run.recipe.augmentation, len(run.train), size, 0, 1).to(device)
    pixels = next(run.train.batches(plan.order[:size].cpu(), size, device))
    step = train.CapturedStep(run, captured)
    run.model.train()
    torch.backends.cudnn.benchmark = True
    run.learning_rate.fill_(1e-4)
    count = 20 if device.type == "cuda" else 2
    started = time.perf_counter()
    step(pixels, plan.theta[:size], plan.colour[:size])
    synchronize(device)
    first_step_seconds = time.perf_counter() - started

    def turn() -> dict[str, Any]:
        for _ in range(count):
            step(pixels, plan.theta[:size], plan.colour[:size])
        synchronize(device)
        return {"images": count * size}

    def facts() -> dict[str, Any]:
        """What takes memory or time of its own, and so comes after the turns."""
        if compiled:
            return {"first_step_seconds": first_step_seconds}
        inputs = pixels, plan.theta[:size], plan.colour[:size]
        ceilings = measure_ceilings(device, run.precision)
        kernels = count_kernels(lambda: train.train_step(run, *inputs))
        return {
            "first_step_seconds": first_step_seconds,
            "precision": str(run.precision).removeprefix("torch."),
            "batch_size": size,
            "ceilings": [ceilings.operations, ceilings.bytes],
            "kernels": [[kernel.operations, kernel.bytes] for kernel in kernels],
            "largest_costs": largest_costs(lambda: train.train_step(run, *inputs)),
        }

    turn.facts = facts
    return turn


def largest_costs(step: Callable[[], object], rows: int = 6) -> list[dict[str, Any]]:
    """What a step's time goes into, by ``torch.profiler``: the kernels (on a CPU, the operators) and their shares."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(3):
            step()
    if torch.cuda.is_available():
        kernels = [event for event in profiler.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
        events = [(event.key, event.self_device_time_total) for event in kernels if not event.is_user_annotation]
    else:
        events = [(event.key, event.self_cpu_time_total) for event in profiler.key_averages()]
    total = sum(spent for _, spent in events)
    ranked = sorted(events, key=lambda event: -event[1])[:rows]
    return [{"what": key[:80], "share": round(spent / total, 4)} for key, spent in ranked]


def plain_step(letter: str, args: argparse.Namespace) -> Turn:
    from peers import PlainLoop

    size = args.batch_size or 16
    loop = PlainLoop(letter, args.data_path, args.image_size, size, limit=size)
    images, masks = next(iter(loop.loader))
    images, masks = images.to(loop.device), masks.to(loop.device)
    loop.model.train()

    def turn() -> dict[str, Any]:
        for _ in range(2):
            loop.step(images, masks)
        return {"images": 2 * size}

    turn.facts = lambda: {"precision": "float32", "batch_size": size}
    return turn


def train_of(letter: str, args: argparse.Namespace, recipe: str) -> Turn:
    run = prepare_run(letter, args, recipe, train_images=args.images)
    step = train.CapturedStep(run)

    def turn() -> dict[str, Any]:
        run.step = 0
        train.train_one_epoch(run, step, StopSignal())
        synchronize(run.device)
        run.epoch += 1
        return {"images": run.steps_per_epoch * run.recipe.batch_size}

    return turn


def plain_train(letter: str, args: argparse.Namespace) -> Turn:
    from peers import PlainLoop

    loop = PlainLoop(letter, args.data_path, args.image_size, args.batch_size or 16, args.images)
    return lambda: {"images": loop.train_one_epoch()}


def decode_in_threads(args: argparse.Namespace) -> Turn:
    choose_device("auto")  # which also sets how memory is kept, as in train.py
    root = find_root(args.data_path)
    names = sample_names(root, args.images)
    return lambda: {"images": sum(1 for _ in decode_all(root, names, args.image_size))}


def sample_names(root: Path, count: int) -> list[str]:
    """So many names of train, from its start again where it has fewer."""
    names = read_split(root, "train")
    return [names[index % len(names)] for index in range(count)]


def decode_on_one_core(args: argparse.Namespace, library: str) -> Turn:
    """Decode and resize picture and trimap, in a loop, as one would write it in a minute."""
    import cv2
    import numpy as np
    from PIL import Image

    root, size = find_root(args.data_path), (args.image_size, args.image_size)
    names = sample_names(root, args.images)

    def turn() -> dict[str, Any]:
        for name in names:
            paths = image_path(root, name), trimap_path(root, name)
            if library == "cv2":
                cv2.resize(cv2.imread(str(paths[0])), size, interpolation=cv2.INTER_LINEAR)
                cv2.resize(cv2.imread(str(paths[1]), cv2.IMREAD_UNCHANGED), size, interpolation=cv2.INTER_NEAREST)
            else:
                np.array(Image.open(paths[0]).convert("RGB").resize(size, Image.BILINEAR))
                np.array(Image.open(paths[1]).resize(size, Image.NEAREST))
        return {"images": len(names)}

    return turn


def make_batches(args: argparse.Namespace) -> Turn:
    """Index, warp, recolour and normalise on the device: what a step does before the network."""
    run = prepare_run("R", args)
    size, device = run.recipe.batch_size, run.device
    plan = draw_epoch(run.recipe.augmentation, len(run.train), size, 0, 1)
    theta, colour = plan.theta.to(device), plan.colour.to(device)

    def turn() -> dict[str, Any]:
        count = min(20, len(plan.order) // size)
        for index, pixels in enumerate(run.train.batches(plan.order[: count * size], size, device)):
            slots = slice(index * size, (index + 1) * size)
            images, _ = warp(*images_and_trimaps(pixels), theta[slots])
            run.normalise(recolour(images, colour[slots]))
        synchronize(device)
        return {"images": count * size}

    return turn


def plain_samples(args: argparse.Namespace) -> Turn:
    from peers import PlainPets

    pets = PlainPets(args.data_path, "train", args.image_size)
    return lambda: {"images": sum(1 for index in range(args.images) if pets[index % len(pets)])}


def fresh_state(letter: str, args: argparse.Namespace, recipe: str = "default") -> dict[str, Any]:
    """A checkpoint of fresh weights: to predict with them takes as long as with any."""
    return {**train.weights(prepare_run(letter, args, recipe)), "epoch": 0}


def network_of(letter: str, args: argparse.Namespace, recipe: str) -> Turn:
    """Ask the network, the data being on the device: BatchNorm folded, in the run's precision."""
    state = fresh_state(letter, args, recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor = load_predictor(state, device)
    pixels = torch.randint(0, 256, (args.predict_batch, args.image_size, args.image_size, 4), dtype=torch.uint8)
    pixels = pixels.to(device)
    count = max(1, args.images // args.predict_batch)

    def turn() -> dict[str, Any]:
        for _ in range(count):
            predictor(images_and_trimaps(pixels)[0])
        synchronize(device)
        return {"images": count * args.predict_batch}

    return turn


def plain_network(letter: str, args: argparse.Namespace) -> Turn:
    from peers import PlainLoop, predict_plainly

    loop = PlainLoop(letter, args.data_path, args.image_size, 1, limit=1)
    images = torch.randn(args.predict_batch, 3, args.image_size, args.image_size).to(loop.device)
    count = max(1, args.images // args.predict_batch)

    def turn() -> dict[str, Any]:
        for _ in range(count):
            predict_plainly(loop.model, images)
        synchronize(loop.device)
        return {"images": count * args.predict_batch}

    return turn


def files_to_masks(letter: str, args: argparse.Namespace, *flags: str, warm: bool = False) -> Turn:
    """inference.py over test pictures, from the moment when the network is loaded; no contact sheet.

    Args:
        warm: whether the pictures were decoded into the cache before.
    """
    state, folder = fresh_state(letter, args), scratch()
    save_checkpoint(checkpoint_path(folder, letter, "best"), state)
    root, turns = find_root(args.data_path).resolve(), 0

    def turn() -> dict[str, Any]:
        nonlocal turns
        turns += 0 if warm else 1
        data = folder / f"data-{turns}"  # a folder of its own has a cache of its own
        if not data.exists():
            data.mkdir()
            for part in ("images", "annotations"):
                (data / part).symlink_to(root / part)
        where = ["--model", letter, "--save_path", folder, "--data_path", data, "--batch_size", args.predict_batch]
        typed = [*where, "--limit", args.images, "--output", folder / "masks", *flags]
        call = inference.parse_args([str(part) for part in typed])
        write = partial(inference.write_prediction, call.output, not call.masks_only)
        started: list[float] = []

        def load_split(*wanted: object) -> oxford_pet.Split:
            started.append(time.perf_counter())
            return oxford_pet.load_split(*wanted)

        evaluate.load_split = load_split
        scores, _ = inference.score_checkpoint(call, "test", write)
        seconds = time.perf_counter() - started[0]
        if not warm:
            shutil.rmtree(data)
        return {"images": len(scores.names), "seconds": seconds}

    if warm:
        turn()
    return turn


def plain_files_to_masks(letter: str, args: argparse.Namespace) -> Turn:
    """A picture at a time: Pillow, the network, Pillow."""
    from PIL import Image

    from peers import PlainLoop, PlainPets, predict_plainly

    loop = PlainLoop(letter, args.data_path, args.image_size, 1, limit=1)
    pets, folder = PlainPets(args.data_path, "test", args.image_size, args.images), scratch()

    def turn() -> dict[str, Any]:
        for index, name in enumerate(pets.names):
            logits = predict_plainly(loop.model, pets[index][0][None].to(loop.device))
            mask = Image.fromarray((logits[0, 0] > 0).cpu().numpy())
            with Image.open(image_path(pets.root, name)) as picture:
                mask.resize(picture.size, Image.NEAREST).save(folder / f"{name}.png")
        return {"images": len(pets)}

    return turn


START = """
import sys; sys.path.insert(0, {src!r})
import os, train
step = train.train_step
def first(*inputs):
    loss = step(*inputs); loss.item(); os.write(1, b"stepped"); os._exit(0)
train.train_step = first
train.main({flags!r})
"""


def start_of(letter: str, args: argparse.Namespace) -> Turn:
    """train.py, from the start of its process to the end of its first step."""
    prepare_run(letter, args)  # decodes what is not decoded yet
    save_path = str(scratch())
    flags = ["--model", letter, "--data_path", str(args.data_path), "--image_size", str(args.image_size)]
    flags += ["--save_path", save_path, "--overwrite"]
    code = START.format(src=str(REPO / "src"), flags=flags)
    return lambda: spawn([sys.executable, "-c", code])


def spawn(command: list[str]) -> dict[str, Any]:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {}


def fast_until_dice(letter: str, args: argparse.Namespace, recipe: str) -> Turn:
    """train.py to --dice, from the start of its process, and from that of its first step."""

    def turn() -> dict[str, Any]:
        flags = ["--model", letter, "--recipe", recipe, "--stop_at_dice", args.dice, "--data_path", args.data_path]
        flags += ["--image_size", args.image_size, "--save_path", scratch()]
        flags += ["--batch_size", args.batch_size] if args.batch_size else []
        started, facts = time.perf_counter(), {}
        with subprocess.Popen(
            [sys.executable, REPO / "src" / "train.py", *map(str, flags)], stdout=subprocess.PIPE, text=True
        ) as process:
            for line in process.stdout:
                if said := reached(line):
                    facts = {"seconds": time.perf_counter() - started, **said}
        if not facts:
            raise UserError(f"{letter} by the recipe {recipe} did not reach --dice {args.dice}")
        return facts

    return turn


def reached(line: str) -> dict[str, Any] | None:
    """What train.py says when it has come to --stop_at_dice; None for its other lines."""
    found = re.match(r"valid Dice \S+ is reached after (\d+) epochs, ([\d.]+) s after", line)
    return {"epochs": int(found[1]), "since_first_step": float(found[2])} if found else None


def plain_until_dice(letter: str, args: argparse.Namespace) -> Turn:
    from peers import PlainLoop

    def turn() -> dict[str, Any]:
        loop = PlainLoop(letter, args.data_path, args.image_size, args.batch_size or 16)
        history = list(loop.until(args.dice, epochs=60))
        if history[-1][1] < args.dice:
            raise UserError(f"the plain loop reached {history[-1][1]:.4f} in {len(history)} epochs, not {args.dice}")
        return {"since_first_step": history[-1][0], "epochs": len(history)}

    return turn


def contenders(what: str, letter: str, args: argparse.Namespace) -> dict[str, Callable[[], Turn]]:
    """What takes turns, the first of them being what the others are compared with; each call prepares one."""
    plain, smp = "plain" in args.against, "smp" in args.against and letter == "R"
    cuda = torch.cuda.is_available()
    if what == "step":
        entries = {"ours": lambda: step_of(letter, args, "default")}
        if cuda:
            entries["ours, no CUDA graph"] = lambda: step_of(letter, args, "default", captured=False)
        else:
            entries["ours, freed memory given back"] = lambda: step_of(letter, args, "default", keeps_memory=False)
        entries |= {"ours, torch.compile": lambda: step_of(letter, args, "default", compiled=True)}
        entries |= {"ours, float32": lambda: step_of(letter, args, "default", precision="fp32")}
        entries |= {"smp.Unet(resnet34), our step": lambda: step_of(letter, args, "smp")} if smp else {}
        return entries | ({"plain loop, its step": lambda: plain_step(letter, args)} if plain else {})
    if what == "train":
        entries = {"ours": lambda: train_of(letter, args, "default")}
        entries |= {"smp.Unet(resnet34), our loop": lambda: train_of(letter, args, "smp")} if smp else {}
        return entries | ({"plain loop": lambda: plain_train(letter, args)} if plain else {})
    if what == "data":
        entries = {
            "into the cache, a thread a core": lambda: decode_in_threads(args),
            "cv2, one core": lambda: decode_on_one_core(args, "cv2"),
            "augmented batches from the cache": lambda: make_batches(args),
        }
        if plain:
            entries["Pillow, one core"] = lambda: decode_on_one_core(args, "Pillow")
            entries["plain data set, its samples"] = lambda: plain_samples(args)
        return entries
    if what == "infer":
        entries = {"network": lambda: network_of(letter, args, "default")}
        entries |= {"smp.Unet(resnet34), our predictor": lambda: network_of(letter, args, "smp")} if smp else {}
        entries |= {"plain network": lambda: plain_network(letter, args)} if plain else {}
        entries |= {
            "files to masks": lambda: files_to_masks(letter, args, "--masks_only"),
            "files to masks, decoded before": lambda: files_to_masks(letter, args, "--masks_only", warm=True),
            "files to masks and overlays": lambda: files_to_masks(letter, args),
        }
        return entries | ({"plain files to masks": lambda: plain_files_to_masks(letter, args)} if plain else {})
    if what == "start":
        return {
            "train.py": lambda: start_of(letter, args),
            "import torch alone": lambda: lambda: spawn([sys.executable, "-c", "import torch"]),
        }
    entries = {"fast": lambda: fast_until_dice(letter, args, "fast")}
    entries |= {"default recipe": lambda: fast_until_dice(letter, args, "default")}
    return entries | ({"plain loop, its start-up left out": lambda: plain_until_dice(letter, args)} if plain else {})


# ---------------------------------------------------------------------------------------------- taking turns


def work(what: str, letter: str, contender: str, args: argparse.Namespace) -> None:
    """In a contender's process: prepare, say so, and take a turn for each line that comes."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the scripts print is not an answer
    with contextlib.redirect_stdout(io.StringIO()):
        turn = contenders(what, letter, args)[contender]()
        print("{}", file=answers)
        for line in sys.stdin:
            if line == "facts\n":
                print(json.dumps(getattr(turn, "facts", dict)()), file=answers)
                continue
            started = time.perf_counter()
            said = turn()
            said.setdefault("seconds", time.perf_counter() - started)
            if what not in ("start", "to_dice"):  # their work is done in processes of their own
                cuda, used = torch.cuda.is_available(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                said["peak_memory_bytes"] = torch.cuda.max_memory_reserved() if cuda else used
            print(json.dumps(said), file=answers)


class Contender:
    """A process that takes turns."""

    def __init__(self, what: str, letter: str, name: str) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", what, letter, name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.turns: list[dict[str, Any]] = []
        self.failed = False
        self.answer()

    def answer(self) -> dict[str, Any]:
        """What it says next; a process that has ended, whose error stands on the terminal, has failed."""
        line = self.process.stdout.readline()
        self.failed = self.failed or not line
        return json.loads(line or "{}")

    def ask(self, what: str) -> dict[str, Any]:
        if self.failed:
            return {}
        print(what, file=self.process.stdin, flush=True)
        return self.answer()

    def figures(self) -> dict[str, Any]:
        """What all its turns come to."""
        facts = self.ask("facts")
        if self.failed:
            return {"failed": True}
        seconds = [turn["seconds"] for turn in self.turns]
        row = {"median_seconds": statistics.median(seconds), "seconds": [round(value, 4) for value in seconds]}
        if "images" in self.turns[0]:
            rates = [turn["images"] / turn["seconds"] for turn in self.turns]
            row |= {"images_per_second": statistics.median(rates), "spread": [min(rates), max(rates)]}
            row["images_a_turn"] = self.turns[0]["images"]
        said = ("epochs", "since_first_step", "peak_memory_bytes")
        return row | {key: self.turns[-1][key] for key in said if key in self.turns[-1]} | facts


def compare(what: str, letter: str, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Let all contenders take turns; what each of them did."""
    rivals: dict[str, Contender] = {}
    try:
        for name in contenders(what, letter, args):
            rivals[name] = Contender(what, letter, name)
            if what not in ("start", "to_dice"):
                rivals[name].ask("go")  # to warm up
        for _ in range(1 if what == "to_dice" else args.repeats):
            for rival in rivals.values():
                rival.turns.append(rival.ask("go"))
        rows = {name: rival.figures() for name, rival in rivals.items()}
    finally:
        for rival in rivals.values():
            rival.process.stdin.close()  # it ends, and tidies up
            rival.process.wait()
    add_shares(rows)
    for name, row in rows.items():
        base = rows[compared_with(what, name, rows)]
        if "images_per_second" in row and "images_per_second" in base:  # round by round: a slow one is slow for both
            per_image = [[seconds / r["images_a_turn"] for seconds in r["seconds"]] for r in (row, base)]
            row["base_is_faster_by"] = statistics.median(its / bases for its, bases in zip(*per_image, strict=True))
        print(f"    {what} {letter} {name}: {json.dumps({k: v for k, v in row.items() if k != 'largest_costs'})}")
    return rows


def compared_with(what: str, name: str, rows: dict[str, Any]) -> str:
    """The contender of ours that does the same work."""
    first = next(iter(rows))
    if what == "data" and name in ("augmented batches from the cache", "plain data set, its samples"):
        return "augmented batches from the cache"
    return "files to masks" if what == "infer" and "files" in name else first


def add_shares(rows: dict[str, dict[str, Any]]) -> None:
    """The share of the roofline, by the highest ceilings that any contender of the same precision has measured."""
    counted = [row for row in rows.values() if "kernels" in row]
    for row in counted:
        same = [other["ceilings"] for other in counted if other["precision"] == row["precision"]]
        ceilings = Ceilings(*(max(values) for values in zip(*same, strict=True)))
        kernels = [Kernel("", *kernel) for kernel in row["kernels"]]
        row |= {
            "operations_per_image": sum(kernel.operations for kernel in kernels) / row["batch_size"],
            "bytes_per_image": sum(kernel.bytes for kernel in kernels) / row["batch_size"],
            "measured_teraflops": ceilings.operations / 1e12,
            "measured_gigabytes_per_second": ceilings.bytes / 1e9,
            "roofline_images_per_second": row["batch_size"] / shortest_seconds(kernels, ceilings),
        }
        row["share_of_roofline"] = row["images_per_second"] / row["roofline_images_per_second"]
    for row in counted:
        del row["kernels"], row["ceilings"]


def growth(letter: str, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Steps at other image sizes and batches, and where a data set ends to fit."""
    rows: dict[str, dict[str, Any]] = {}

    def measure(what: str, name: str, side: int, batch: int, images: int) -> None:
        flags = without(sys.argv[1:], "--image_size", "--batch_size", "--what", "--models", "--images", "--against")
        flags += ["--against", "", "--image_size", str(side), "--batch_size", str(batch), "--images", str(images)]
        command = [sys.executable, __file__, *flags, "--worker", what, letter, "ours"]
        answers = subprocess.run(command, input="go\n" * 4, stdout=subprocess.PIPE, text=True, check=False).stdout
        turns = [json.loads(line) for line in answers.splitlines()[2:]]
        rows[name] = {"failed": True}
        if len(turns) == 3:
            rate = statistics.median(turn["images"] / turn["seconds"] for turn in turns)
            seconds = statistics.median(turn["seconds"] for turn in turns)
            rows[name] = {"images_per_second": rate, "median_seconds": seconds, **turns[-1]}
            rows[name]["bytes_of_an_image_in_the_split"] = 4 * side * side
        print(f"    {letter} {name}: {rows[name]}", flush=True)

    for side in (64, 128, 256):
        for batch in (4, 16, 32):
            measure("step", f"{side}x{side}, batch {batch}", side, batch, args.images)
    for images in (128, 256, 512):
        measure("train", f"64x64, batch 16, an epoch of {images} images", 64, 16, images)
    if torch.cuda.is_available():
        half_of_the_free_memory = torch.cuda.mem_get_info()[0] / 2
        for side in (128, 256, 512):
            rows[f"{side}x{side}, most images on the device"] = {"images": int(half_of_the_free_memory / (4 * side**2))}
    return rows


def without(flags: list[str], *unwanted: str) -> list[str]:
    """The command line without some options and their values."""
    kept, keep = [], True
    for flag in flags:
        keep = flag not in unwanted if flag.startswith("--") else keep
        if keep:
            kept.append(flag)
    return kept


# ---------------------------------------------------------------------------------------------- tables


def table(what: str, report: dict[str, Any]) -> str:
    """A report as Markdown."""
    rows = [(NAMES.get(letter, ""), name, row) for letter, part in report["rows"].items() for name, row in part.items()]
    columns: dict[str, Callable[[dict[str, Any]], str]] = {}
    if what in ("start", "to_dice"):
        columns["seconds"] = lambda row: f"{row['median_seconds']:.1f}"
        columns["after the first step began"] = lambda row: f"{row['since_first_step']:.1f} ({row['epochs']} epochs)"
    else:
        columns["images/s"] = lambda row: f"{row['images_per_second']:,.1f}"
        columns["times as fast: ours"] = lambda row: f"{row['base_is_faster_by']:.2f}"
        columns["share of the roofline"] = lambda row: f"{row['share_of_roofline']:.2f}"
        columns["first step, s"] = lambda row: f"{row['first_step_seconds']:.1f}"
        columns["peak memory, GB"] = lambda row: f"{row['peak_memory_bytes'] / 1e9:.1f}"

    def cell(show: Callable[[dict[str, Any]], str], row: dict[str, Any]) -> str:
        with contextlib.suppress(KeyError):
            return show(row)
        return "failed" if "failed" in row else ""

    filled = {title: [cell(show, row) for *_, row in rows] for title, show in columns.items()}
    filled = {title: cells for title, cells in filled.items() if any(cells)}
    lines = [["network", "what", *filled], ["---"] * (2 + len(filled))]
    lines += [[network, name, *cells] for (network, name, _), *cells in zip(rows, *filled.values(), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser("Measure the speed beside what others would use.")
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT), help="what to measure")
    parser.add_argument("--models", nargs="+", choices=("U", "R"), default=["U", "R"], help="which networks")
    parser.add_argument("--against", default="plain,smp", help="peers, with commas; an empty text for none")
    parser.add_argument(
        "--data_path", type=Path, help="the data set's folder (default: the real one if it is there, else drawn pets)"
    )
    parser.add_argument("--image_size", type=image_side, default=256, help="pixels, height and width")
    parser.add_argument("--batch_size", type=positive_int, help="images a step (default: the recipe's)")
    parser.add_argument("--predict_batch", type=positive_int, default=32, help="images a batch, to predict")
    parser.add_argument(
        "--images", type=positive_int, help="a turn, of train, data and infer (default: 128, on CUDA 3000)"
    )
    parser.add_argument("--repeats", type=positive_int, default=5, help="turns, but for to_dice, which has one")
    parser.add_argument("--dice", type=share, default=0.9, help="valid Dice to reach, of to_dice")
    parser.add_argument("--results", type=Path, default=REPO / "benchmarks" / "results", help="folder of the JSON")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.against = [peer for peer in args.against.split(",") if peer]
    if not set(args.against) <= {"plain", "smp"}:
        parser.error("--against takes plain, smp, or both with a comma between them")
    args.images = args.images or (3000 if torch.cuda.is_available() else 128)
    if args.data_path is None:
        args.data_path = DATASET if (DATASET / "annotations").is_dir() else DRAWN
    return args


def main() -> None:
    args = parse_args()
    if args.worker:
        what, letter, contender = args.worker
        work(what, letter, contender, args)
        return
    if args.data_path == DRAWN and not DRAWN.is_dir():
        write_dataset(DRAWN, count=400, seed=0)
    root = find_root(args.data_path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rest = without(sys.argv[1:], "--what", "--data_path", "--results")
    for what in args.what:
        letters = ["data"] if what == "data" else ["R"] if what == "start" else args.models
        measure = growth if what == "growth" else lambda letter, args, what=what: compare(what, letter, args)
        report = {
            "machine": processor(),
            "cores": cpu_cores(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "command": shlex.join(["benchmarks/speed.py", "--what", what, "--data_path", root.name, *rest]),
            "image_size": args.image_size,
            "rows": {letter: measure(letter, args) for letter in letters},
        }
        args.results.mkdir(parents=True, exist_ok=True)
        path = args.results / f"{what}-{device}.json"
        with atomic_write(path) as file:
            file.write((json.dumps(report, indent=1) + "\n").encode())
        print(f"\n{what}, {report['machine']}, {args.image_size}x{args.image_size}\n\n{table(what, report)}\n")
        print(f"wrote {path}\n", flush=True)


if __name__ == "__main__":
    run_script(main)
