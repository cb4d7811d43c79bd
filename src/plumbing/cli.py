"""Command line of the scripts: flags, device and precision, signals, user-facing errors as one line."""

import argparse
import ctypes
import difflib
import errno
import os
import platform
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import torch

REPO = Path(__file__).resolve().parent.parent.parent
SAVED_MODELS = REPO / "saved_models"
OUTPUTS = REPO / "outputs_imgs"

PRECISIONS = ("auto", "bf16", "fp32")
LARGEST_IMAGE = 4096  # pixels of height and width


class UserError(Exception):
    """User-facing error. The message says what is wrong, where, and what to do."""


def keep_freed_memory() -> None:
    """Keep freed memory in the process (glibc only).

    By default glibc returns large blocks to the system, and the next training step or decoded image waits for zeroed
    pages. The peak grows a little.
    """
    with suppress(OSError, AttributeError):  # not glibc
        c_library = ctypes.CDLL("libc.so.6")
        c_library.mallopt(-4, 0)  # M_MMAP_MAX of malloc.h
        c_library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def run_script(main: Callable[[], None]) -> None:
    """Call a script's main. User-facing errors exit with one line and code 1, all others with a traceback."""
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader (`| head`) has gone
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            sys.exit(f"error: the disk is full, or takes no file of that size ({error}); complete checkpoints stay")
        if error.filename is None:
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}")
    except (RuntimeError, MemoryError) as error:
        if "by peer" in str(error):
            sys.exit("error: another process of the run has ended; its checkpoints stay")
        is_out_of_memory = re.search("out of memory|can't allocate memory", str(error))  # PyTorch's, for GPU and CPU
        if not isinstance(error, MemoryError) and not is_out_of_memory:
            raise
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        sys.exit(f"error: out of memory; try a smaller --batch_size or --image_size; saved checkpoints stay{reason}")


# ---------------------------------------------------------------------------------------------- flags


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to each option's help, except for switches and options without one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default is not None and action.default is not False  # 0 is a default
        return super()._get_help_string(action) if has_default else action.help


class ArgumentParser(argparse.ArgumentParser):
    """Shows defaults in --help, reports errors in one line, accepts no abbreviations."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line; for an unknown flag, suggest a similar one."""
        if unknown := re.match(r"unrecognized arguments: (--?[\w-]+)", message):
            flags = self._option_string_actions
            begun = [flag for flag in flags if flag.startswith(unknown[1])]
            similar = begun or difflib.get_close_matches(unknown[1], flags, n=1)
            message = f"there is no {unknown[1]}" + (f"; did you mean {similar[0]}?" if similar else "")
        self.exit(2, f"error: {message} (--help shows all flags)\n")

    def add_run_options(self, networks: Mapping[str, str], recipes: Iterable[str], files: bool = False) -> None:
        """Add the flags of every script that works with a run.

        Args:
            networks: maps each name that ``--model`` takes to a network.
            recipes: the names that ``--recipe`` takes.
            files: ``--model`` also takes a checkpoint file.
        """
        self._networks = networks

        def network_or_file(text: str) -> str | Path:
            if files and text.endswith((".pth", ".pt")):
                return existing_path(text)
            if text in networks:
                return networks[text]
            or_file = ", and no file of that name ends in .pth or .pt" if files else ""
            raise argparse.ArgumentTypeError(f"no network is called {text!r}{or_file}; there are {', '.join(networks)}")

        kind = {"metavar": "NETWORK|FILE.pth" if files else "NETWORK", "type": network_or_file}
        or_file = "; or a checkpoint or bare state dict, in --save_path or anywhere" if files else ""
        either = self.add_mutually_exclusive_group().add_argument
        either("--model", help=f"the network: {', '.join(networks)}{or_file}", **kind)
        either(
            "--model_name", help="report lab3's flag: as --model, with --recipe lab3 unless another is given", **kind
        )
        add = self.add_argument
        add("--recipe", choices=tuple(recipes), help="how to train, or was trained (default: default)")
        add("--name", type=run_name, help="the run's folder and file prefix (default: U, R, SegFormer, lab2-U, ...)")
        add("--save_path", type=existing_path, default=SAVED_MODELS, help="folder of all runs")
        add("--limit", type=positive_int, help="number of images of each split, evenly spaced (default: all)")
        add("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto takes a GPU if there is one")
        add("--threads", type=positive_int, help="of the CPU (default: one for each core)")

    def parse_run_args(self, argv: list[str] | None) -> argparse.Namespace:
        """Parse the flags of ``add_run_options``; ``model``, ``file`` and ``name`` may be None."""
        args = self.parse_args(argv)
        if args.model_name:
            args.model, args.recipe = args.model_name, args.recipe or "lab3"
        args.file = args.model if isinstance(args.model, Path) else None
        if args.file:
            args.model, args.name = None, args.name or args.file.stem
        if args.model and not args.name:
            args.name = default_run_name(self._networks, args.model, args.recipe)
        return args


def default_run_name(networks: Mapping[str, str], network: str, recipe: str | None) -> str:
    """The default of ``--name``: the network's shortest name, after the recipe's unless that is ``default``."""
    short = min((name for name, meant in networks.items() if meant == network), key=len)
    return short if recipe in (None, "default") else f"{recipe}-{short}"


