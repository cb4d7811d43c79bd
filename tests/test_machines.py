"""Windows, macOS, notebooks and services, imitated: held files, other shells, consoles, threads, GPUs and Pythons."""

import argparse
import ast
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from plumbing import cli, download, files
from plumbing.cli import REPO, ArgumentParser, UserError, choose_device, choose_precision
from plumbing.files import atomic_folder, atomic_write, locked
from plumbing.images import in_threads
from plumbing.stop import StopSignal

import pytest
import torch
from test_cli import run_python
from test_scripts import SCRIPTS
from torch import Tensor

import engine
import import_masks
import run
from recipes import RECIPES
from split import Split

CPU, MPS = torch.device("cpu"), torch.device("mps")
AS_SCRIPT = f"import sys\n__file__ = {str(REPO / 'src' / 'a.py')!r}\n"  # before cli is imported


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("write", [atomic_write, atomic_folder])
def test_a_held_file_is_waited_for_and_then_named(
    write: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, which refuses to replace what Excel or a virus scanner holds."""
    replace, target, failures, waited = os.replace, tmp_path / "R_history.csv", 3, []

    def held(source: Path, target: Path) -> None:
        if len(waited) < failures:
            raise PermissionError(errno.EACCES, "Access is denied", str(source), 5, str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", held)
    monkeypatch.setattr(files.time, "sleep", waited.append)
    with write(target):
        pass
    assert list(tmp_path.iterdir()) == [target]
    failures = 99
    with pytest.raises(PermissionError, match=r"another program.*new\.csv"), write(tmp_path / "new.csv"):
        pass
    assert 3 < sum(waited) < 10
    assert list(tmp_path.iterdir()) == [target]


def test_what_can_be_made_again_does_not_end_a_run(
    run_train: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def held(*_: object) -> None:
        raise PermissionError(errno.EACCES, "is held", "R_history.csv")

    monkeypatch.setattr(run, "write_history", held)
    run_train("--epochs", 2)
    assert (tmp_path / "R" / "R_epoch_final.pth").exists()
    assert "note: history, curves or page not written: [Errno 13] is held: 'R_history.csv'" in capsys.readouterr().err


def test_overwriting_keeps_the_checkpoints_of_a_run_whose_history_is_held(
    run_train: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_train("--epochs", 1)
    unlink = Path.unlink

    def held(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".csv":
            raise PermissionError(errno.EACCES, "is held", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", held)
    with pytest.raises(PermissionError):
        run_train("--epochs", 1, "--overwrite")
    assert {"R_best.pth", "R_last.pth", "R_epoch_final.pth"} <= {path.name for path in (tmp_path / "R").iterdir()}


def test_a_lock_takes_any_host_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Büro-\udc81")
    lock = tmp_path / ".lock"
    with locked(lock), pytest.raises(BlockingIOError, match=r"on Büro-\\udc81 since"), locked(lock):
        pass


def test_text_files_are_utf8() -> None:
    """Whatever the system's encoding is."""
    found = []
    for path in (REPO / name for name in ("src", "tools")):
        for file in path.rglob("*.py"):
            for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                name = getattr(call, "func", call)
                name = getattr(name, "attr", getattr(name, "id", ""))
                if not isinstance(call, ast.Call) or name not in ("open", "read_text", "write_text"):
                    continue
                words = {ast.unparse(word.value) for word in call.keywords if word.arg in ("encoding", "formats")}
                modes = [ast.unparse(value) for value in call.args[1:2]]
                if not words and not any("b" in mode or "os." in mode for mode in modes):
                    found.append(f"{file.name}, line {call.lineno}")
    assert found == []


# ---------------------------------------------------------------------------------------------- shells and names


def test_commands_are_quoted_for_the_shells_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = ("python", "src/train.py", "--data_path", r"C:\pets\oxford-iiit-pet-128", r"D:\R&D\my pets", "255,0,0")
    with monkeypatch.context() as patched:
        patched.setattr(os, "name", "nt")
        said = cli.shell(*parts)
    assert said == r'python src/train.py --data_path C:\pets\oxford-iiit-pet-128 "D:\R&D\my pets" "255,0,0"'
    assert cli.shell("a b") == "'a b'"


def test_powershell_may_split_a_colour(capsys: pytest.CaptureFixture) -> None:
    flags = ("photos", "masks", "--output", "o", "--foreground")
    split, whole = (import_masks.parse_args([*flags, *colour]) for colour in (("255", "0", "9"), ("255,0,9",)))
    assert split.foreground == whole.foreground
    assert len(import_masks.parse_args([*flags, "3", "--foreground", "7"]).foreground) == 2
    with pytest.raises(SystemExit):
        import_masks.parse_args([*flags, "3", "7"])
    assert "'3,7' is neither a value" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["aux", "con.1", "LPT1", "run."])
