"""cli.py: flags, device and precision, errors as one line, signals."""

import argparse
import errno
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from plumbing import cli, ranks
from plumbing.cli import (
    REPO,
    ArgumentParser,
    UserError,
    choose_device,
    choose_precision,
    run_script,
)
from plumbing.stop import StopSignal

import pytest
import torch

CPU = torch.device("cpu")


def run_python(code: str, **options: object) -> subprocess.CompletedProcess:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([sys.executable, "-c", code], cwd=REPO / "src", text=True, check=False, **options)


# ---------------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (cli.run_name, "long-run_2.1+x", "long-run_2.1+x"),
        (cli.positive_int, "1", 1),
        (cli.whole_number, "0", 0),
        (cli.seconds, "0", 0),
        (cli.positive_float, "1e-3", 0.001),
        (cli.fraction, "1", 1),
        (cli.image_size, "32", 32),
        (cli.image_size, "4096", 4096),
        (cli.which_checkpoint, "best", "best"),
        (cli.which_checkpoint, "0050", "50"),
    ],
)
def test_flag_values(kind: Callable, text: str, value: object) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (cli.run_name, ("", "a/b", "..", ".hidden", "-x", "a b", "é", "a\n")),
        (cli.positive_int, ("0", "-1", "1.5", "1e3", "", "many", "²")),
        (cli.whole_number, ("-1", "0.5", "", "²", str(2**63))),
        (cli.seconds, ("-1", "nan", "inf", "1 min", "")),
        (cli.positive_float, ("0", "-1e-3", "nan", "inf", "fast", "")),
        (cli.fraction, ("0", "1.01", "90%")),
        (cli.image_size, ("31", "0", "-32", "256.0", "", "4097", "10000000")),
        (cli.which_checkpoint, ("Last", "-1", "1.5", "", "../best")),
    ],
)
def test_refused_flag_values_are_shown(kind: Callable, texts: tuple[str, ...]) -> None:
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            kind(text)
        assert str(caught.value).startswith((repr(text), text or "''"))


def test_a_typed_path_is_taken_from_here_or_else_from_the_repos_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPO / "src")
    assert cli.existing_path("train.py") == Path("train.py")
    assert cli.existing_path("tests/test_cli.py") == REPO / "tests" / "test_cli.py"
    assert cli.existing_path("new/folder") == Path("new/folder")
    assert cli.existing_path("~") == Path.home()
    assert cli.existing_path("~no-such-user/x") == Path("~no-such-user/x")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    assert cli.existing_path("tests") == Path("tests")


@pytest.fixture
def parser() -> ArgumentParser:
    parser = ArgumentParser("Try.")
    parser.add_run_options({"U": "UNet", "UNet": "UNet"}, ("default", "lab2"), files=True)
    parser.add_argument("--quick", action="store_true", help="or slow")
    return parser


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--modle", "U"], "there is no --modle; did you mean --model?"),
        (["--mod", "U"], "there is no --mod; did you mean --model?"),  # no abbreviations
        (["--sa"], "there is no --sa; did you mean --save_path?"),  # too short to look alike
        (["--save-path", "x"], "there is no --save-path; did you mean --save_path?"),
        (["--zzz"], "there is no --zzz ("),
        (["--model", "V"], "no network is called 'V', and no file of that name ends in .pth or .pt; there are U, UNet"),
        (["--model", "U", "--recipe", "lab4"], "lab4"),
    ],
)
def test_a_wrong_flag_is_one_line(
    parser: ArgumentParser, flags: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser.parse_run_args(flags)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.endswith(" (--help shows all flags)\n")
    assert said in error
    assert error.count("\n") == 1


# ---------------------------------------------------------------------------------------------- device and precision


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[torch.device]]:
    """Let there be so many GPUs, of a compute capability; returns a list of those that were made the current one."""

    def arrange(count: int, capability: tuple[int, int] = (9, 0)) -> list[torch.device]:
        chosen: list[torch.device] = []
        for name, value in (
            ("device_count", lambda: count),
            ("get_device_capability", lambda _: capability),
            ("get_device_name", lambda device: f"Card {device.index}"),
            ("get_arch_list", lambda: ["sm_75", "sm_80", "sm_90a", "compute_120"]),
            ("set_device", chosen.append),
        ):
            monkeypatch.setattr(torch.cuda, name, value)
        return chosen

    return arrange


