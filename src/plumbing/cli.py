"""What the scripts share on the command line: flags, device and precision, signals, user-facing errors as one line."""

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
OUT_OF_MEMORY = (  # what the errors of PyTorch, cuBLAS and cuDNN say then
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "ALLOC_FAILED",
    "nable to find an engine",
    "nable to find a valid cuDNN algorithm",
)


class UserError(Exception):
    """A mistake that the user can correct; the message says what is wrong, where, and what to do."""


# ---------------------------------------------------------------------------------------------- a script's process


def keep_freed_memory() -> None:
    """Have the C library keep freed memory, where it would return large blocks to the system at once.

    The next training step, or the next decoded image, would wait for zeroed pages. It raises the peak a little.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # not glibc
            c_library = ctypes.CDLL("libc.so.6")
            m_mmap_max, m_trim_threshold = -4, -1  # of malloc.h
            c_library.mallopt(m_mmap_max, 0)
            c_library.mallopt(m_trim_threshold, 2**31 - 1)


def run_script(main: Callable[[], None]) -> None:
    """Call a script's main; a user's mistake ends it with one line and exit code 1, not with a traceback."""
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
            reason = "the disk is full, or takes no file of that size"
            sys.exit(f"error: {reason} ({error}); the checkpoints that were complete before still are")
        if error.filename is None:
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}")
    except (RuntimeError, MemoryError) as error:
        if "by peer" in str(error):
            sys.exit("error: another process of the run has ended; its checkpoints stay")
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        sys.exit(
            f"error: out of memory; try a smaller --batch_size or --image_size; what was saved is still there{reason}"
        )


# ---------------------------------------------------------------------------------------------- flags


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds each option's default to its help, except for switches and where there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default is not None and action.default is not False  # 0 is a default
        return super()._get_help_string(action) if has_default else action.help


class ArgumentParser(argparse.ArgumentParser):
    """Shows each option's default, answers a mistake in one line, and accepts no abbreviations."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line; an unknown flag is answered with one that begins so or looks alike."""
        unknown = re.match(r"unrecognized arguments: (--?[\w-]+)", message)
        if unknown:
            flags = self._option_string_actions
            begun = [flag for flag in flags if flag.startswith(unknown[1])]
            similar = begun or difflib.get_close_matches(unknown[1], flags, n=1)
            message = f"there is no {unknown[1]}" + (f"; did you mean {similar[0]}?" if similar else "")
        self.exit(2, f"error: {message} (--help shows all flags)\n")

    def add_run_options(self, networks: Mapping[str, str], recipes: Iterable[str], files: bool = False) -> None:
        """Add the flags of every script that works with a run.

        Args:
            networks: what may follow ``--model``, and the network that it means.
            recipes: the names that may follow ``--recipe``.
            files: whether a checkpoint file may follow ``--model`` instead.
        """
        self._networks = networks

        def network(text: str) -> str:
            if text not in networks:
                or_file = ", and no file of that name ends in .pth or .pt" if files else ""
                raise argparse.ArgumentTypeError(
                    f"no network is called {text!r}{or_file}; there are {', '.join(networks)}"
                )
            return networks[text]

        def network_or_file(text: str) -> str | Path:
            return existing_path(text) if text.endswith((".pth", ".pt")) else network(text)

        self.add_argument(
            "--model",
            metavar="NETWORK|FILE.pth" if files else "NETWORK",
            type=network_or_file if files else network,
            help=f"the network: {', '.join(networks)}"
            + ("; or a file of --save_path or of anywhere: a checkpoint or a bare state dict" if files else ""),
        )
        self.add_argument(
            "--model_name",
            metavar="NETWORK",
            type=network,
            help="as --model, and means --recipe lab3 where no other is given (report lab3's flag)",
        )
        self.add_argument("--recipe", choices=tuple(recipes), help="how to train, or was trained (default: default)")
        self.add_argument(
            "--name",
            type=run_name,
            help="the run's folder under --save_path and its files' prefix (default: U, R or the network's name; "
            "with another recipe in front: lab2-U)",
        )
        self.add_argument("--save_path", type=existing_path, default=SAVED_MODELS, help="folder of all runs")
        self.add_argument("--limit", type=positive_int, help="keep only so many images of each split, evenly spaced")
        self.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto takes a GPU if there is one")
        self.add_argument("--threads", type=positive_int, help="of the CPU (default: one for each core)")

    def parse_run_args(self, argv: list[str] | None) -> argparse.Namespace:
        """Parse the flags; each of ``model``, ``file`` and the run's ``name`` may be None."""
        args = self.parse_args(argv)
        if args.model_name:
            if args.model:
                self.error("--model and --model_name mean the same: give one of them")
            args.model, args.recipe = args.model_name, args.recipe or "lab3"
        args.file = None
        if isinstance(args.model, Path):
            args.file, args.model = args.model, None
            args.name = args.name or args.file.stem
        if args.model and not args.name:
            args.name = default_run_name(self._networks, args.model, args.recipe)
        return args