def test_names_that_windows_reserves_are_refused(name: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{name}' cannot name a folder"):
        cli.run_name(name)
    assert cli.run_name(f"x{name}x") == f"x{name}x"


def test_a_run_is_not_named_as_another_but_for_case(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """macOS would write r into R."""
    parser = ArgumentParser("Try.")
    parser.add_run_options({"U": "UNet", "UNet": "UNet"}, ("default",))
    (tmp_path / "R").mkdir()
    place = ["--model", "U", "--save_path", str(tmp_path)]
    assert parser.parse_run_args([*place, "--name", "R"]).name == "R"
    with pytest.raises(SystemExit):
        parser.parse_run_args([*place, "--name", "r"])
    assert f"--name r: {tmp_path / 'R'} is the same folder on Windows and macOS" in capsys.readouterr().err


def test_every_typed_path_knows_the_home_and_is_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for parse in (cli.new_path, cli.existing_path):
        assert parse("~/my\u00a0pets") == tmp_path / "my\u00a0pets"
        with pytest.raises(argparse.ArgumentTypeError, match=r"\\udcff' is not a path in UTF-8"):
            parse("pets\udcff")
    monkeypatch.setattr(os, "getcwd", lambda: "/pets\udcff")
    with pytest.raises(argparse.ArgumentTypeError, match="not a path in UTF-8"):
        cli.new_path("pets")
    taken = [path.name for path in (REPO / "tools").glob("*.py") if "type=Path" in path.read_text(encoding="utf-8")]
    assert taken == []


# ---------------------------------------------------------------------------------------------- output


def test_output_that_cannot_be_shown_is_escaped() -> None:
    code = AS_SCRIPT + "from plumbing import cli\ncli.run_script(lambda: print('é\\udcff'))"
    done = run_python(code, env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\xe9\\udcff\n", "")


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_script_works_without_stdout_or_stderr(closed: str, tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    command = f'"$0" "$1" "$2" --count 4 --size 48 48 {closed}>&-'
    words = ["sh", "-c", command, sys.executable, str(REPO / "tools" / "draw_pets.py"), str(folder)]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
    assert len(list((folder / "images").iterdir())) == 4


def test_a_closed_pipe_on_windows_is_no_traceback() -> None:
    code = "import os\nfrom plumbing import cli\ndef main():\n    os.name = 'nt'\n    raise OSError(22, 'Invalid')\n"
    done = run_python(code + "cli.run_script(main)")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


# ---------------------------------------------------------------------------------------------- threads and notebooks


def test_in_a_thread_no_signal_is_taken() -> None:
    before, found = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with StopSignal() as stop:
            found.extend(stop.between([1, 2]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [1, 2]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_scripts_signal_handlers_end_with_its_main(in_thread: bool) -> None:
    code = AS_SCRIPT + (
        "import os, signal, threading\nbefore = signal.getsignal(2)\n"
        "def work():\n    from plumbing import cli\n"
        "    cli.run_script(lambda: print(signal.getsignal(2) is before))\n"
        "    print(signal.getsignal(2) is before, os.environ['FOR_DISABLE_CONSOLE_CTRL_HANDLER'])\n"
    )
    code += "t = threading.Thread(target=work)\nt.start()\nt.join()" if in_thread else "work()"
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{in_thread}\nTrue 1\n", "")


def test_threads_bound_the_decoding_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_most_threads", None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cli.cpu_cores() == 8
    before, together = torch.get_num_threads(), threading.Barrier(2)
    choose_device("cpu", threads=1)
    torch.set_num_threads(before)
    assert cli.cpu_cores() == 1

    def meet(_: int) -> bool:
        try:
            together.wait(0.1)
        except threading.BrokenBarrierError:
            return False
        return True

    assert list(in_threads(meet, range(2))) == [False, False]


# ---------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize(("cuda", "driver", "is_said"), [(None, True, True), (None, False, False), ("13", True, False)])
def test_an_nvidia_card_that_pytorch_cannot_use_is_said(
    cuda: str | None, driver: bool, is_said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(shutil, "which", lambda name: name if driver else None)
    assert choose_device("auto") == choose_device("cpu") == CPU
    assert ("built without CUDA" in capsys.readouterr().err) == is_said


def test_a_cpu_beside_a_gpu_is_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    assert "NVIDIA" not in cli.machine(CPU) + cli.describe(CPU, torch.float32)
    assert cli.describe(torch.device("cuda", 0), torch.bfloat16) == "NVIDIA H200, bfloat16"


@pytest.mark.parametrize(("name", "dtype"), [("gfx906", "float32"), ("gfx1030", "float32"), ("gfx90a", "bfloat16")])
def test_amd_cards_that_emulate_bfloat16_compute_in_float32(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(gcnArchName=f"{name}:xnack-"))
    assert choose_precision("auto", torch.device("cuda", 0)) == getattr(torch, dtype)


def test_a_macs_processor_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="Apple M4\n"))
    assert cli.processor() == "Apple M4"


def test_apples_gpu_takes_no_channels_last() -> None:
    assert cli.memory_format(MPS) == torch.contiguous_format
    assert cli.memory_format(CPU) == cli.memory_format(torch.device("cuda")) == torch.channels_last


@pytest.mark.parametrize(("error", "chosen"), [(0.001, MPS), (0.02, CPU), (float("nan"), CPU)])
def test_apples_gpu_is_compared_with_the_cpu(
    error: float, chosen: torch.device, drawn_pets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    compute = engine.loss_and_gradient

    def on_device(device: torch.device, *arguments: object) -> Tensor:
        return compute(CPU, *arguments) * torch.tensor([1, 1 + error if device == MPS else 1])

    monkeypatch.setattr(engine, "loss_and_gradient", on_device)
    config = RECIPES["default"]("SegFormer")
    assert engine.try_device(MPS, config) == chosen
    assert ("note: the GPU computes" in capsys.readouterr().err) == (chosen == CPU)
    assert engine.try_device(CPU, config) == CPU


@pytest.mark.parametrize(
    ("values", "memory", "fits"), [(2**31, 2**40, False), (2**30, 2**31, False), (2**30, 2**33, True)]
)
def test_a_split_lies_on_apples_gpu_where_it_fits(
    values: int, memory: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: memory)
    pixels = SimpleNamespace(numel=lambda: values, to=lambda device: device)
    moved = Split(Path("pets"), "train", [], pixels).to(MPS).pixels
    assert moved == (MPS if fits else pixels)


# ---------------------------------------------------------------------------------------------- Python


def test_an_older_python_is_one_line() -> None:
    """The check comes before what an older Python cannot import, and scripts have no newer syntax."""
    done = run_python("import sys\nsys.version_info = (3, 9, 1)\nimport plumbing.cli")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: Python 3.11 or newer is needed") and done.stderr.count("\n") == 1
    for script in [*SCRIPTS, "src/plumbing/__init__.py", "src/plumbing/cli.py"]:
        tree = ast.parse((REPO / script).read_text(encoding="utf-8"), script, feature_version=(3, 9))
        imports = [ast.unparse(node) for node in tree.body if isinstance(node, ast.ImportFrom)]
        ours = [line for line in imports if line.split()[1].split(".")[0] not in sys.stdlib_module_names]
        assert "cli" in script or "__init__" in script or ("plumbing" in ours[0] and "cli" in ours[0])


def test_what_a_download_needs_is_asked_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives = {"https://example.invalid/a.tar.gz": "0" * 32}

    def refuse(*_: object) -> None:
        raise OSError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")

    monkeypatch.setattr(download, "_fetch", refuse)
    monkeypatch.setattr(download.tarfile, "data_filter", None, raising=False)
    with pytest.raises(UserError, match=r"(?s)download failed.*Install Certificates\.command.*a hint"):
        download.download_archives(archives, tmp_path / "pets", "a hint")
    monkeypatch.delattr(download.tarfile, "data_filter")
    with pytest.raises(UserError, match=r"needs Python 3\.11\.4"):
        download.download_archives(archives, tmp_path / "pets", "a hint")
