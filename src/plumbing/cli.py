"""Command line of the scripts: flags, device and precision, signals, user-facing errors as one line."""

import argparse
import ctypes
import difflib
import errno
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"error: Python 3.11 or newer is needed, and this is {platform.python_version()}")

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
    except OSError as error:
        is_closed_on_windows = os.name == "nt" and error.errno == errno.EINVAL and error.filename is None
        if isinstance(error, BrokenPipeError) or is_closed_on_windows:  # the reader (`| head`) has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
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
    finally:  # notebooks live on
        for number, handler in _handlers_before.items():
            signal.signal(number, handler)


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
        """Exit with code 2 and one line; suggest what was meant by an unknown flag or word."""
        flags, (_, _, unknown) = self._option_string_actions, message.partition("unrecognized arguments: ")
        if match := re.match(r"--?[\w-]+", unknown):
            begun = [flag for flag in flags if flag.startswith(match[0])]
            similar = begun or difflib.get_close_matches(match[0], flags, n=1)
            message = f"there is no {match[0]}" + (f"; did you mean {similar[0]}?" if similar else "")
        elif unknown:
            is_photo = "--input" in flags and os.path.exists(unknown.split()[0])
            hint = f"did you mean --input {unknown}?" if is_photo else "a path with spaces needs quotes"
            message = f"unexpected {unknown!r}; {hint}"
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
        add("--recipe", choices=tuple(recipes), help="the recipe of the training (default: default)")
        add("--name", type=run_name, help="the run's folder and file prefix (default: U, R, SegFormer, lab2-U, ...)")
        add("--save_path", type=existing_path, default=SAVED_MODELS, help="folder of all runs")
        add("--limit", type=positive_int, help="number of images of each split, evenly spaced (default: all)")
        add("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto takes a GPU if there is one")
        add("--threads", type=positive_int, help="CPU threads (default: one for each core)")

    def parse_run_args(self, argv: list[str] | None) -> argparse.Namespace:
        """Parse the flags of ``add_run_options``; ``model``, ``file`` and ``name`` may be None."""
        args = self.parse_args(argv)
        args.save_path = shown(args.save_path)
        if args.model_name:
            args.model, args.recipe = args.model_name, args.recipe or "lab3"
        args.file = args.model if isinstance(args.model, Path) else None
        if args.file:
            args.model, args.name = None, args.name or args.file.stem
        if args.model and not args.name:
            args.name = default_run_name(self._networks, args.model, args.recipe)
        if args.name and not args.file:
            same = [path.name for path in args.save_path.glob("*") if path.name.casefold() == args.name.casefold()]
            if same and args.name not in same:
                self.error(f"--name {args.name}: {args.save_path / same[0]} is the same folder on Windows and macOS")
        return args


def default_run_name(networks: Mapping[str, str], network: str, recipe: str | None) -> str:
    """The default of ``--name``: the network's shortest name, after the recipe's unless that is ``default``."""
    short = min((name for name, meant in networks.items() if meant == network), key=len)
    return short if recipe in (None, "default") else f"{recipe}-{short}"


def shell(*parts: object) -> str:
    """Quote a command for pasting into a shell; on Windows into cmd and PowerShell alike."""
    if os.name == "nt":
        return " ".join(part if re.fullmatch(r"[\w.:\\/+=-]+", part) else f'"{part}"' for part in map(str, parts))
    return shlex.join(map(str, parts))


def new_path(text: str) -> Path:
    """Resolve a typed path from the working directory. One that is not UTF-8 is refused: checkpoints cannot name it."""
    path = Path(os.path.expanduser(text))  # an unknown ~user stays as it is
    if re.search("[\ud800-\udfff]", str(path.absolute())):
        raise argparse.ArgumentTypeError(f"{text!r} is not a path in UTF-8; rename the folder")
    return path


def existing_path(text: str) -> Path:
    """Resolve a typed path: from the working directory or, if nothing is there, from the repo's root."""
    path = new_path(text)
    return shown(REPO / path) if not path.exists() and (REPO / path).exists() else path


def shown(path: Path) -> Path:
    """The path relative to the working directory, if it lies below: easier to read."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def run_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.+-]*[A-Za-z0-9_+-])?", text):
        allowed = "letters, digits, _ . + - are allowed, and no . at the end"
        raise argparse.ArgumentTypeError(f"{text!r} cannot name a folder: {allowed}")
    if re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)", text):
        raise argparse.ArgumentTypeError(f"{text!r} cannot name a folder on Windows")
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


_most_threads: int | None = None  # --threads


def cpu_cores() -> int:
    """Number of cores that this process may use, at most ``--threads``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _most_threads or cores)


