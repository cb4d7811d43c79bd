import argparse
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import cli
from cli import (
    ArgumentParser,
    StopSignal,
    UserError,
    choose_device,
    choose_precision,
    describe,
    image_side,
    model_letter,
    positive_float,
    positive_int,
    run_name,
    run_script,
    which_checkpoint,
    whole_number,
)

SOURCE = Path(options.__file__).parent


@pytest.fixture(autouse=True)
def handlers_restored() -> Iterator[None]:
    """``run_script`` sets one for SIGTERM and leaves it, as a script should."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (model_letter, "U", "U"),
        (model_letter, "UNet", "U"),
        (model_letter, "R", "R"),
        (model_letter, "ResNet34_UNet", "R"),
        (run_name, "long-run_2.1+x", "long-run_2.1+x"),
        (positive_int, "1", 1),
        (whole_number, "0", 0),
        (positive_float, "1e-3", 0.001),
        (image_side, "32", 32),
        (image_side, "100", 100),
        (which_checkpoint, "best", "best"),
        (which_checkpoint, "0050", "50"),
    ],
)
def test_flag_values(kind: Callable, text: str, value: object) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((model_letter, text) for text in ("u", "ResNet", "", "U ")),
        *((run_name, text) for text in ("", "a/b", "..", ".hidden", "-x", "a b", "é", "a\n")),
        *((positive_int, text) for text in ("0", "-1", "1.5", "1e3", "", "many", "²")),
        *((whole_number, text) for text in ("-1", "0.5", "", "²")),
        *((positive_float, text) for text in ("0", "-1e-3", "nan", "inf", "fast", "")),
        *((image_side, text) for text in ("31", "0", "-32", "256.0", "")),
        *((which_checkpoint, text) for text in ("Last", "-1", "1.5", "", "../best")),
    ],
)
def test_refused_flag_values_are_shown(kind: Callable, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        kind(text)
    assert (repr(text) if text != "31" else text) in str(caught.value)


def test_help_shows_defaults_but_not_of_switches() -> None:
    parser = ArgumentParser("Try.")
    parser.add_argument("--batch_size", type=int, default=32, help="images")
    parser.add_argument("--quick", action="store_true", help="or slow")
    parser.add_argument("--limit", type=int, help="all if not given")
    said = " ".join(parser.format_help().split())
    assert "images (default: 32)" in said
    assert said.endswith("--quick or slow --limit LIMIT all if not given")


def test_run_is_named_by_its_model_and_abbreviations_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser("Try.")
    parser.add_run_options()
    assert parser.parse_run_args(["--model", "UNet"]).name == "U"
    assert parser.parse_run_args(["--model", "U", "--name", "tall"]).name == "tall"
    assert parser.parse_run_args(["--name", "tall"]).model is None
    for flags, said in (
        ([], "--model U or --model R"),
        (["--mod", "U"], "--mod"),
        (["--model", "V"], "'V' is none of U, UNet, R, ResNet34_UNet"),
        (["--model", "U", "--device", "tpu"], "tpu"),
    ):
        with pytest.raises(SystemExit) as ended:
            parser.parse_run_args(flags)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- device and precision


@pytest.mark.parametrize(("cuda", "mps", "chosen"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto").type == chosen
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("wanted", ["cuda", "mps"])
def test_device_that_is_not_there_is_a_users_mistake(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"--device {wanted}: .*--device auto"):
        choose_device(wanted)


def test_precision() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("bf16", cpu) == torch.bfloat16
    assert choose_precision("fp32", cpu) == torch.float32
    assert choose_precision("auto", torch.device("mps")) == torch.float32
    assert choose_precision("auto", cpu) in (torch.bfloat16, torch.float32)
    assert "cpu" in describe(cpu, torch.bfloat16)
    assert "bfloat16" in describe(cpu, torch.bfloat16)


# ---------------------------------------------------------------------------------------------- a mistake in one line


def failing(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("no data set at x"), "error: no data set at x"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/there"), "error: /there: Permission denied"),
        (RuntimeError("CUDA out of memory. Tried\nto allocate"), "error: out of memory; try a smaller --batch_size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "error: out of memory"),
    ],
)
def test_script_ends_with_one_line_and_code_1(error: Exception, said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run_script(failing(error))
    assert isinstance(ended.value.code, str)  # which Python prints to stderr, with exit code 1
    assert ended.value.code.startswith(said)
    assert "\n" not in ended.value.code


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("a bug"), OSError("a bug")])
def test_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="a bug"):
        run_script(failing(error))


def test_ctrl_c_before_there_is_something_to_save(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_script(failing(KeyboardInterrupt()))
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_sigterm_tidies_up() -> None:
    tidied = []

    def main() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            tidied.append(True)

    with pytest.raises(SystemExit) as ended:
        run_script(main)
    assert ended.value.code == 143
    assert tidied


def run_python(code: str, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True, **options)


def test_user_error_as_a_process_sees_it() -> None:
    done = run_python("from cli import *\ndef main(): raise UserError('no data')\nrun_script(main)")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: no data\n")


def test_reader_that_leaves_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = "from cli import *\nrun_script(lambda: print('x' * 100_000))"
    done = subprocess.run([sys.executable, "-c", code], cwd=SOURCE, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


# ---------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_only_noted_and_handlers_come_back(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert stop.number == 0
        os.kill(os.getpid(), number)
        assert stop.number == number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert number.name in capsys.readouterr().err


def test_handlers_come_back_after_an_error_too() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="within"), StopSignal():
        raise ValueError("within")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_kills(second: signal.Signals) -> None:
    done = run_python(
        "import os, signal\nfrom cli import StopSignal\nwith StopSignal():\n"
        f"    os.kill(os.getpid(), signal.SIGINT)\n    print('still here', flush=True)\n"
        f"    os.kill(os.getpid(), {int(second)})\n    print('not here', flush=True)"
    )
    assert (done.returncode, done.stdout) == (-second, "still here\n")
