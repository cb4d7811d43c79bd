"""What every script keeps to: --help explains each flag, a mistake is one line, and it runs from any folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from plumbing.cli import REPO

import pytest

from recipes import RECIPES

SCRIPTS = sorted(
    path.relative_to(REPO).as_posix()
    for folder in ("src", "tools")
    for path in (REPO / folder).glob("*.py")
    if "__main__" in path.read_text(encoding="utf-8")
)
OCCUPIED = str(REPO / "tests")  # a folder of other files
MISTAKES = {  # flags that are right in themselves, but not what is there
    "src/compare.py": ["R", "U", "--save_path", "nowhere"],
    "src/evaluate.py": ["--model", "R", "--save_path", "nowhere"],
    "src/inference.py": ["--model", "nowhere.pth"],
    "src/oxford_pet.py": ["--download", "--data_path", OCCUPIED],
    "src/train.py": ["--model", "R", "--data_path", "nowhere"],
    "tools/check_data.py": ["nowhere"],
    "tools/draw_pets.py": [OCCUPIED],
    "tools/import_masks.py": ["nowhere", "masks", "--output", "copy"],
    "tools/export_onnx.py": ["--model", "R", "--save_path", "nowhere"],
    "tools/shrink_data.py": ["nowhere", "copy"],
}

# Imports once what takes seconds; then each command is a process of its own, as `python SCRIPT FLAGS` makes it.
DRIVER = """
import json, os, runpy, sys
import cv2, torch
sys.path.remove("")
codes = []
for number, (folder, script, *flags) in enumerate(json.load(sys.stdin)):
    process = os.fork()
    if not process:
        for name, descriptor in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{number}.{name}", os.O_CREAT | os.O_WRONLY), descriptor)
        os.chdir(folder)
        sys.argv, sys.path[:0] = [script, *flags], [os.path.dirname(script)]
        code = 0
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str):
                code = print(code, file=sys.stderr) or 1
        sys.stdout.flush()
        os._exit(code)  # taking PyTorch down would take a second
    codes.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
json.dump(codes, sys.stdout)
"""


Results = dict[tuple[str, str], subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each script did, by (script, what was typed)."""
    cases = {}
    for script in SCRIPTS:
        mistake = MISTAKES.get(script, ["nowhere"])
        cases[script, "help"] = (REPO, script, "--help")
        cases[script, "typo"] = (REPO, script, *mistake, "--hepl")
        cases[script, "mistake"] = (REPO / "src", os.path.relpath(script, "src"), *mistake)
    folder = tmp_path_factory.mktemp("scripts")
    commands = json.dumps(list(cases.values()), default=str)
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER], input=commands, stdout=subprocess.PIPE, text=True, check=True, cwd=folder
    )
    results = {}
    for number, (case, code) in enumerate(zip(cases, json.loads(driver.stdout), strict=True)):
        out, err = ((folder / f"{number}.{name}").read_text() for name in ("out", "err"))
        results[case] = subprocess.CompletedProcess(cases[case], code, out, err)
    return results


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_each_flag(script: str, done: Results) -> None:
    shown = done[script, "help"]
    assert (shown.returncode, shown.stderr) == (0, "")
    flags = re.findall(r"\n  (-\S+.*(?:\n {3,}.*)*)", shown.stdout)
    assert flags[0].startswith("-h, --help")
    for flag in flags:
        assert re.search(r"\s{2,}\S", flag), f"{flag} is not explained"
        assert "(default: False)" not in flag
        assert "-" not in re.search(r"--(\S+)", flag)[1]  # underscores, as in the reports


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_mistyped_flag_is_one_line_with_a_suggestion(script: str, done: Results) -> None:
    typo = done[script, "typo"]
    assert (typo.returncode, typo.stdout) == (2, "")
    assert typo.stderr == "error: there is no --hepl; did you mean --help? (--help shows all flags)\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_users_mistake_is_one_line(script: str, done: Results) -> None:
    mistake = done[script, "mistake"]
    assert mistake.returncode == 1
    assert re.fullmatch(r"error: .*(nowhere|/tests|requirements-onnx).*\n", mistake.stderr)


def test_help_of_training_shows_the_recipes_defaults(done: Results) -> None:
    text = " ".join(done["src/train.py", "help"].stdout.split())
    config = RECIPES["default"]("UNet")
    for default in (config.learning_rate, config.epochs, config.batch_size, config.image_size, "60.0", "pet", "auto"):
        assert re.search(rf"\(default: (the recipe's, )?{default}\)", text)


def test_start_up_imports_nothing_slow() -> None:
    """``import torchvision`` costs over 3 s and matplotlib over 1 s: not on the way to a training step."""
    slow = ("torchvision", "matplotlib", "imutils", "PIL.Image")
    code = f"import sys, train; print([module for module in {slow} if module in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO / "src")
    assert run.stdout.strip() == "[]"


def test_make_removes_no_folder_of_the_users(tmp_path: Path) -> None:
    """Without python3-venv, making the environment fails; a path with a space is refused."""
    (tmp_path / "envs" / "mine").mkdir(parents=True)
    for venv, said in ((tmp_path / "envs", "is python3-venv installed"), (f"{tmp_path}/my envs", "cannot contain")):
        command = ["make", "-C", str(REPO), "demo", f"VENV={venv}", "PYTHON=false"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode != 0
        assert said in done.stdout + done.stderr
    assert (tmp_path / "envs" / "mine").is_dir()
