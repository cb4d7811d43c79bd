"""What the scripts share on the command line: flags, device and precision, signals, a user's mistake as one line."""

import argparse
import ctypes
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

REPO = Path(__file__).resolve().parent.parent
DATASET = REPO / "dataset" / "oxford-iiit-pet"
SAVED_MODELS = REPO / "saved_models"
OUTPUTS = REPO / "outputs_imgs"

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "bf16", "fp32")
LETTERS = {"U": "U", "UNet": "U", "R": "R", "ResNet34_UNet": "R"}  # what may follow --model, and the letter it means


class UserError(Exception):
    """Something that the user can mend; its message says what is wrong, where, and what to do."""


def _one_line(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """A user's mistake that shows while modules are imported, an impossible recipe: one line, no traceback."""
    unknown_field = kind is TypeError and re.match(r"(Recipe|Augmentation)\.__init__\(\) got an unexpected", str(error))
    if issubclass(kind, UserError) or unknown_field:
        print(f"error: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _one_line


def run_script(main: Callable[[], None]) -> None:
    """Call a script's main; a user's mistake ends it with one line and exit code 1, not with a traceback."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that what was begun is tidied up
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader (`| head`) has left: no more words
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            sys.exit(f"error: the disk is full ({error}); the files that were complete before are still so")
        if error.filename is None:
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}")
    except (RuntimeError, MemoryError) as error:
        signs = ("out of memory", "can't allocate memory", "not enough memory")
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in signs):
            raise
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        sys.exit(f"error: out of memory; try a smaller --batch_size or --image_size{reason}")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds each option's default to its help, but for switches and where there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default not in (None, False) else action.help


class ArgumentParser(argparse.ArgumentParser):
    """Shows each option's default, and accepts no abbreviations (a new flag must not change an old command)."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)

    def add_run_options(self, recipes: Iterable[str] = ("default",), files: bool = False) -> None:
        """The flags of every script that works with a run.

        Args:
            recipes: the names that may follow ``--recipe``.
            files: whether a ``.pth`` may follow ``--model`` instead of a network.
        """
        self.add_argument(
            "--model",
            metavar="U|R|FILE.pth" if files else "U|R",
            type=model_letter_or_file if files else model_letter,
            help="the network: U (UNet) or R (ResNet34_UNet)"
            + ("; or a file of --save_path or of anywhere: a checkpoint or a bare state dict" if files else ""),
        )
        self.add_argument(
            "--model_name",
            metavar="UNet|ResNet34_UNet",
            type=model_letter,
            help="as --model, and means --recipe lab3 where no other is given",
        )
        self.add_argument("--recipe", choices=tuple(recipes), help="how to train, or was trained (default: default)")
        self.add_argument(
            "--name",
            type=run_name,
            help="the run's folder under --save_path and its files' prefix "
            "(default: the model's letter; of another recipe lab2-U, say)",
        )
        self.add_argument("--save_path", type=Path, default=SAVED_MODELS, help="folder of all runs")
        self.add_argument("--limit", type=positive_int, help="keep only so many samples of each split, evenly spaced")
        self.add_argument("--device", choices=DEVICES, default="auto", help="auto takes a GPU if there is one")

    def parse_run_args(self, argv: list[str] | None) -> argparse.Namespace:
        """Parse, and name the run by its model where it has no name."""
        args = self.parse_args(argv)
        if args.model_name:
            if args.model:
                self.error("--model and --model_name say the same: give one of them")
            args.model, args.recipe = args.model_name, args.recipe or "lab3"
        args.file = None
        if isinstance(args.model, Path):
            args.file, args.model = args.model, None
            args.name = args.name or args.file.stem
        if not (args.model or args.name):
            self.error("say which network: --model U or --model R")
        args.name = args.name or default_name(args.model, args.recipe)
        return args


def default_name(letter: str, recipe: str | None) -> str:
    """What a run is called that was given no name."""
    return letter if recipe in (None, "default") else f"{recipe}-{letter}"


def model_letter(text: str) -> str:
    if text not in LETTERS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(LETTERS)}")
    return LETTERS[text]


def model_letter_or_file(text: str) -> str | Path:
    return Path(text) if text.endswith(".pth") else model_letter(text)


def run_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a folder: letters, digits, _ . + - are allowed")
    return text


def positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up to 2^63 - 1")
    return int(text)


def positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def share(text: str) -> float:
    value = positive_float(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and at most 1")
    return value


def image_side(text: str) -> int:
    if positive_int(text) < 32:
        raise argparse.ArgumentTypeError(f"{text} is below 32 pixels, the least that the networks take")
    return int(text)


def which_checkpoint(text: str) -> str:
    if text not in ("last", "best", "final") and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is none of last, best, final, or the number of an epoch")
    return text if not text.isdecimal() else str(int(text))


def choose_device(wanted: str) -> "torch.device":
    """The device for ``--device``; auto takes CUDA, then Apple's GPU, then the CPU.

    Raises:
        UserError: it is not there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(device for device, is_there in there.items() if is_there)
    keep_freed_memory()
    if not there[wanted]:
        build = f"version {torch.__version__}" + (
            f", for CUDA {torch.version.cuda}" if torch.version.cuda else ", without CUDA"
        )
        raise UserError(
            f"--device {wanted}: PyTorch sees no such device here ({build}); --device auto takes what there is"
        )
    return torch.device(wanted)


def keep_freed_memory() -> None:
    """Have the C library keep the memory that is freed, for what is allocated next.

    It gives large blocks back to the system at once, and a step on the CPU, or a picture that is decoded, then waits
    for zeroed pages anew (``benchmarks/speed.py --what step`` has a row without this). Done for glibc only.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            c_library = ctypes.CDLL("libc.so.6")
            m_mmap_max, m_trim_threshold = -4, -1  # of malloc.h
            c_library.mallopt(m_mmap_max, 0)
            c_library.mallopt(m_trim_threshold, 2**31 - 1)


def choose_precision(wanted: str, device: "torch.device") -> "torch.dtype":
    """What the network computes in: auto takes bfloat16 where the device has instructions for it, else float32."""
    import torch

    if wanted == "auto":
        native = {
            "cuda": lambda: torch.cuda.get_device_capability(device) >= (8, 0),
            "cpu": lambda: any(
                getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
            ),
            "mps": lambda: False,
        }
        wanted = "bf16" if native[device.type]() else "fp32"
    return torch.bfloat16 if wanted == "bf16" else torch.float32


def describe(device: "torch.device", precision: "torch.dtype") -> str:
    """Device and precision in words: ``NVIDIA H200, bfloat16``."""
    import torch

    where = device.type
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    if device.type == "cpu":
        where = f"cpu, {torch.get_num_threads()} threads" + ("" if torch.version.cuda is None else " (no GPU found)")
    return f"{where}, {str(precision).removeprefix('torch.')}"


class StopSignal:
    """While active, the first Ctrl-C or SIGTERM only sets ``number``, so that the step is finished; the second kills.

    Attributes:
        number: of the signal that came, 0 if none did.
    """

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number = number
        print(
            f"\n{signal.Signals(number).name}: finishing the step, then saving (again to stop at once)", file=sys.stderr
        )