def shell(*parts: object) -> str:
    """Quote a command for pasting into a shell."""
    return shlex.join(map(str, parts))


def existing_path(text: str) -> Path:
    """Resolve a typed path: from the working directory or, if nothing is there, from the repo's root."""
    path = Path(os.path.expanduser(text))  # an unknown ~user stays as it is
    return REPO / path if not path.exists() and (REPO / path).exists() else path


def run_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} cannot name a folder: letters, digits, _ . + - are allowed")
    return text


def number(words: str, lowest: float, highest: float, whole: bool = False) -> Callable[[str], float]:
    """Make a parser of a flag's value: a number from ``lowest`` to ``highest``, described by ``words``."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            value = int(text) if whole else float(text)
            if lowest <= value <= highest and (text.isdecimal() or not whole):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {words}")

    return parse


positive_int = number("a whole number from 1 up", 1, float("inf"), whole=True)
whole_number = number("a whole number from 0 up to 2^63 - 1", 0, 2**63 - 1, whole=True)
image_size = number(f"from 32 to {LARGEST_IMAGE} pixels", 32, LARGEST_IMAGE, whole=True)
seconds = number("a number from 0 up", 0, sys.float_info.max)
positive_float = number("a number above 0", sys.float_info.min, sys.float_info.max)
megapixels = number("above 0 and at most a million megapixels", sys.float_info.min, 1e6)
fraction = number("above 0 and at most 1", sys.float_info.min, 1)


def which_checkpoint(text: str) -> str:
    if text not in ("last", "best", "final") and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not last, best, final, or the number of an epoch")
    return text if not text.isdecimal() else str(int(text))


# ---------------------------------------------------------------------------------------------- device and precision


def cpu_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(wanted: str, threads: int | None = None) -> "torch.device":
    """Choose the device; ``auto`` takes CUDA, then Apple's GPU, then the CPU.

    Args:
        threads: of the CPU; None leaves PyTorch's choice.

    Raises:
        UserError: PyTorch finds no such device.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if wanted == "auto":
        wanted = next(kind for kind, count in counts.items() if count)
    kind, _, index = wanted.partition(":")
    if kind not in counts or not (index or "0").isdecimal() or int(index or 0) >= counts[kind]:
        build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise UserError(f"--device {wanted}: PyTorch {build} finds no such device; --device auto takes what there is")
    if kind != "cuda":
        return torch.device(kind)
    device = torch.device(kind, int(index or 0))
    torch.cuda.set_device(device)  # for functions without a device argument
    return device


def choose_precision(wanted: str, device: "torch.device") -> "torch.dtype":
    """Choose the dtype of the forward pass; ``auto`` takes bfloat16 if it makes a training step faster.

    On a CPU it does with AMX and with AMD's AVX-512 instructions, but not with Intel's AVX-512 alone
    (benchmarks/README.md). This is a rule and not a timing, so that a seed always gives the same run.
    """
    import torch

    if wanted == "auto" and device.type == "cuda":
        wanted = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if wanted == "auto" and device.type == "cpu":
        amx, avx512 = (getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("amx_tile", "avx512_bf16"))
        wanted = "bf16" if amx or (avx512 and "AMD" in processor()) else "fp32"
    return torch.bfloat16 if wanted == "bf16" else torch.float32


def processor() -> str:
    """The name of the CPU."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)", info.read_text(), re.MULTILINE) if info.exists() else []
    return names[0] if names else platform.processor()


def machine(device: "torch.device | None" = None) -> str:
    """The name of the GPU, or of the CPU and the number of cores that this process may use."""
    import torch

    is_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    return torch.cuda.get_device_name(device) if is_gpu else f"{processor()}, {plural(cpu_cores(), 'core')}"


def describe(device: "torch.device", precision: "torch.dtype") -> str:
    """Device and precision in words: ``NVIDIA H200, bfloat16`` or ``cpu, 2 threads, float32``."""
    import torch

    where = {"cuda": machine(), "cpu": f"cpu, {plural(torch.get_num_threads(), 'thread')}"}.get(
        device.type, device.type
    )
    return f"{where}, {str(precision).removeprefix('torch.')}"


def plural(count: int, noun: str) -> str:
    """``1 epoch``, ``2 epochs``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


# ---------------------------------------------------------------------------------------------- a script's start


def _exit_on_signal(number: int, _: FrameType | None) -> NoReturn:
    print("interrupted" if number == signal.SIGINT else "terminated", file=sys.stderr)
    sys.exit(128 + number)


def _is_imported_by_a_script() -> bool:
    file = getattr(sys.modules["__main__"], "__file__", None)
    return bool(file) and Path(file).resolve().parent in [REPO / name for name in ("src", "tools", "benchmarks")]


# Runs before a script imports PyTorch: pyproject.toml sorts plumbing before the libraries.
if _is_imported_by_a_script():
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, _exit_on_signal)
    # OpenMP threads spin while they wait, which slows down other processes on the same cores (CHANGELOG.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
