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
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "src"))

import inference  # noqa: E402
import train  # noqa: E402
from accuracy import processor  # noqa: E402
from atomic import atomic_write  # noqa: E402
from augment import draw_epoch, recolour, warp  # noqa: E402
from checkpoint import checkpoint_path, save_checkpoint  # noqa: E402
from evaluate import load_predictor  # noqa: E402
from options import DATASET, ArgumentParser, StopSignal, UserError, image_side, positive_int, run_script, share  # noqa: E402
from oxford_pet import FOLDER, cpu_cores, decode_all, find_root, image_path, images_and_trimaps, read_split, trimap_path  # noqa: E402
from roofline import Ceilings, count_kernels, measure_ceilings, shortest_seconds, synchronize  # noqa: E402
from synthetic_pet import write_dataset  # noqa: E402

WHAT = ("step", "train", "data", "infer", "start", "to_dice", "growth")
DRAWN = REPO / "dataset" / "drawn-pets"
NAMES = {"U": "UNet", "R": "ResNet34_UNet"}
Turn = Callable[[], dict[str, Any]]  # does some work; says how many images it was, and what else there is to say


# ---------------------------------------------------------------------------------------------- the contenders


def prepare_run(letter: str, args: argparse.Namespace, recipe: str = "default", **more: object) -> train.Run:
    """A run of train.py that is ready for its first step."""
    if recipe == "smp":
        from peers import register_smp

        register_smp()
    flags = {"model": letter, "recipe": recipe, "data_path": args.data_path, "image_size": args.image_size}
    flags |= {"batch_size": args.batch_size, "save_path": tempfile.mkdtemp(), **more}
    typed = [str(part) for flag, value in flags.items() if value is not None for part in (f"--{flag}", value)]
    return train.prepare(train.parse_args(typed))


def step_of(letter: str, args: argparse.Namespace, recipe: str, captured: bool | None = None, **more: object) -> Turn:
    """Training steps on one batch that lies on the device."""
    run = prepare_run(letter, args, recipe, **more)
    size, device = run.recipe.batch_size, run.device
    plan = draw_epoch(run.recipe.augmentation, len(run.train), size, 0, 1).to(device)
    pixels = next(run.train.batches(plan.order[:size].cpu(), size, device))
    step = train.CapturedStep(run, captured)
    run.model.train()
    torch.backends.cudnn.benchmark = True
    run.learning_rate.fill_(1e-4)
    count = 20 if device.type == "cuda" else 2

    def turn() -> dict[str, Any]:
        for _ in range(count):
            step(pixels, plan.theta[:size], plan.colour[:size])
        synchronize(device)
        return {"images": count * size}

    kernels = count_kernels(lambda: train.train_step(run, pixels, plan.theta[:size], plan.colour[:size]))
    turn()
    ceilings = measure_ceilings(device, run.precision)
    turn.facts = {
        "precision": str(run.precision).removeprefix("torch."),
        "batch_size": size,
        "roofline_images_per_second": size / shortest_seconds(kernels, ceilings),
        "operations_per_image": sum(kernel.operations for kernel in kernels) / size,
        "bytes_per_image": sum(kernel.bytes for kernel in kernels) / size,
        **ceilings_in_words(ceilings),
        "largest_costs": largest_costs(lambda: train.train_step(run, pixels, plan.theta[:size], plan.colour[:size])),
    }
    return turn


def ceilings_in_words(ceilings: Ceilings) -> dict[str, float]:
    return {"measured_teraflops": ceilings.operations / 1e12, "measured_gigabytes_per_second": ceilings.bytes / 1e9}


def largest_costs(step: Callable[[], object], rows: int = 6) -> list[dict[str, Any]]:
    """What a step's time goes into, by ``torch.profiler``: the kernels (on a CPU, the operators) and their shares."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(3):
            step()
    cuda = torch.cuda.is_available()
    events = [(e.key, e.self_device_time_total if cuda else e.self_cpu_time_total) for e in profiler.key_averages()]
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

    turn.facts = {"precision": "float32", "batch_size": size}
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


def trained_state(letter: str, args: argparse.Namespace, recipe: str = "default") -> dict[str, Any]:
    """A checkpoint of fresh weights: to predict with them takes as long as with any."""
    return {**train.weights(prepare_run(letter, args, recipe)), "epoch": 0}


def network_of(letter: str, args: argparse.Namespace, recipe: str) -> Turn:
    """Ask the network, the data being on the device: BatchNorm folded, in the run's precision."""
    state = trained_state(letter, args, recipe)
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
    """inference.py over test pictures, its start-up and the contact sheet left out; the cache is cold unless warm."""
    state, folder = trained_state(letter, args), Path(tempfile.mkdtemp())
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
        write = inference.partial(inference.write_prediction, call.output, not call.masks_only)
        started = time.perf_counter()
        scores, _ = inference.score_checkpoint(call, "test", write)
        return {"images": len(scores.names), "seconds": time.perf_counter() - started}

    if warm:
        turn()
    return turn