def choose_device(wanted: str, threads: int | None = None) -> "torch.device":
    """Choose the device; ``auto`` takes CUDA, then Apple's GPU, then the CPU.

    Args:
        threads: of the CPU, also for decoding; None leaves PyTorch's choice.

    Raises:
        UserError: PyTorch finds no such device.
    """
    global _most_threads
    import torch

    if threads:
        torch.set_num_threads(threads)
        _most_threads = threads
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if wanted == "auto":
        wanted = next(kind for kind, count in counts.items() if count)
        if wanted == "cpu" and not torch.version.cuda and shutil.which("nvidia-smi"):
            where = "https://pytorch.org/get-started/locally"
            print(f"note: this PyTorch is built without CUDA; one for your NVIDIA GPU: {where}", file=sys.stderr)
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
        architecture = torch.version.hip and torch.cuda.get_device_properties(device).gcnArchName
        if architecture and not re.match("gfx(908|90a|94|95|11|12)", architecture):  # older AMD GPUs emulate it
            wanted = "fp32"
    if wanted == "auto" and device.type == "cpu":
        amx, avx512 = (getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("amx_tile", "avx512_bf16"))
        wanted = "bf16" if amx or (avx512 and "AMD" in processor()) else "fp32"
    return torch.bfloat16 if wanted == "bf16" else torch.float32


def memory_format(device: "torch.device") -> "torch.memory_format":
    """channels_last, which is faster, but not on Apple's GPU, where PyTorch before 2.14 got it silently wrong."""
    import torch

    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def processor() -> str:
    """The name of the CPU."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    names = re.findall(r"^model name\s*: (.+)", text, re.MULTILINE)
    return names[0] if names else platform.processor()


def machine(device: "torch.device | None" = None) -> str:
    """The name of the GPU, or of the CPU and the number of cores that this process may use."""
    import torch

    is_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    return torch.cuda.get_device_name(device) if is_gpu else f"{processor()}, {plural(cpu_cores(), 'core')}"


def describe(device: "torch.device", precision: "torch.dtype") -> str:
    """Device and precision in words: ``NVIDIA H200, bfloat16`` or ``cpu, 2 threads, float32``."""
    import torch

    where = machine(device) if device.type == "cuda" else device.type
    where += f", {plural(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else ""
    return f"{where}, {str(precision).removeprefix('torch.')}"


def plural(count: int, noun: str) -> str:
    """``1 epoch``, ``2 epochs``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


# ---------------------------------------------------------------------------------------------- a script's start


_handlers_before: dict[int, Any] = {}


def _exit_on_signal(number: int, _: FrameType | None) -> NoReturn:
    print("interrupted" if number == signal.SIGINT else "terminated", file=sys.stderr)
    sys.exit(128 + number)


def _is_imported_by_a_script() -> bool:
    file = getattr(sys.modules["__main__"], "__file__", None)
    return bool(file) and Path(file).resolve().parent in [REPO / name for name in ("src", "tools", "benchmarks")]


# Runs before a script imports PyTorch: pyproject.toml sorts plumbing before the libraries.
if _is_imported_by_a_script():
    if threading.current_thread() is threading.main_thread():
        for _number in (signal.SIGINT, signal.SIGTERM):
            _handlers_before[_number] = signal.signal(_number, _exit_on_signal)
    if not sys.stdout or not sys.stderr:  # closed, or Windows' pythonw
        _nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        sys.stdout, sys.stderr = sys.stdout or _nowhere, sys.stderr or _nowhere
    for _stream in (sys.stdout, sys.stderr):
        if hasattr(_stream, "reconfigure"):  # not in a notebook
            _stream.reconfigure(errors="backslashreplace")  # for names that the terminal cannot show
    # Intel's Fortran runtime aborts the process at Ctrl-C on Windows, before Python hears of it.
    os.environ.setdefault("FOR_DISABLE_CONSOLE_CTRL_HANDLER", "1")
    # Operations that Apple's GPU lacks are done on the CPU.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    # OpenMP threads spin while they wait, which slows down other processes on the same cores (CHANGELOG.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