@pytest.mark.parametrize(("cuda", "mps", "chosen"), [(2, True, "cuda"), (0, True, "mps"), (0, False, "cpu")])
def test_auto_takes_what_is_there(
    cards: Callable, monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, chosen: str
) -> None:
    cards(cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto").type == chosen
    assert choose_device("cpu").type == "cpu"
    for wanted in (
        "cuda:2",
        "cuda:x",
        "tpu",
        "cpu:1",
        *(("cuda",) if not cuda else ()),
        *(("mps",) if not mps else ()),
    ):
        with pytest.raises(UserError, match=rf"^--device {wanted}: "):
            choose_device(wanted)


def test_of_two_gpus_the_named_one_is_used_or_the_first(cards: Callable) -> None:
    current = cards(2)
    for wanted, index in (("auto", 0), ("cuda", 0), ("cuda:1", 1)):
        device = choose_device(wanted)
        assert (str(device), current.pop()) == (f"cuda:{index}", device)
        assert cli.describe(device, torch.bfloat16) == f"Card {index} (cuda:{index}, of 2), bfloat16"
    cards(1)
    assert cli.describe(choose_device("auto"), torch.bfloat16) == "Card 0, bfloat16"


def test_each_process_of_torchrun_takes_its_own_card_and_no_other(
    cards: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = cards(2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="LOCAL_RANK is not: start the processes by torchrun"):
        ranks.join("auto")
    for name, value in {"RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"^--device cuda:2: PyTorch .* no such device"):
        ranks.join("auto")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(ranks.dist, "rendezvous", lambda _: iter(()))
    with pytest.raises(StopIteration):  # it would meet the others now
        ranks.join("auto")
    assert [str(device) for device in current] == ["cuda:1"]


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((6, 1), False),
        ((7, 0), False),  # older than sm_75, of its major version
        ((7, 5), True),
        ((8, 0), True),
        ((8, 9), True),  # by sm_80
        ((9, 0), True),
        ((9, 1), False),  # sm_90a is for 9.0 alone
        ((10, 0), False),
        ((12, 0), True),  # by compute_120, compiled on the card
        ((13, 0), True),
    ],
)
def test_a_card_that_pytorch_was_not_built_for_is_named(
    cards: Callable, capability: tuple[int, int], runs: bool
) -> None:
    cards(1, capability)
    if runs:
        assert choose_device("auto").type == "cuda"
        return
    major, minor = capability
    with pytest.raises(UserError, match=rf"^Card 0 has compute capability {major}\.{minor}, .*take --device cpu"):
        choose_device("auto")


def test_cards_without_bfloat16_compute_in_float32_and_that_is_said(cards: Callable) -> None:
    cards(1, (7, 5))
    device = choose_device("cuda")
    precision = choose_precision("auto", device)
    assert cli.describe(device, precision) == "Card 0, float32 (bfloat16 wants compute capability 8.0)"
    cards(1, (8, 0))
    assert choose_precision("auto", device) == torch.bfloat16


def test_precision() -> None:
    assert choose_precision("bf16", CPU) == torch.bfloat16
    assert choose_precision("fp32", CPU) == torch.float32
    assert choose_precision("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize(
    ("processor", "avx512", "amx", "precision"),
    [
        ("Intel(R) Xeon(R) Platinum 8380", True, False, torch.float32),
        ("Intel(R) Xeon(R) Processor", True, True, torch.bfloat16),
        ("AMD EPYC 9R45", True, False, torch.bfloat16),
        ("AMD EPYC 7B13", False, False, torch.float32),
        ("", False, False, torch.float32),
    ],
)
def test_auto_takes_bfloat16_on_a_cpu_where_it_is_faster(
    processor: str, avx512: bool, amx: bool, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "processor", lambda: processor)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert choose_precision("auto", CPU) == precision


# ---------------------------------------------------------------------------------------------- a script's process


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("no data set at x"), "error: no data set at x"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: the disk is full"),
        (OSError(errno.EFBIG, "File too large"), "error: the disk is full, or takes no file of that size"),
        (PermissionError(errno.EACCES, "Permission denied", "/there"), "error: /there: Permission denied"),
        (MemoryError(), "error: out of memory; try a smaller --batch_size"),
        (RuntimeError("CUDA out of memory. Tried\nto allocate"), "error: out of memory; try a smaller --batch_size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "error: out of memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "error: out of mem",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "error: out of memory; try a smaller --batch_size"),
        (RuntimeError("GET was unable to find an engine to execute this computation"), "error: out of memory; try a"),
        (RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"), "error: out of memory; try a"),
        *((kind("a bug"), None) for kind in (RuntimeError, ValueError, OSError)),
    ],
)
def test_a_users_mistake_is_one_line_and_a_bug_keeps_its_traceback(error: Exception, said: str | None) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit if said else type(error)) as ended:
        run_script(main)
    if said:
        assert isinstance(ended.value.code, str)  # which Python prints to stderr, with exit code 1
        assert ended.value.code.startswith(said)
        assert "\n" not in ended.value.code


def test_a_reader_that_leaves_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_python("from plumbing.cli import *\nrun_script(lambda: print('x' * 100_000))", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "interrupted\n"), (signal.SIGTERM, "terminated\n")])
def test_a_signal_before_there_is_something_to_save_is_one_line(number: int, said: str) -> None:
    code = (
        f"import os; __file__ = {str(REPO / 'src/a.py')!r}\nfrom plumbing import cli\ndef main():\n    try:\n"
        f"        os.kill(os.getpid(), {int(number)})\n    finally:\n        print('tidied')\ncli.run_script(main)"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "tidied\n", said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_only_noted_and_handlers_come_back(number: int, capsys: pytest.CaptureFixture) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ValueError, match="within"), StopSignal() as stop:
        assert stop.number == 0
        os.kill(os.getpid(), number)
        assert stop.number == number
        raise ValueError("within")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.Signals(number).name in capsys.readouterr().err


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_kills(second: int) -> None:
    done = run_python(
        "import os, signal\nfrom plumbing.stop import StopSignal\nwith StopSignal():\n"
        f"    os.kill(os.getpid(), signal.SIGINT)\n    print('still here', flush=True)\n"
        f"    os.kill(os.getpid(), {int(second)})\n    print('not here', flush=True)"
    )
    assert (done.returncode, done.stdout) == (-second, "still here\n")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc's allocator")
def test_freed_memory_is_kept() -> None:
    """What is allocated again brings no new pages; without ``start`` all its 16,384 are new."""
    code = (
        "import resource; from plumbing import cli\n{}\nfor _ in range(5):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n    bytearray(b'x') * 2**26\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    kept, given_back = (int(run_python(code.format(line)).stdout) for line in ("cli.keep_freed_memory()", ""))
    assert kept < 10
    assert given_back > 10 * (kept + 1)  # at least, also where pages are huge: 2 MiB each