def plain_files_to_masks(letter: str, args: argparse.Namespace) -> Turn:
    """A picture at a time: Pillow, the network, Pillow."""
    from PIL import Image

    from peers import PlainLoop, PlainPets, predict_plainly

    loop = PlainLoop(letter, args.data_path, args.image_size, 1, limit=1)
    pets, folder = PlainPets(args.data_path, "test", args.image_size, args.images), Path(tempfile.mkdtemp())

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
    save_path = tempfile.mkdtemp()
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
        flags += ["--image_size", args.image_size, "--save_path", tempfile.mkdtemp()]
        flags += ["--batch_size", args.batch_size] if args.batch_size else []
        started, facts = time.perf_counter(), {}
        with subprocess.Popen(
            [sys.executable, REPO / "src" / "train.py", *map(str, flags)], stdout=subprocess.PIPE, text=True
        ) as process:
            for line in process.stdout:
                if line.startswith("valid Dice") and "is reached after" in line:
                    seconds = time.perf_counter() - started
                    words = line.split()
                    facts = {"seconds": seconds, "epochs": int(words[6]), "since_first_step": float(words[8])}
        if not facts:
            raise UserError(f"{letter} by the recipe {recipe} did not reach --dice {args.dice}")
        return facts

    return turn


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
        entries |= {"ours, no CUDA graph": lambda: step_of(letter, args, "default", False)} if cuda else {}
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
    return entries | ({"plain loop": lambda: plain_until_dice(letter, args)} if plain else {})


# ---------------------------------------------------------------------------------------------- taking turns


def work(what: str, letter: str, contender: str, args: argparse.Namespace) -> None:
    """In a contender's process: prepare, say so, and take a turn for each line that comes."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the scripts print is not an answer
    with contextlib.redirect_stdout(io.StringIO()):
        turn = contenders(what, letter, args)[contender]()
        print(json.dumps(getattr(turn, "facts", {})), file=answers)
        for _ in sys.stdin:
            started = time.perf_counter()
            said = turn()
            said.setdefault("seconds", time.perf_counter() - started)
            cuda = torch.cuda.is_available()
            peak = (
                torch.cuda.max_memory_reserved() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            )
            print(json.dumps({**said, "peak_memory_bytes": peak}), file=answers)


class Contender:
    """A process that takes turns."""

    def __init__(self, what: str, letter: str, name: str) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", what, letter, name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self.answer()
        self.turns: list[dict[str, Any]] = []

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"a contender ended before its turn: {shlex.join(map(str, self.process.args))}")
        return json.loads(line)

    def turn(self) -> dict[str, Any]:
        print("go", file=self.process.stdin, flush=True)
        return self.answer()

    def end(self) -> dict[str, Any]:
        self.process.stdin.close()
        self.process.wait()
        seconds = [turn["seconds"] for turn in self.turns]
        row = {"median_seconds": statistics.median(seconds), "seconds": [round(value, 4) for value in seconds]}
        if "images" in self.turns[0]:
            rates = [turn["images"] / turn["seconds"] for turn in self.turns]
            row = {
                "images_per_second": statistics.median(rates),
                "spread": [min(rates), max(rates)],
                "images_a_turn": self.turns[0]["images"],
                **row,
            }
        row |= {key: self.turns[-1][key] for key in ("epochs", "since_first_step") if key in self.turns[-1]}
        return {**row, "peak_memory_bytes": self.turns[-1]["peak_memory_bytes"], **self.facts}


def compare(what: str, letter: str, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Let all contenders take turns; what each of them did."""
    rivals: dict[str, Contender] = {}
    try:
        for name in contenders(what, letter, args):
            rivals[name] = Contender(what, letter, name)
            if what not in ("start", "to_dice"):
                rivals[name].turn()  # to warm up
        for _ in range(args.repeats):
            for rival in rivals.values():
                rival.turns.append(rival.turn())
        rows = {name: rival.end() for name, rival in rivals.items()}
    finally:
        for rival in rivals.values():
            rival.process.kill()
    first = next(iter(rows.values()))
    for name, row in rows.items():
        if "images_per_second" in row:
            row["times_as_fast_as_this"] = first["images_per_second"] / row["images_per_second"]
        if "roofline_images_per_second" in row:
            row["share_of_roofline"] = row["images_per_second"] / row["roofline_images_per_second"]
        print(f"    {what} {letter} {name}: {json.dumps({k: v for k, v in row.items() if k != 'largest_costs'})}")
    return rows


