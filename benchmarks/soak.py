"""Kill, stop and starve trainings in turn, resume them, and compare them with an undisturbed one to the bit.

python benchmarks/soak.py --minutes 20

The network is SegFormer at 32x32: an epoch takes under a second, so there are many saves, and writing its ``last`` of
60 MB takes long enough for most kills to lie inside a save. ResNet34_UNet's of 390 MB would leave time for few.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import itertools
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from plumbing.cli import REPO, ArgumentParser, UserError, positive_float, run_script, whole_number

import numpy as np
import torch

from checkpoint import load_checkpoint
from draw_pets import write_dataset
from record import RESULTS, origin, write_json
from report import read_history

TURN = ("save", "save", "SIGTERM", "full disk", "save", "SIGKILL", "SIGINT", "save")  # save: SIGKILL inside a save
DONE = ("kills", "kills_inside_a_save", "signals", "full_disks", "finished_runs_compared")
MODEL, NAME, EPOCHS = "SegFormer", "soak", 12
FLAGS = ("--image_size", 32, "--batch_size", 4, "--epochs", EPOCHS, "--save_every", 0, "--threads", 1)
DIFFERENT = ("seconds", "images_per_second", "command", "resumed")  # entries in which equal runs may differ


class Script(subprocess.Popen):
    """A script in a process of its own; its output goes to two files."""

    def __init__(self, log: Path, *command: object) -> None:
        self.out, self.err = log.with_suffix(".out"), log.with_suffix(".err")
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            super().__init__([sys.executable, *map(str, command)], stdout=out, stderr=err, cwd=REPO)

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Until it is true, or the process has ended."""
        until = time.monotonic() + 300  # after which a script hangs
        while self.poll() is None and not condition() and time.monotonic() < until:
            time.sleep(0.0005)

    def end(self, number: int = 0) -> None:
        """Send a signal, if any, and wait for the end."""
        self.send_signal(number)  # 0 does nothing
        self.wait_until(lambda: False)
        self.kill()
        self.wait()

    def epochs(self) -> list[int]:
        """Those that it has printed so far."""
        return [int(number) for number in re.findall(r"^Epoch (\d+)/", self.out.read_text(), re.MULTILINE)]


