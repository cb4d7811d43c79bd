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
from plumbing.cli import REPO, ArgumentParser, UserError, choose_device, choose_precision, run_script
from plumbing.stop import Stopped, StopSignal

import pytest
import torch

CPU = torch.device("cpu")


def run_python(code: str, **options: object) -> subprocess.CompletedProcess:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([sys.executable, "-c", code], cwd=REPO / "src", text=True, check=False, **options)


@pytest.mark.parametrize(
    ("parse", "right", "wrong"),
    [
        (cli.run_name, {"long-run_2.1+x": "long-run_2.1+x"}, ("", "a/b", "..", ".hidden", "-x", "a b", "é", "a\n")),
        (cli.positive_int, {"1": 1}, ("0", "-1", "1.5", "1e3", "", "many", "²")),
        (cli.whole_number, {"0": 0}, ("-1", "0.5", "", str(2**63))),
        (cli.seconds, {"0": 0}, ("-1", "nan", "inf", "1 min", "")),
        (cli.positive_float, {"1e-3": 0.001}, ("0", "-1e-3", "nan", "inf", "fast", "")),
        (cli.fraction, {"1": 1}, ("0", "1.01", "90%")),
        (cli.image_size, {"32": 32, "4096": 4096}, ("31", "256.0", "", "4097")),
        (cli.which_checkpoint, {"best": "best", "0050": "50"}, ("Last", "-1", "1.5", "", "../best")),
    ],
)
def test_flag_values(parse: Callable, right: dict[str, object], wrong: tuple[str, ...]) -> None:
    assert {text: parse(text) for text in right} == right
    for text in wrong:
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            parse(text)
        assert repr(text) in str(caught.value)


def test_paths_are_taken_from_the_working_directory_then_from_the_repo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.existing_path("tests/test_cli.py") == REPO / "tests" / "test_cli.py"
    assert cli.existing_path("new/folder") == Path("new/folder")
    assert cli.existing_path("~") == Path.home()
    (tmp_path / "tests").mkdir()
    assert cli.existing_path("tests") == Path("tests")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--modle", "U"], "there is no --modle; did you mean --model?"),
        (["--mod", "U"], "there is no --mod; did you mean --model?"),  # no abbreviations
        (["--sa"], "there is no --sa; did you mean --save_path?"),  # too short to look alike
        (["--zzz"], "there is no --zzz ("),
        (["--name", "my", "run"], "unexpected 'run'; a path with spaces needs quotes"),
        (["--model", "V"], "no network is called 'V', and no file of that name ends in .pth or .pt; there are U, UNet"),
        (["--model", "U", "--model_name", "U"], "--model_name: not allowed with argument --model"),
    ],
)
def test_a_wrong_flag_is_one_line(flags: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    parser = ArgumentParser("Try.")
    parser.add_run_options({"U": "UNet", "UNet": "UNet"}, ("default", "lab3"), files=True)
    assert vars(parser.parse_run_args(["--model_name", "UNet"])).items() >= {"recipe": "lab3", "name": "lab3-U"}.items()
    with pytest.raises(SystemExit) as ended:
        parser.parse_run_args(flags)
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (2, 1)
    assert error.startswith("error: ") and said in error and error.endswith(" (--help shows all flags)\n")


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[torch.device]]:
    """Pretend to have GPUs; returns a list of the devices passed to ``torch.cuda.set_device``."""

    def arrange(count: int, capability: tuple[int, int] = (9, 0)) -> list[torch.device]:
        current: list[torch.device] = []
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        return current

    return arrange