def growth(letter: str, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Steps at other image sizes and batches, and where a data set ends to fit."""
    rows = {}
    for side in (64, 128, 256):
        for batch in (4, 16, 32):
            flags = [*without(sys.argv[1:], "--image_size", "--batch_size", "--what", "--models"), "--image_size", side]
            flags += ["--batch_size", batch, "--what", "step", "--models", letter, "--worker", "step", letter, "ours"]
            command = [sys.executable, __file__, *map(str, flags)]
            done = subprocess.run(command, input="go\ngo\ngo\n", capture_output=True, text=True, check=True)
            facts, *turns = map(json.loads, done.stdout.splitlines())
            rows[f"{side}x{side}, batch {batch}"] = {
                "images_per_second": statistics.median(turn["images"] / turn["seconds"] for turn in turns),
                "peak_memory_bytes": turns[-1]["peak_memory_bytes"],
                "bytes_per_image_in_the_split": 4 * side * side,
                "share_of_roofline": statistics.median(turn["images"] / turn["seconds"] for turn in turns)
                / facts["roofline_images_per_second"],
            }
            print(f"    {letter} {side} {batch}: {rows[f'{side}x{side}, batch {batch}']}", flush=True)
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
    rows = [(letter, name, row) for letter, part in report["rows"].items() for name, row in part.items()]
    lines = []
    if what in ("start", "to_dice"):
        lines += ["| network | what | seconds |" + (" after the first step began |" if what == "to_dice" else "")]
        lines += ["| --- | --- | --- |" + (" --- |" if what == "to_dice" else "")]
        for letter, name, row in rows:
            after = f" {row['since_first_step']:.1f} ({row['epochs']} epochs) |" if what == "to_dice" else ""
            lines.append(f"| {NAMES.get(letter, '')} | {name} | {row['median_seconds']:.1f} |{after}")
        return "\n".join(lines)
    has_roof = any("share_of_roofline" in row for *_, row in rows)
    lines += ["| network | what | images/s | the first is faster by |" + (" share of roofline |" if has_roof else "")]
    lines += ["| --- | --- | --- | --- |" + (" --- |" if has_roof else "")]
    for letter, name, row in rows:
        times = f"{row['times_as_fast_as_this']:.2f}" if "times_as_fast_as_this" in row else ""
        roof = f" {row['share_of_roofline']:.2f} |" if "share_of_roofline" in row else " |" if has_roof else ""
        lines.append(f"| {NAMES.get(letter, '')} | {name} | {row['images_per_second']:,.1f} | {times} |{roof}")
    return "\n".join(lines)


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
    parser.add_argument("--repeats", type=positive_int, default=5, help="turns")
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
    for what in args.what:
        letters = ["data"] if what == "data" else ["R"] if what == "start" else args.models
        measure = growth if what == "growth" else lambda letter, args, what=what: compare(what, letter, args)
        report = {
            "machine": processor(),
            "cores": cpu_cores(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "command": shlex.join(
                ["benchmarks/speed.py", *without(sys.argv[1:], "--what", "--data_path"), "--what", what]
            ),
            "data": root.name if root.name != FOLDER else root.parent.name + "/" + FOLDER,
            "image_size": args.image_size,
            "rows": {letter: measure(letter, args) for letter in letters},
        }
        path = args.results / f"{what}-{device}.json"
        with atomic_write(path) as file:
            file.write((json.dumps(report, indent=1) + "\n").encode())
        print(f"\n{what}, {report['machine']}, {args.image_size}x{args.image_size}\n\n{table(what, report)}\n")
        print(f"wrote {path}\n", flush=True)


if __name__ == "__main__":
    run_script(main)