def is_same(a: Any, b: Any) -> bool:
    """True if plain data is equal to the bit, except for DIFFERENT."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(key in DIFFERENT or is_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


class Soak:
    """A run, the faults done to it, and what came of them."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.rng, self.scripts = work, np.random.default_rng(seed), []
        self.counts, self.violations = Counter(), []
        self.pets = write_dataset(work / "pets", count=40, seed=seed, size=(48, 72))
        self.folder, self.saved, self.whole = work / "runs" / NAME, 0, {}  # epochs in last; the undisturbed run
        self.finish(self.go_on())
        if self.violations:
            raise UserError(f"the undisturbed run: {self.violations[0]}")

    def run(self, script: str, *flags: object) -> Script:
        flags = ("--model", MODEL, "--name", NAME, "--data_path", self.pets, "--save_path", self.folder.parent, *flags)
        self.scripts.append(Script(self.work / f"log{len(self.scripts)}", f"src/{script}.py", *flags))
        return self.scripts[-1]

    def go_on(self) -> Script:
        """Resume the run; start it anew if it was killed before there was anything to resume."""
        resumes = (self.folder / f"{NAME}_last.pth").is_file()
        self.counts["resumes"] += resumes
        return self.run("train", *FLAGS, "--resume" if resumes else "--overwrite")

    def violate(self, script: Script, what: object) -> None:
        said = f"{what}; exit code {script.returncode}, {script.err.read_text()[-600:]!r}"
        self.violations.append(said.replace(str(self.work), ""))

    def judge(self, script: Script, code: int, says: str) -> None:
        """Expect an exit code, words in the output, and one line of errors at most; none of what was killed."""
        err = script.err.read_text().strip()
        said = re.search(says, f"{script.out.read_text()}\n{err}", re.MULTILINE)
        if script.returncode != code or not said or "Traceback" in err or err.count("\n") >= (code > 0) + (not err):
            self.violate(script, f"expected exit code {code}, {says!r} and {int(code > 0)} lines of errors")

    def survey(self, script: Script, may_lose: int) -> None:
        """After a fault: of the epochs printed, only the last ``may_lose`` are lost; a finished run is compared."""
        states, printed = {}, script.epochs()
        for path in self.folder.glob("*.pth"):
            try:
                states[path.name] = load_checkpoint(path)
            except UserError as error:
                self.violate(script, error)
        saved = states.get(f"{NAME}_last.pth", {"epoch": 0})["epoch"]
        if saved < max([self.saved, *(epoch - may_lose for epoch in printed)]):
            self.violate(script, f"last has epoch {saved}, after {self.saved} and {printed} were done")
        if printed and printed[0] != self.saved + 1:
            self.violate(script, f"epoch {printed[0]} followed epoch {self.saved}")
        self.saved = saved
        if saved == EPOCHS:
            self.compare(script, states)

    def compare(self, script: Script, states: dict[str, Any]) -> None:
        """Compare a finished run, and remove it. The first one was undisturbed."""
        states["history"] = read_history(self.folder / f"{NAME}_history.csv")
        self.counts["finished_runs_compared"] += bool(self.whole)
        if not self.whole:
            self.whole, self.sizes = states, {path.name: path.stat().st_size for path in self.folder.glob("*")}
        elif not is_same(states, self.whole):
            self.violate(script, "the finished run differs from the undisturbed one")
        if script.returncode == 0 and (stale := [path.name for path in self.folder.glob(".*.part")]):
            self.violate(script, f"stale temporary files: {stale}")
        shutil.rmtree(self.folder)
        self.saved = 0

    def finish(self, script: Script) -> None:
        script.end()
        self.judge(script, 0, "best validation Dice")
        self.survey(script, may_lose=0)

    def parts(self) -> set[Path]:
        return set(self.folder.glob(".*.pth.*.part"))  # temporary files of saves

    def wait_for_a_moment(self, script: Script) -> None:
        """Any moment, a third of them before the first epoch ends, once the script has installed its handlers."""
        status, handled = Path(f"/proc/{script.pid}/status"), signal.SIGTERM - 1
        script.wait_until(lambda: int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16) >> handled & 1)
        if self.rng.random() < 2 / 3:
            script.wait_until(script.epochs)
        until = time.monotonic() + self.rng.uniform(0, 2)
        script.wait_until(lambda: time.monotonic() > until)

    def wait_for_a_save(self, script: Script, stale: set[Path]) -> None:
        """Until a random fraction of one of the next four checkpoints is written."""
        number, fraction, seen = self.rng.integers(1, 5), self.rng.uniform(0, 1), set()

        def is_written() -> bool | None:
            seen.update(parts := self.parts() - stale)
            with suppress(FileNotFoundError):  # renamed just now
                written = [part.stat().st_size / self.sizes[part.name[1:].rsplit(".", 2)[0]] for part in parts]
                return len(seen) >= number and max(written, default=0) >= fraction

        script.wait_until(is_written)

    def strike(self, kind: str) -> None:
        """SIGKILL inside a save, or that signal at any moment."""
        stale, number = self.parts(), signal.Signals["SIGKILL" if kind == "save" else kind]
        script = self.go_on()
        self.wait_for_a_save(script, stale) if kind == "save" else self.wait_for_a_moment(script)
        is_kill = number == signal.SIGKILL
        script.end(number)
        self.counts["kills" if is_kill else "signals"] += script.returncode != 0
        if script.returncode and is_kill:
            self.judge(script, -number, "")
            self.counts["kills_inside_a_save"] += bool(self.parts() - stale)
        elif script.returncode:
            is_resumable = (self.folder / f"{NAME}_last.pth").is_file()
            advice = rf"go on with: .*--name {NAME} .*--resume$|" if is_resumable else ""
            self.judge(script, 128 + number, rf"{advice}^interrupted$|^terminated$")
        self.survey(script, may_lose=int(is_kill))

    def fill_disk(self) -> None:
        """Limit the size of the process's files: the next save fails as on a full disk."""
        script, free = self.go_on(), int(self.rng.uniform(0.01, 0.9) * max(self.sizes.values()))
        self.wait_for_a_moment(script)
        with suppress(ProcessLookupError):
            resource.prlimit(script.pid, resource.RLIMIT_FSIZE, (free, free))
        script.end()
        if script.returncode:
            self.judge(script, 1, "^error: the disk is full")
            self.counts["full_disks"] += 1
        self.survey(script, may_lose=1)

    def soak(self, minutes: float) -> None:
        """Do what ``TURN`` says again and again, everything once at least."""
        until = time.monotonic() + 60 * minutes
        try:
            for index, kind in enumerate(itertools.cycle(TURN)):
                self.fill_disk() if kind == "full disk" else self.strike(kind)
                done = ", ".join(f"{self.counts[name]} {name}" for name in DONE)
                print(f"{kind}: {done}, {len(self.violations)} violations", flush=True)
                if time.monotonic() > until and (all(self.counts[name] for name in DONE) or index > 3 * len(TURN)):
                    break
            if self.saved:
                self.finish(self.go_on())
        finally:
            for script in self.scripts:
                script.end(signal.SIGKILL)


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Kill, stop and starve trainings, resume them, and compare them with an undisturbed one.")
    parser.add_argument("--minutes", type=positive_float, default=20.0, help="at least; each fault comes once anyway")
    parser.add_argument("--seed", type=whole_number, default=0, help="of the pets, and of what is done when")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args(argv)
    print("draws pets and trains on them once undisturbed; all files are temporary", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(Path(folder), args.seed)
        soak.soak(args.minutes)
    figures = {"minutes": round((time.monotonic() - started) / 60, 1)}
    figures |= {name: soak.counts[name] for name in (*DONE, "resumes")}
    figures |= {"violations": len(soak.violations), "first_violations": soak.violations[:5]}
    print("\n".join(f"{name}: {figure}" for name, figure in figures.items()))
    write_json(args.results / "soak-cpu.json", figures | origin("soak.py", sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    run_script(main)