@pytest.mark.parametrize(("cuda", "mps", "chosen"), [(2, True, "cuda:0"), (0, True, "mps"), (0, False, "cpu")])
def test_devices(cards: Callable, monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, chosen: str) -> None:
    current = cards(cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert str(choose_device("auto")) == chosen
    assert choose_device("cpu").type == "cpu"
    if cuda:
        assert choose_device("cuda:1") == current[-1] == torch.device("cuda", 1)
    for wanted in ("cuda:2", "cuda:x", "tpu", "cpu:1", *([] if cuda else ["cuda"]), *([] if mps else ["mps"])):
        with pytest.raises(UserError, match=rf"^--device {wanted}: .* no such device"):
            choose_device(wanted)


def test_each_rank_takes_its_own_card(cards: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    current = cards(2)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "2" if name == "WORLD_SIZE" else "1")
    monkeypatch.setattr(ranks.dist, "rendezvous", lambda _: iter(()))
    with pytest.raises(StopIteration):  # it would meet the others now
        ranks.join("auto")
    assert [str(device) for device in current] == ["cuda:1"]


def test_precision_of_gpus(cards: Callable) -> None:
    for capability, expected in (((7, 5), torch.float32), ((8, 0), torch.bfloat16)):
        cards(1, capability)
        assert choose_precision("auto", torch.device("cuda", 0)) == expected
    assert choose_precision("auto", torch.device("mps")) == choose_precision("fp32", CPU) == torch.float32
    assert choose_precision("bf16", CPU) == torch.bfloat16


@pytest.mark.parametrize(
    ("processor", "supported", "expected"),
    [
        ("Intel(R) Xeon(R) Platinum 8380", "avx512_bf16", torch.float32),
        ("Intel(R) Xeon(R) Processor", "amx_tile", torch.bfloat16),
        ("AMD EPYC 9R45", "avx512_bf16", torch.bfloat16),
        ("AMD EPYC 7B13", "", torch.float32),
    ],
)
def test_precision_of_cpus(
    processor: str, supported: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "processor", lambda: processor)
    for name in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name == supported)
    assert choose_precision("auto", CPU) == expected


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("no data set at x"), "error: no data set at x"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/there"), "error: /there: Permission denied"),
        (MemoryError(), "error: out of memory; try a smaller --batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate"), "error: out of memory; try"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "error: out of memory"),
        *((kind("a bug"), None) for kind in (RuntimeError, ValueError, OSError)),
    ],
)
def test_user_errors_are_one_line_and_bugs_keep_their_traceback(error: Exception, said: str | None) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit if said else type(error)) as ended:
        run_script(main)
    if said:  # which Python prints to stderr, with exit code 1
        assert ended.value.code.startswith(said) and "\n" not in ended.value.code


def test_a_closed_pipe_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_python("from plumbing.cli import *\nrun_script(lambda: print('x' * 100_000))", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_signal_ends_a_script_in_one_line() -> None:
    done = run_python(
        f"import os; __file__ = {str(REPO / 'src/a.py')!r}\nfrom plumbing import cli\ndef main():\n    try:\n"
        "        os.kill(os.getpid(), 15)\n    finally:\n        print('tidied')\ncli.run_script(main)"
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + 15, "tidied\n", "terminated\n")


def test_a_signal_during_the_exchange_between_ranks_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_max(number: int) -> int:
        os.kill(os.getpid(), signal.SIGTERM)  # after the number has been read
        return number

    with StopSignal() as stop, pytest.raises(Stopped):
        batches = stop.between(range(3))
        with monkeypatch.context() as patched:
            patched.setattr(ranks, "all_max", all_max)
            assert next(batches) == 0
        next(batches)


def test_the_second_signal_kills() -> None:
    done = run_python(
        "import os, signal\nfrom plumbing.stop import StopSignal\nwith StopSignal():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('not here', flush=True)"
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "still here\n")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc's allocator")
def test_freed_memory_is_kept() -> None:
    """Allocating again touches no new pages; by default all 16,384 are new."""
    code = (
        "import resource; from plumbing import cli\n{}\nfor _ in range(5):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n    bytearray(b'x') * 2**26\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    kept, given_back = (int(run_python(code.format(line)).stdout) for line in ("cli.keep_freed_memory()", ""))
    assert given_back > 10 * (kept + 1)  # at least, also where pages are huge: 2 MiB each