def default_run_name(networks: Mapping[str, str], network: str, recipe: str | None) -> str:
    """The name of a run that was given none: the shortest name of its network, a recipe in front."""
    short = min((name for name, meant in networks.items() if meant == network), key=len)
    return short if recipe in (None, "default") else f"{recipe}-{short}"


def shell(*parts: object) -> str:
    """A command, quoted so that it can be pasted."""
    return shlex.join(map(str, parts))


def existing_path(text: str) -> Path:
    """A typed path: from the working directory or, where nothing is there, from the repo's root."""
    path = Path(os.path.expanduser(text))  # an unknown ~user stays as it is
    return REPO / path if not path.exists() and (REPO / path).exists() else path


def run_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} cannot name a folder: letters, digits, _ . + - are allowed")
    return text


def number(words: str, lowest: float, highest: float, whole: bool = False) -> Callable[[str], float]:
    """A parser of a flag's value: a number between two, both included; ``words`` say which in the error's message."""

    def parse(text: str) -> float:
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = float("nan")
        if not lowest <= value <= highest or (whole and not text.isdecimal()):
            raise argparse.ArgumentTypeError(f"{text!r} is not {words}")
        return value

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
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(wanted: str, threads: int | None = None) -> "torch.device":
    """The device for ``--device``; auto takes CUDA, then Apple's GPU, then the CPU.

    Args:
        threads: of the CPU, for ``--threads``; None leaves PyTorch's choice.

    Raises:
        UserError: it is not there, or PyTorch was not built for it.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if wanted == "auto":
        wanted = next(kind for kind, count in counts.items() if count)
    kind, _, index = wanted.partition(":")
    if kind not in counts or not (index or "0").isdecimal():
        raise UserError(f"--device {wanted}: there are auto, {', '.join(counts)}, cuda:1, ...")
    if int(index or 0) >= counts[kind]:
        build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise UserError(
            f"--device {wanted}: PyTorch {torch.__version__} ({build}) finds no such device; --device auto takes what "
            "there is"
        )
    if kind != "cuda":
        return torch.device(kind)
    device = torch.device(kind, int(index or 0))
    capability, built = torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
    if not runs_on(capability, built):
        raise UserError(
            f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, and PyTorch "
            f"{torch.__version__} was built for {', '.join(built)}: take --device cpu, or a PyTorch built for this card"
        )
    torch.cuda.set_device(device)  # for what takes no device, such as torch.cuda.synchronize
    return device


def runs_on(capability: tuple[int, int], built: list[str]) -> bool:
    """Whether a card runs what PyTorch was built for, as listed by ``torch.cuda.get_arch_list``.

    Machine code (``sm_80``) runs on cards of the same major version that are not older (8.6), that of ``sm_90a`` on
    exactly this one; ``compute_90`` is compiled on the card, if that is not older.
    """
    for name in built:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)(\w?)", name)
        if match is None:  # of AMD
            return True
        code = (int(match[2]), int(match[3]))
        is_kin = match[4] != "a" and (match[1] == "compute" or code[0] == capability[0])
        if code == capability or (code < capability and is_kin):
            return True
    return not built


def choose_precision(wanted: str, device: "torch.device") -> "torch.dtype":
    """The dtype that the network computes in: auto takes bfloat16 where a training step is faster so.

    On a CPU that is by AMX, and by AMD's AVX-512 instructions; by Intel's alone, float32 is faster
    (benchmarks/README.md). A rule, not a timer: a seed gives the same run each time.
    """
    import torch

    if wanted == "auto":
        is_faster = {
            "cuda": lambda: torch.cuda.get_device_capability(device) >= (8, 0),
            "cpu": lambda: (
                getattr(torch.cpu, "_is_amx_tile_supported", bool)()
                or ("AMD" in processor() and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
            ),
            "mps": lambda: False,
        }
        wanted = "bf16" if is_faster[device.type]() else "fp32"
    return torch.bfloat16 if wanted == "bf16" else torch.float32


def processor() -> str:
    """The name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine() -> str:
    """The name of the machine's GPU, or of its CPU and the number of cores that this process may use."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()}, {plural(cpu_cores(), 'core')}"


def describe(device: "torch.device", precision: "torch.dtype") -> str:
    """Device and precision in words: ``NVIDIA H200, bfloat16``."""
    import torch

    where, note = device.type, ""
    if device.type == "cuda":
        count = torch.cuda.device_count()
        where = torch.cuda.get_device_name(device) + (f" ({device}, of {count})" if count > 1 else "")
        if torch.cuda.get_device_capability(device) < (8, 0):
            note = " (bfloat16 wants compute capability 8.0)"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        no_gpu = "" if torch.version.cuda is None else " (no GPU found)"
        where = f"cpu, {threads} {'thread' if threads == 1 else 'threads'}{no_gpu}"
    return f"{where}, {str(precision).removeprefix('torch.')}{note}"


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


# Of a script of this repository, before it imports PyTorch; pyproject.toml has plumbing imported before libraries.
if _is_imported_by_a_script():
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, _exit_on_signal)
    # While OpenMP's threads wait for each other they spin, which takes the core of the thread that is waited for where
    # other processes compute too (figures in CHANGELOG.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
