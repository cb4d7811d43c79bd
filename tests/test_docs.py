"""README and docs: links lead somewhere, flags exist, and what can run on drawn pets runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from plumbing.cli import REPO

import pytest

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md")), *(REPO / "benchmarks").glob("*.md")]
PAGES += [REPO / "weights" / "README.md"]
SKIPPED = (  # what needs a network, several machines, photos of the reader's, or hours
    r"download|--pretrained|benchmarks/|photo\.jpg|holiday|MyDrive|HOST|ResNet34_UNet\.pth|--recipe mine|new_photos"
    r"|export_onnx"  # whose check fails on the large logits of a network after two steps
)
QUICK = ["--epochs", "1", "--image_size", "32", "--batch_size", "4", "--limit", "8", "--overwrite"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command that starts a script of ours."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if len(words) > 1 and words[0] == "python" and words[1].endswith(".py"):
                yield words


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def help_of(script: str) -> str:
    return subprocess.run([sys.executable, REPO / script, "--help"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if not link.startswith("http"):
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_pages_are_short() -> None:
    text = (REPO / "README.md").read_text(encoding="utf-8")
    assert len(text) <= 11_000
    assert text.count("\n") <= 170
    assert [page.name for page in (REPO / "docs").glob("*.md") if page.read_text().count("\n") > 200] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_flags_exist(page: Path) -> None:
    for _, script, *words in commands(page):
        flags = {word.partition("=")[0] for word in words if re.match("--[a-z]", word)}
        missing = [
            flag for flag in flags if not re.search(rf"{flag}\b", help_of(script)) and script != "benchmarks/peers.py"
        ]
        assert missing == [], f"{script} of {page.name}"


@pytest.mark.slow
def test_what_can_run_on_drawn_pets_runs(drawn_pets: Path, tmp_path: Path) -> None:
    """In a copy of the repository, page by page; trainings are cut short."""
    files = subprocess.run(
        ["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in files:
        if name.startswith(("src", "tools", "weights", "docs", "hubconf")):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPO / name, tmp_path / name)
    for name in ("oxford-iiit-pet", "oxford-iiit-pet-128"):
        shutil.copytree(drawn_pets, tmp_path / "dataset" / name, ignore=shutil.ignore_patterns(".cache"))

    def run(*words: str) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"

    for model in ("R", "U"):
        run("src/train.py", "--model", model, *QUICK)
        run("src/evaluate.py", "--model", model, "--split", "test")
        run("src/evaluate.py", "--model", model)
    ran = 0
    for page in (REPO / "docs" / "data.md", REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))):
        for code in blocks(page, "python"):
            is_done = "mkdir" in code and (tmp_path / "masks").exists()
            if not is_done and not re.search(r"class |def |!git|photo\.jpg|R_best", code):
                run("-c", code)
        for words in commands(page):
            line = " ".join(words)
            if re.search(SKIPPED, line) or (words[1] == "tools/shrink_data.py" and (tmp_path / words[3]).exists()):
                continue
            if words[1] == "tools/import_masks.py":
                shutil.rmtree(tmp_path / words[words.index("--output") + 1], ignore_errors=True)
            run(*words[1:], *(QUICK if words[1] == "src/train.py" else []))
            ran += 1
    assert ran > 30
